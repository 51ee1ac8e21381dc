"""Mixes of types: every tensor gets the one that llama.cpp gives it.

`types.json` was made once, by `llama_model_quantize` of llama.cpp b11739 (the library in the wheel llama-cpp-py-sync
0.11739, called through ctypes): for each model in it a GGUF of zeros was quantised to every mix, with and without
importances, and the types of the files read. A string has a letter for each layer, and starts with the letter of all
tensors that it does not name.
"""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import UsageError
from entrenar_core.quantization import MIXES, MixedModel, dtypes_of, in_order, mix_named
from entrenar_core.quantization.mixes import ALIASES
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from llama_server import real_gguf

FOUND = json.loads(Path(__file__).parents[1].joinpath("fixtures", "quantization", "types.json").read_text())
MODELS: dict[str, Any] = FOUND["models"]
LAYER = {
    "attn_q": (4096, 4096),
    "attn_k": (1024, 4096),
    "attn_v": (1024, 4096),
    "attn_output": (4096, 4096),
    "ffn_gate": (14336, 4096),
    "ffn_up": (14336, 4096),
    "ffn_down": (4096, 14336),
    "attn_norm": (4096,),
    "ffn_norm": (4096,),
}


def mixed(model: dict[str, Any]) -> MixedModel:
    """A model of the fixture."""
    layers = range(model["settings"]["layers"])
    inside = {f"blk.{layer}.{name}": tuple(shape) for layer in layers for name, shape in model["layer"].items()}
    outside = {name: tuple(shape) for name, shape in model["outside"].items()}
    return MixedModel(**model["settings"], tensors={**outside, **inside})


def types_in(text: str, model: MixedModel) -> dict[str, str]:
    """The types of all tensors that a string of the fixture stands for."""
    most, *others = text.split()
    letters = {f"{name}.weight": letter for name, _, letter in (other.partition("=") for other in others)}
    found = {}
    for name, shape in model.tensors.items():
        kind = name.split(".", 2)[-1] if name.startswith("blk.") else name
        letter = "F" if len(shape) == 1 else letters.get(kind, most)
        layer = int(name.split(".")[1]) if len(letter) > 1 else 0
        found[name] = FOUND["letters"][letter[layer]]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(name: str) -> None:
    types, model, checked = MODELS[name]["types"], mixed(MODELS[name]), 0
    for mix in MIXES.values():
        for importance in (False, True):
            plain = types[mix.name]
            text = types.get(f"{mix.name} with importances", plain) if importance else plain
            if text.startswith("needs"):
                with pytest.raises(UsageError, match="needs an importance matrix"):
                    dtypes_of(model, mix, importance=importance)
                continue
            chosen = dtypes_of(model, mix, importance=importance)
            assert {tensor: dtype.name for tensor, dtype in chosen.items()} == types_in(text, model), mix.name
            checked += 1
    assert checked >= 2 * len(MIXES) - 1


@pytest.mark.real_models
def test_a_real_file_has_the_types_that_are_chosen_for_it() -> None:
    """A file that llama.cpp's own quantiser wrote, in its order."""
    model = open_model(parse_reference(str(real_gguf())))
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    chosen = dtypes_of(MixedModel("llama", 30, 9, 3, shapes), mix_named("Q4_1"))
    assert {name: tensor.dtype for name, tensor in model.tensors.items()} == chosen
    assert model.metadata["general.file_type"] == mix_named("Q4_1").file_type


def test_tensors_lie_as_in_files_of_llama_cpp() -> None:
    names = ["blk.10.attn_k.weight", "blk.9.ffn_up.weight", "token_embd.weight", "blk.9.attn_q.bias", "output.weight"]
    assert in_order(names) == [names[4], names[2], names[3], names[1], names[0]]


@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_the_file_type_is_that_of_the_gguf_package(mix: Any) -> None:
    kind = gguf.LlamaFileType["ALL_F32" if mix.name == "f32" else f"MOSTLY_{mix.name.upper()}"]
    assert mix.file_type == kind.value


def test_bits_per_weight_are_those_of_llama_8b() -> None:
    layers = {f"blk.{layer}.{name}.weight": shape for layer in range(32) for name, shape in LAYER.items()}
    ends = {"token_embd.weight": (128256, 4096), "output.weight": (128256, 4096), "output_norm.weight": (4096,)}
    model = MixedModel("llama", 32, 32, 8, {**layers, **ends})
    weights = sum(map(math.prod, model.tensors.values()))
    for mix in MIXES.values():
        chosen = dtypes_of(model, mix, importance=mix.name == "q2_k_s")
        sizes = [dtype.size_bytes(model.tensors[name]) or 0 for name, dtype in chosen.items()]
        assert mix.bits == pytest.approx(8 * sum(sizes) / weights, abs=0.006), mix.name


@pytest.mark.parametrize(("spelled", "name"), [("Q4_K_M", "q4_k_m"), (" q4-k ", "q4_k_m"), *ALIASES.items()])
def test_a_mix_is_known_by_its_spellings(spelled: str, name: str) -> None:
    assert mix_named(spelled) is MIXES[name]


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(UsageError, match="'q4km' is not a type") as near:
        mix_named("q4km")
    assert near.value.hint == "did you mean q4_k_m?"
    with pytest.raises(UsageError) as far:
        mix_named("nonsense!")
    assert all(name in str(far.value.hint) for name in MIXES)


@given(row=st.integers(1, 600), rows=st.integers(1, 3), mix=st.sampled_from(list(MIXES)), tied=st.booleans())
def test_blocks_of_what_is_chosen_divide_the_rows(row: int, rows: int, mix: str, tied: bool) -> None:
    names = ("token_embd", "blk.0.attn_v", "blk.1.ffn_down", "blk.2.attn_output", *(() if tied else ("output",)))
    model = MixedModel("llama", 3, 4, 1, {f"{name}.weight": (rows, row) for name in names})
    chosen = dtypes_of(model, MIXES[mix], importance=True)
    assert all(row % dtype.block == 0 for dtype in chosen.values())
    kept = {dtype.name for dtype in chosen.values()} == {"F32"}
    assert kept == (rows == 1 or mix == "f32"), "a matrix of one row is a vector to ggml"
