"""Adapters opened from what peft saves, from bare files, and from files that are broken: each refusal by its words."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.adapter import Adapter, require_scales
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.adapters.settings import settings_of
from entrenar_core.errors import EntrenarError, ModelError, NotFoundError, UsageError
from entrenar_core.references import parse_reference
from tiny_models import tiny_llama
from trained_adapters import saved_adapter

MODULE = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


def opened(path: Path, **settings: Any) -> Adapter:
    return open_adapter(parse_reference(str(path)), **settings)


def written(
    folder: Path, tensors: Tensors, config: dict[str, Any] | None, metadata: dict[str, str] | None = None
) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pair(module: str = MODULE, rank: int = 2) -> Tensors:
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.ones(rank, 6),
        f"{PREFIX}{module}.lora_B.weight": torch.ones(4, rank),
    }


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, {"q_proj": 2.0, "down_proj": 2.0}),
        ({"use_rslora": True}, {"q_proj": 4.0, "down_proj": 4.0}),
        ({"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r".*q_proj": 3}}, {"q_proj": 0.75, "down_proj": 4.0}),
        ({"rank_pattern": {"layers.0.mlp.down_proj": 8}}, {"q_proj": 2.0, "down_proj": 1.0}),
    ],
)
def test_scales_are_those_that_peft_multiplies_by(
    settings: dict[str, Any], scales: dict[str, float], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tmp_path / "base", num_hidden_layers=1)
    folder = saved_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"], **settings)
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    with opened(folder) as adapter:
        for one in adapter.pairs:
            layer = model.base_model.model.get_submodule(one.module)
            assert one.scale == pytest.approx(layer.scaling["default"])
            assert one.scale == pytest.approx(scales[one.module.rpartition(".")[2]])
            assert one.rank == layer.r["default"]


def test_every_part_that_peft_saves_has_its_place(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", num_hidden_layers=1, tie_word_embeddings=False)
    settings = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"], "use_dora": True}
    with opened(saved_adapter(tmp_path / "adapter", base, **settings)) as adapter:
        query, embedding = sorted(adapter.pairs, key=lambda one: one.embedding)
        assert query.magnitude is not None
        assert query.shape == (32, 32)
        assert embedding.shape == (320, 32)
        assert {"model.norm.weight", "model.embed_tokens.weight"} <= set(adapter.whole)
        assert adapter.settings.dora
        saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert adapter.parameters == sum(tensor.numel() for tensor in saved.values())
    settings = {"target_modules": ["q_proj"], "lora_bias": True}
    with opened(saved_adapter(tmp_path / "biased", base, **settings)) as adapter:
        assert adapter.pairs[0].up_bias is not None


def test_a_bare_file_says_what_it_leaves_open(tmp_path: Path) -> None:
    folder = written(tmp_path / "bare", pair(), None)
    with opened(folder) as adapter:
        assert adapter.inferred == (
            "there is no adapter_config.json beside it",
            "the rank is 2, as the shapes of its matrices say",
        )
        assert adapter.pairs[0].scale is None
        with pytest.raises(UsageError, match="does not say its alpha"):
            require_scales(adapter)
    with opened(folder, alpha=4.0) as adapter:
        assert adapter.pairs[0].scale == 2
        assert "alpha is 4, as --alpha says" in adapter.inferred
        require_scales(adapter)
    with opened(folder, alpha=4.0, rslora=True) as adapter:
        assert adapter.pairs[0].scale == pytest.approx(4 / 2**0.5)
    magnitudes = {f"{PREFIX}{MODULE}.lora_magnitude_vector": torch.ones(4)}
    with opened(written(tmp_path / "dora", pair() | magnitudes, None)) as adapter:
        assert adapter.settings.dora
        assert "it is DoRA, as its magnitudes say" in adapter.inferred


@pytest.mark.parametrize("key", ["lora_alpha", "alpha"])
def test_the_metadata_of_a_file_may_say_the_alpha(key: str, tmp_path: Path) -> None:
    with opened(written(tmp_path / "a", pair(), None, {key: "6"})) as adapter:
        assert adapter.pairs[0].scale == 3
    with opened(written(tmp_path / "b", pair(), None, {key: "much"})) as adapter:
        assert adapter.pairs[0].scale is None


def test_settings_in_the_metadata_are_those_of_the_file(tmp_path: Path) -> None:
    said = json.dumps({**CONFIG, "use_rslora": True, "lora_alpha": 8})
    with opened(written(tmp_path / "a", pair(), None, {"adapter_config": said})) as adapter:
        assert adapter.pairs[0].scale == pytest.approx(8 / 2**0.5)
    for broken in ("no JSON", "[]", "[" * 100_000):
        with pytest.raises(ModelError, match="is no JSON table"):
            opened(written(tmp_path / f"b{len(broken)}", pair(), None, {"adapter_config": broken}))


def test_names_of_an_adapter_that_was_not_saved_by_peft_are_read_too(tmp_path: Path) -> None:
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in pair().items()}
    with opened(written(tmp_path / "a", tensors, CONFIG)) as adapter:
        assert [one.module for one in adapter.pairs] == [MODULE]
    plain = {name.removeprefix(PREFIX): tensor for name, tensor in pair().items()}
    with opened(written(tmp_path / "b", plain, CONFIG)) as adapter:
        assert [one.module for one in adapter.pairs] == [MODULE]


def nan_in_it(tensors: Tensors) -> Tensors:
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def without(end: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: one for name, one in tensors.items() if not name.endswith(end)}


BROKEN: list[tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = [
    (without("lora_B.weight"), {}, "has no B"),
    (without("lora_A.weight"), {}, "has no A"),
    (lambda found: {**found, f"{PREFIX}{MODULE}.lora_B.weight": torch.ones(4, 3)}, {}, "which have no product"),
    (lambda found: {**found, f"{PREFIX}{MODULE}.lora_B.weight": torch.ones(4, 2, 1, 1)}, {}, "not two matrices"),
    (lambda found: {**found, f"{PREFIX}{MODULE}.lora_E": torch.ones(2)}, {}, "no part of a LoRA adapter"),
    (lambda found: {**found, "strange.weight": torch.ones(2)}, {}, r"strange\.weight"),
    (lambda _: {f"{PREFIX}norm.weight": torch.ones(4)}, {}, "has no tensors of a LoRA adapter"),
    (lambda _: {f"{PREFIX}{MODULE}.lora_A.weight": torch.ones(0, 6),
                f"{PREFIX}{MODULE}.lora_B.weight": torch.ones(4, 0)}, {"r": 1}, "not two matrices"),
    (dict, {"r": 8}, "says rank 8 of .*, and its matrices have 2"),
    (dict, {"rank_pattern": {"q_proj": 3}}, "says rank 3"),
    (dict, {"r": 0}, "a rank is a whole number above 0"),
    (dict, {"r": True}, "a rank is a whole number above 0"),
    (dict, {"r": "8"}, "a rank is a whole number above 0"),
    (dict, {"lora_alpha": 0}, "an alpha is a number above 0"),
    (dict, {"lora_alpha": "8"}, "an alpha is a number above 0"),
    (dict, {"rank_pattern": [1]}, "should be a table"),
    (dict, {"rank_pattern": {"[": 2}}, "no regular expression"),
    (dict, {"rank_pattern": {"a{99999999999999999999}": 2}}, "no regular expression"),
    (dict, {"rank_pattern": {"(" * 3000 + ")" * 3000: 2}}, "no regular expression"),
    (dict, {"use_rslora": "true"}, "should be true or false"),
    (dict, {"use_dora": 1}, "should be true or false"),
    (dict, {"rank_pattern": {"(": 1}}, "no regular expression"),
    (dict, {"alpha_pattern": {"q_proj": -1}}, "alpha_pattern of q_proj"),
    (dict, {"peft_type": 3}, "should be a text"),
    (dict, {"target_modules": [1]}, "should be a list of names"),
    (dict, {"peft_type": "IA3"}, "of the method IA3, which has no low-rank matrices"),
]  # fmt: skip


def test_a_pattern_that_is_looked_up_for_ever_is_refused() -> None:
    settings = settings_of({"lora_alpha": 8, "alpha_pattern": {"(?:a|b|ab)*(?:a|b|ab)*[cd]": 2}}, "here")
    assert settings.alpha_of("layers.0.abc") == 2
    with pytest.raises(ModelError, match="takes too long"):
        settings.alpha_of("ab" * 30 + ".q_proj")


@pytest.mark.parametrize(("change", "config", "message"), BROKEN)
def test_what_is_broken_is_refused(
    change: Callable[[Tensors], Tensors], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "broken", change(pair()), CONFIG | config)
    with pytest.raises(ModelError, match=message) as error:
        opened(folder)
    assert error.value.hint


def test_values_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path) -> None:
    with opened(written(tmp_path / "nan", nan_in_it(pair()), CONFIG)) as adapter:
        assert torch.equal(torch.from_numpy(adapter.values(adapter.pairs[0].up)), torch.ones(4, 2))
        with pytest.raises(ModelError, match="holds 1 values that are not finite"):
            adapter.values(adapter.pairs[0].down)


def test_settings_that_are_no_json_and_files_that_are_not_there(tmp_path: Path) -> None:
    folder = written(tmp_path / "broken", pair(), None)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="adapter_config"):
        opened(folder)
    with pytest.raises(NotFoundError):
        opened(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EntrenarError):
        opened(tmp_path / "empty")


@pytest.mark.parametrize(
    ("settings", "message"), [({"alpha": 3.0}, "own files say 4"), ({"rslora": True}, "says otherwise")]
)
def test_options_do_not_contradict_the_files(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        opened(written(tmp_path / "a", pair(), CONFIG), **settings)


def test_a_pickle_is_read_only_where_it_is_allowed(tmp_path: Path) -> None:
    torch.save(pair(), tmp_path / "adapter.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        opened(tmp_path / "adapter.bin")
    with opened(tmp_path / "adapter.bin", allow_pickle=True, alpha=4.0) as adapter:
        assert adapter.pairs[0].scale == 2


@given(
    config=st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "peft_type", "target_modules",
                         "use_rslora", "init_lora_weights", "modules_to_save", "bias", "base_model_name_or_path"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=4,
        ),
    )
)  # fmt: skip
def test_no_settings_whatever_make_it_fail_otherwise(config: dict[str, Any]) -> None:
    with suppress(ModelError):
        found = settings_of(config, "adapter_config.json")
        assert found.alpha is None or found.alpha > 0
        assert found.scale("model.q_proj", 4) is None or found.alpha_of("model.q_proj") is not None
