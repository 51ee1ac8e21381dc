"""GGUF whose metadata or tensors cannot be those of a model: refused in one clear sentence, and nothing is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar_core.conversion import convert
from entrenar_core.conversion.gguf_config import config_of
from entrenar_core.conversion.gguf_families import gguf_families
from entrenar_core.conversion.gguf_names import renamed
from entrenar_core.conversion.gguf_rope import rope_of
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.gguf import SkippedArray
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model

QUERY, FACTORS = "blk.0.attn_q.weight", "rope_freqs.weight"
BASE, SCALE = "llama.rope.freq_base", "llama.rope.scaling.factor"
LLAMA: Mapping[str, Any] = {"general.architecture": "llama", "llama.block_count": 1}
LINEAR: Mapping[str, Any] = {**LLAMA, "llama.rope.scaling.type": "linear"}
SKIPPED = SkippedArray("INT32", 5000)


def written(path: Path, tensors: Mapping[str, tuple[int, ...]], **metadata: Any) -> Path:
    """A llama of one layer with two heads; of its metadata some is told otherwise."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    for key, value in {"attention.head_count": 2, **metadata}.items():
        if isinstance(value, list):
            writer.add_array(f"llama.{key}", value)
        elif isinstance(value, int) and value:
            writer.add_uint32(f"llama.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"llama.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"llama.{key}", value)
    for name, shape in {"blk.0.attn_norm.weight": (8,), **tensors}.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({QUERY: (8, 8)}, {"attention.head_count": 0}, r"\[8, 8\] of .*q_proj.weight .* its metadata says no number"),
        ({QUERY: (8, 8)}, {"attention.head_count": 3}, r"cannot be cut into heads of pairs: .* 3 heads"),
        ({QUERY: (8, 8)}, {"attention.head_count": 8}, r"cannot be cut into heads of pairs: .* 8 heads"),
        ({QUERY: ()}, {}, r"\[\] of .* cannot be cut into heads of pairs"),
        ({}, {"rope.freq_base": "abc"}, "llama.rope.freq_base of the metadata is no finite number above zero"),
        ({}, {"rope.freq_base": [1, 2]}, "rope.freq_base of the metadata is no finite number"),
        ({FACTORS: (4,)}, {"rope.freq_base": -5.0}, "rope.freq_base of the metadata is no finite number"),
        ({FACTORS: (4, 2)}, {}, "rope_freqs.weight is no list of factors"),
        ({FACTORS: ()}, {}, "rope_freqs.weight is no list of factors"),
        ({}, {"attention.sliding_window": [1] * 2000}, "sliding_window of the metadata is no whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_model_is_refused_and_nothing_is_written(
    tensors: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any], says: str, tmp_path: Path
) -> None:
    path, output = written(tmp_path / "model.gguf", tensors, **metadata), tmp_path / "output"
    with open_model(parse_reference(str(path))) as stored, pytest.raises(ModelError, match=says) as error:
        convert(stored, WeightFormat.SAFETENSORS, output)
    assert error.value.hint
    assert not output.exists()


def test_queries_without_rows_are_converted(tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", {QUERY: (8, 0)})
    with open_model(parse_reference(str(path))) as stored:
        convert(stored, WeightFormat.SAFETENSORS, tmp_path / "model.safetensors")
    with open_model(parse_reference(str(tmp_path / "model.safetensors"))) as stored:
        assert stored.tensors["model.layers.0.self_attn.q_proj.weight"].shape == (8, 0)


@pytest.mark.parametrize("value", ["x", True, 0, -1.0, float("nan"), float("inf"), (1.0, 2.0), SKIPPED])
@pytest.mark.parametrize("key", [BASE, SCALE])
def test_positions_are_stretched_by_numbers_above_zero_alone(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key} of the metadata is no finite number above zero"):
        rope_of({**LINEAR, key: value}, {})


@pytest.mark.parametrize("factors", [[], [1.0, 0.0], [1.0, -2.0], [float("nan"), 1.0], [[1.0], [2.0]], 1.0, [True]])
@pytest.mark.parametrize("name", [FACTORS, "rope_factors_long.weight", "rope_factors_short.weight"])
def test_factors_are_lists_of_numbers_above_zero(name: str, factors: Any) -> None:
    both = {} if name == FACTORS else {"rope_factors_long.weight": [1.0], "rope_factors_short.weight": [1.0]}
    with pytest.raises(ModelError, match=f"{name} is no list of factors"):
        rope_of(LLAMA, {**both, name: factors})


@pytest.mark.parametrize("value", ["x", True, (1, 2), SKIPPED, float("nan")])
@pytest.mark.parametrize(
    "key",
    [
        "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base_swa", "llama.attention.key_length",
        "llama.attention.sliding_window", "llama.attn_logit_softcapping", "llama.final_logit_softcapping", BASE,
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id",
    ],
)  # fmt: skip
def test_a_configuration_has_values_of_their_kinds_alone(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key} of the metadata is no "):
        config_of({**LLAMA, key: value}, gguf_families()["llama"], tied=False)


def test_only_layers_that_tensors_have_are_named() -> None:
    """Of two billion layers that are claimed."""
    claimed = {**LLAMA, "llama.block_count": 2_000_000_000}
    last = "blk.1999999999.attn_q.weight"
    beyond = ("blk.2000000000.attn_q.weight", "blk.07.attn_q.weight", "blk.\u0663.attn_q.weight", "blk.3.other", "w")
    found = renamed(claimed, gguf_families()["llama"], (last, "output.weight", *beyond))
    assert {stored: to.name for stored, to in found.items()} == {
        last: "model.layers.1999999999.self_attn.q_proj.weight", "output.weight": "lm_head.weight",
    }  # fmt: skip
