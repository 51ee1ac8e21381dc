"""Three files in older spellings mean what they say, every section of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.config import load_config
from entrenar_core.config.spellings import ABSENT, RENAMED
from entrenar_core.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"

LORA = {
    "rank": 64,
    "alpha": 16.0,
    "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "dropout": 0.1,
}
MEANT: dict[str, dict[str, Any]] = {
    "chapter": {
        "teacher": {"model_id": "meta-llama/Llama-2-7b", "format": "safetensors"},
        "student": {"model_id": "TinyLlama/TinyLlama-1.1B", "lora": LORA},
        "distillation": {
            "temperature": 4.0,
            "alpha": 0.7,
            "progressive": {"enabled": True, "layer_mapping": ((0, 3), (1, 7), (2, 11)), "weight": 0.3},
            "attention": {"enabled": True, "weight": 0.1},
        },
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "warmup_steps": 100,
            "gradient_accumulation": 4,
        },
        "dataset": {"name": "wikitext", "path": "./data/wikitext", "split": "train", "max_length": 512},
        "output": {"dir": Path("distilled-model")},
    },
    "pipeline": {
        "teacher": {"model_id": "microsoft/codebert-base", "revision": "main", "format": "safetensors"},
        "student": {"architecture": "transformer", "hidden_size": 256, "num_layers": 4, "num_heads": 4},
        "distillation": {
            "temperature": 4.0,
            "alpha": 0.7,
            "progressive": {"enabled": True, "layer_mapping": ((0, 2), (1, 5), (2, 8), (3, 11))},
            "attention": {"enabled": True, "weight": 0.1},
        },
        "dataset": {"name": "bigcode/starcoderdata", "split": "train", "streaming": True, "max_length": 512},
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 5e-5,
            "warmup_steps": 1000,
            "gradient_accumulation": 4,
        },
        "output": {"dir": Path("distilled_model"), "formats": ("safetensors", "apr")},
    },
    "suite": {
        "teacher": {"model_id": "meta-llama/Llama-2-7b", "revision": "main", "format": "safetensors"},
        "student": {"model_id": "TinyLlama/TinyLlama-1.1B", "lora": {**LORA, "enabled": True}},
        "distillation": {
            "temperature": 4.0,
            "alpha": 0.7,
            "progressive": {"enabled": True, "layer_mapping": ((0, 3), (1, 7), (2, 11)), "weight": 0.3},
            "attention": {"enabled": True, "weight": 0.1},
        },
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "warmup_steps": 100,
            "gradient_accumulation": 4,
            "mixed_precision": "bf16",
        },
        "dataset": {
            "source": "huggingface",
            "name": "wikitext",
            "split": "train",
            "max_length": 512,
            "streaming": True,
        },
        "output": {"dir": Path("distilled-model"), "checkpoint_every": 1000, "formats": ("safetensors",)},
    },
}


@pytest.mark.parametrize("name", MEANT)
def test_a_file_in_older_spellings_means_what_it_says_and_nothing_else(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml").model_dump(exclude_unset=True) == MEANT[name]


@pytest.mark.parametrize("old", [old for old, new in RENAMED.items() if new not in ABSENT])
def test_an_older_spelling_and_the_name_of_today_are_one_setting(old: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    new_key = RENAMED[old].split(".")[1]
    known = {"learning_rate": 0.5, "gradient_accumulation": 2, "formats": ["safetensors"], "attention": None}
    value = known.get(new_key, "name")
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    values.setdefault(section, {}).pop(new_key, None)
    values[section][key] = value
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(values))
    read = load_config(path).model_dump(mode="json")[section][new_key]
    assert read == value

    values[section][new_key] = value
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=f"`{old}` and `{RENAMED[old]}` are one setting"):
        load_config(path)


@pytest.mark.parametrize("name", ABSENT)
def test_a_setting_of_a_later_feature_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    section, key = name.split(".")
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    values.setdefault(section, {})[key] = {"enabled": True}
    path = tmp_path / "later.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert problem.message == f"`{name}` is not part of this version"
    assert problem.hint is not None
    assert problem.hint.startswith("remove it: ")
