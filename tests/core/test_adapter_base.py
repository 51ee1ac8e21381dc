"""The base's matrix of an adapter's module: by the names that folders and GGUFs have, in the order that torch has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.base import BaseWeights, is_transposed, weight_of
from entrenar_core.conversion import convert
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

QUERY = "layers.0.self_attn.q_proj"


def opened(path: Path) -> StoredModel:
    return open_model(parse_reference(str(path)))


@pytest.mark.parametrize(
    ("module", "stored"),
    [
        (f"model.{QUERY}", f"model.{QUERY}.weight"),
        (QUERY, f"model.{QUERY}.weight"),
        ("lm_head", "model.embed_tokens.weight"),
        ("embed_tokens", "model.embed_tokens.weight"),
    ],
)
def test_a_llama_has_its_modules_with_and_without_the_prefix(module: str, stored: str, tmp_path: Path) -> None:
    with opened(tiny_llama(tmp_path / "base")) as base:
        assert weight_of(base, module).name == stored
        assert not is_transposed(base, module)


def test_a_bare_body_leaves_its_prefix_out(tmp_path: Path) -> None:
    module = "encoder.layer.1.attention.self.query"
    with opened(tiny_bert(tmp_path / "bare")) as bare, opened(tiny_bert(tmp_path / "head", num_labels=2)) as whole:
        assert weight_of(bare, f"bert.{module}").name == f"{module}.weight"
        assert weight_of(whole, module).name == f"bert.{module}.weight"
        assert weight_of(whole, "classifier").name == "classifier.weight"
        with pytest.raises(ModelError, match="has no classifier"):
            weight_of(bare, "classifier")


def test_below_a_prefix_of_another_model_the_only_such_name_is_meant(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"wrapped.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with opened(folder) as base:
        assert weight_of(base, f"model.{QUERY}").name == f"wrapped.model.{QUERY}.weight"
        with pytest.raises(ModelError):
            weight_of(base, "lm_head")


def test_layers_of_gpt2_lie_transposed_and_come_as_torch_has_them(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    with opened(folder) as base:
        weights = BaseWeights(base)
        for module, shape in (("attn.c_attn", (96, 32)), ("attn.c_proj", (32, 32)), ("mlp.c_fc", (128, 32))):
            name = f"transformer.h.0.{module}"
            assert is_transposed(base, name)
            assert np.array_equal(weights.values(name, shape=shape), tensors[f"{name}.weight"].T.numpy())
        assert not is_transposed(base, "transformer.wte")
        assert weights.values("transformer.wte").shape == tensors["transformer.wte.weight"].shape


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_gguf_gives_the_values_of_the_folder_that_it_was_made_of(make: object, tmp_path: Path) -> None:
    assert callable(make)
    folder = make(tmp_path / "base")
    with opened(folder) as base:
        convert(base, WeightFormat.GGUF, tmp_path / "base.gguf")
    with opened(folder) as base, opened(tmp_path / "base.gguf") as gguf:
        one, other = BaseWeights(base), BaseWeights(gguf)
        for module in one.modules:
            assert np.array_equal(one.values(module), other.values(module)), module
            assert not other.is_transposed(module)
        assert other.tensor("lm_head").name == "token_embd.weight"


def test_another_base_is_told_with_what_it_has_instead(tmp_path: Path) -> None:
    with opened(tiny_llama(tmp_path / "base")) as base:
        with pytest.raises(ModelError) as error:
            weight_of(base, "model.layers.0.self_attn.qkv_proj")
        assert "model.layers.0.self_attn.q_proj" in str(error.value.hint)
        with pytest.raises(ModelError, match="32 × 32, and the adapter changes 64 × 32"):
            weight_of(base, f"model.{QUERY}", shape=(64, 32))


def test_packed_weights_are_told_as_such(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.{QUERY}.weight"] = torch.zeros(512, 1, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    with opened(folder) as base, pytest.raises(ModelError) as error:
        weight_of(base, f"model.{QUERY}", shape=(32, 32))
    assert "quantised" in str(error.value.hint)
