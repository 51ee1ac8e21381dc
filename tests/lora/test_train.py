"""`entrenar-lora train`: what its flags mean, what it prints, and what it says of what cannot be meant."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.errors import ConfigError, UsageError
from entrenar_lora.cli import main
from entrenar_lora.training import Flags, assemble
from tiny_jobs import write_rows
from tiny_models import tiny_llama

FILE = """
model: {model_id: ./base, quantization: {bits: 8}}
adapter: {rank: 4, dropout: 0.1}
dataset: {name: stdlib-docstrings}
"""


def given(file: Path | None = None, *settings: str, **flags: Any) -> dict[str, Any]:
    config: FineTuneConfig = assemble(file, settings, Flags(**flags))
    return config.model_dump(mode="json", exclude_unset=True)


def test_without_a_file_flags_are_a_whole_configuration() -> None:
    assert given(model="./m", dataset="rows.jsonl") == {
        "model": {
            "model_id": "./m", "revision": None, "format": None, "files": None, "allow_pickle": False,
            "trust_remote_code": False,
        },
        "adapter": {"method": "lora"},
        "dataset": {"path": "rows.jsonl", "name": None, "subset": None, "revision": None, "source": None},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "adapter", "quantization"),
    [
        ({"method": "lora"}, {"method": "lora", "dora": False}, None),
        ({"method": "qlora"}, {"method": "lora", "dora": False}, {"bits": 4}),
        ({"method": "qlora", "bits": 8, "rank": 2}, {"method": "lora", "dora": False, "rank": 2}, {"bits": 8}),
        ({"method": "dora", "alpha": 3.0}, {"method": "lora", "dora": True, "alpha": 3.0}, None),
        ({"method": "qdora"}, {"method": "lora", "dora": True}, {"bits": 4}),
        ({"bits": 4}, {"method": "lora"}, {"bits": 4}),
        ({"method": "ia3"}, {"method": "ia3"}, None),
        ({"targets": "all-linear"}, {"method": "lora", "target_modules": "all-linear"}, None),
        ({"targets": "q_proj, v_proj"}, {"method": "lora", "target_modules": ["q_proj", "v_proj"]}, None),
        ({"method": "full"}, None, None),
    ],
)
def test_a_method_is_settings_of_the_adapter_and_of_the_weights(
    flags: dict[str, Any], adapter: dict[str, Any] | None, quantization: dict[str, Any] | None
) -> None:
    found = given(model="./m", dataset="stdlib-docstrings", **flags)
    assert found["adapter"] == adapter
    assert found["model"].get("quantization") == quantization
    assert found["dataset"]["name"] == "stdlib-docstrings"


def test_flags_go_before_the_file_and_leave_the_rest_of_it(tmp_path: Path) -> None:
    file = tmp_path / "lora.yaml"
    file.write_text(FILE)
    assert given(file)["adapter"] == {"rank": 4, "dropout": 0.1}
    assert given(file, rank=8)["adapter"] == {"rank": 8, "dropout": 0.1}
    assert given(file, "adapter.rslora=true")["adapter"] == {"rank": 4, "dropout": 0.1, "rslora": True}
    assert given(file, method="ia3")["adapter"] == {"method": "ia3"}
    lora = given(file, method="lora")
    assert lora["adapter"] == {"method": "lora", "rank": 4, "dropout": 0.1, "dora": False}
    assert lora["model"]["quantization"] is None
    assert given(file, method="qdora")["adapter"]["dora"] is True
    whole = given(file, method="full")
    assert whole["adapter"] is None
    assert whole["model"]["quantization"] is None
    found = given(file, model="org/name", epochs=1, learning_rate=0.5, output=tmp_path, seed=3, batch_size=2)
    assert found["model"]["model_id"] == "org/name"
    assert found["training"] == {"epochs": 1, "learning_rate": 0.5, "seed": 3, "batch_size": 2}
    assert found["output"] == {"dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing says what to train"),
        ({"model": "m", "method": "ia3", "rank": 4}, "--rank is of low-rank matrices, and --method ia3 has none"),
        ({"model": "m", "method": "full", "bits": 4}, "--bits holds weights that do not train"),
        ({"model": "m"}, "`dataset` is missing"),
        ({"model": "m", "dataset": "d", "alpha": -1.0}, "--alpha: `adapter.alpha` should be a number above 0"),
    ],
)
def test_what_cannot_be_meant_is_said(flags: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UsageError), match=message):
        assemble(None, (), Flags(**flags))


@pytest.mark.slow
def test_the_command_trains_and_tells_in_every_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl")
    line = ["train", "--model", "base", "--dataset", "rows.jsonl", "--rank", "2", "--max-steps", "2", "-o", "out"]
    line += ["--set", "dataset.max_length=16", "--batch-size", "8"]
    assert main([*line, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["method"], plan["steps"]) == ("LoRA of rank 2, alpha 16, on attention", 2)
    assert not (tmp_path / "out").exists()
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "before training" in told
    assert "LoRA of rank 2, alpha 16, on attention" in told
    assert main(line) == 2
    assert "--resume for its report" in capsys.readouterr().err
    assert main([*line, "--resume", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 2
    assert report["trained_parameters"] == plan["trained_parameters"]
    assert main([*line, "--resume", "-q"]) == 0
    assert capsys.readouterr().out == "out\n"
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft"
    assert front["tags"] == ["lora", "entrenar"]
    assert "PeftModel.from_pretrained(base" in card
