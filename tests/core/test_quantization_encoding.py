"""Quantised bytes: those that llama.cpp's own quantiser writes, with ggml and without, or a clear refusal.

`digests.json` was made once, by `llama_model_quantize` of llama.cpp b11739 (the library in the wheel llama-cpp-py-sync
0.11739, called through ctypes), which quantised a GGUF of `fixed` to every mix, with and without importances: of the
bytes of all its tensors of a type, one after the other, SHA-256.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats.decoding import decode
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.quantization import MIXES, MixedModel, decode_into, dtypes_of, encode_blocks, writable_here
from entrenar_core.quantization import ggml as ggml_module
from entrenar_core.quantization.encoding import _SAFE, EVERYWHERE, FLOATS
from entrenar_core.quantization.ggml import QUANTISES, ggml

Values = NDArray[np.float32]
DIGESTS = json.loads(Path(__file__).parents[1].joinpath("fixtures", "quantization", "digests.json").read_text())[
    "digests"
]
NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYER = ("attn_norm", *NAMES[:4], "ffn_norm", *NAMES[4:])
BLOCKS = [dtype.name for dtype in QUANTISES]


@pytest.fixture(scope="module")
def with_ggml() -> None:
    if ggml() is None:
        pytest.skip("the package xllamacpp is not installed; `make setup` brings it")


@pytest.fixture
def without_ggml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ggml_module, "PACKAGE", "a_package_that_is_not_there")
    ggml.cache_clear()
    yield
    ggml.cache_clear()


def fixed(row: int) -> tuple[dict[str, Values], dict[str, Values]]:
    """The weights of a small llama, and their importances; of many sizes, with blocks of zeros and of one value."""
    layers = [f"blk.{layer}.{name}.weight" for layer in range(8) for name in LAYER]
    random, weights, importances = np.random.default_rng(7), {}, {}
    for index, name in enumerate(["token_embd.weight", *layers, "output_norm.weight", "output.weight"]):
        if "norm" in name:
            weights[name] = np.ones((1, row), np.float32)
            continue
        values = random.standard_normal((3, row), np.float32) * np.float32(10.0 ** (index % 6 - 4))
        values[0, :32], values[1, :32] = 0, values[1, 0]
        weights[name], importances[name] = values, random.random(row, np.float32)
    return weights, importances


def digests(row: int, mix: str, *, weighed: bool) -> dict[str, str]:
    """What `DIGESTS` has, of what is written here."""
    weights, importances = fixed(row)
    shapes = {name: (row,) if "norm" in name else values.shape for name, values in weights.items()}
    found: dict[str, Any] = {}
    for name, dtype in dtypes_of(MixedModel("llama", 8, 8, 2, shapes), MIXES[mix], importance=weighed).items():
        written = encode_blocks(weights[name], dtype, importances.get(name) if weighed else None)
        found.setdefault(dtype.name, hashlib.sha256()).update(written.tobytes())
    return {name: digest.hexdigest() for name, digest in found.items()}


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize("row", [512, 96, 80])
def test_bytes_are_those_of_llama_cpp(row: int) -> None:
    expected = DIGESTS[str(row)]
    found = {key: digests(row, key.split()[0], weighed=key.endswith("importances")) for key in expected}
    assert found == expected
    assert {mix.split()[0] for mix in found} == set(MIXES)


@pytest.mark.usefixtures("without_ggml")
@pytest.mark.parametrize("row", [96, 80])
def test_bytes_are_those_of_llama_cpp_without_ggml_too(row: int) -> None:
    for mix in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        assert digests(row, mix, weighed=False) == DIGESTS[str(row)][mix], mix


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
@pytest.mark.parametrize(("first", "offset"), [(0.0, 0x0000), (-0.0, 0x8000)])
def test_of_two_zeros_the_first_is_the_offset(name: str, first: float, offset: int, without_ggml: None) -> None:
    """As in ggml, which looks for what is less; numpy's own minimum may be either."""
    values = np.array([[1.0, first, *[-first] * 30]], np.float32)  # one block
    assert encode_blocks(values, DTYPES[name])[2:4].view("<u2").tolist() == [offset]


NASTY = st.floats(-32_000, 32_000, width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 6e-8, 1.0, -1.0, 0.5])


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize("name", EVERYWHERE)
@given(values=arrays.arrays(np.float32, (2, 64), elements=NASTY))
def test_numpy_writes_the_bytes_that_ggml_does(name: str, values: Values) -> None:
    values[:, ::32] = 1e-30  # where a whole block is smaller, its inverse is infinite, and both round what is NaN
    with_it = encode_blocks(values, DTYPES[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ggml_module, "PACKAGE", "a_package_that_is_not_there")
        ggml.cache_clear()
        without_it = encode_blocks(values, DTYPES[name])
    ggml.cache_clear()
    assert np.array_equal(without_it, with_it)


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize("name", BLOCKS)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 5))
def test_rows_may_be_written_in_any_pieces(name: str, seed: int, cut: int) -> None:
    values = np.random.default_rng(seed).standard_normal((5, 256), np.float32)
    pieces = [encode_blocks(part, DTYPES[name]).tobytes() for part in (values[:cut], values[cut:])]
    assert b"".join(pieces) == encode_blocks(values, DTYPES[name]).tobytes()


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize("name", BLOCKS)
@given(seed=st.integers(0, 1000))
def test_ggml_decodes_as_the_gguf_package_does(name: str, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((3, 512), np.float32)
    raw = encode_blocks(values, DTYPES[name])
    found = decode_into(raw, DTYPES[name], room := np.empty(values.size, np.float32))
    assert found.base is room
    assert np.array_equal(found.view(np.uint32), decode(raw, DTYPES[name]).view(np.uint32))
    assert np.array_equal(decode_into(raw, DTYPES[name], room[:7]), found), "too little room is not written over"


def test_any_order_in_memory_gives_the_same_bytes() -> None:
    values = np.random.default_rng(0).standard_normal((64, 96), np.float32)
    written = encode_blocks(values, DTYPES["Q8_0"], room=(room := np.zeros(10_000, np.uint8)))
    assert written.base is room
    assert written.size == DTYPES["Q8_0"].size_bytes(values.shape)
    assert np.array_equal(encode_blocks(np.asfortranarray(values), DTYPES["Q8_0"]), written)
    assert np.array_equal(encode_blocks(values.astype(np.float64), DTYPES["Q8_0"]), written)


@pytest.mark.parametrize("name", [*FLOATS, "Q4_0", "Q8_0"])
def test_no_rows_are_no_bytes(name: str) -> None:
    assert encode_blocks(np.empty((0, 64), np.float32), DTYPES[name]).size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    values = np.zeros((3, 64), np.float32)
    values[2, 5] = value
    with pytest.raises(ModelError, match=rf"tensor x has values that are not finite, such as {value}"):
        encode_blocks(values, DTYPES[name], name="tensor x")


@pytest.mark.parametrize(("name", "value"), [("F16", 70_000), ("BF16", 3.4e38), ("Q8_0", 1e7), ("Q4_0", -1e6)])
def test_what_is_too_large_for_a_scale_is_refused(name: str, value: float) -> None:
    values = np.full((1, 64), value, np.float32)
    with pytest.raises(ModelError, match=f"as large as .*, which {name} does not hold"):
        encode_blocks(values, DTYPES[name])


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize("name", BLOCKS)
def test_what_ggml_would_write_zeros_for_is_refused(name: str) -> None:
    random = np.random.default_rng(1).standard_normal((1, 256), np.float32)
    with pytest.raises(ModelError, match="does not hold"):
        encode_blocks(random * np.float32(1e30), DTYPES[name])
    written = encode_blocks(random * np.float32(15_000), DTYPES[name])
    assert np.abs(decode(written, DTYPES[name])).max() > _SAFE


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="have 80 values, which blocks of Q8_0 do not divide"):
        encode_blocks(np.zeros((2, 80), np.float32), DTYPES["Q8_0"])


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.full(256, np.nan), "values that are not finite"),
        (np.full(256, np.inf), "values that are not finite"),
        (np.full(256, 1e30), "beyond all measure"),
        (np.full(256, -1.0), "below zero"),
        (np.zeros(256), "nothing but zeros"),
        (np.ones(512), r"the shape \[512\], not \[256\]"),
    ],
)
def test_importances_of_no_use_are_refused(importance: Values, message: str) -> None:
    with pytest.raises(ModelError, match=f"the importance matrix has .*{message}.* for tensor x"):
        encode_blocks(np.ones((1, 256), np.float32), DTYPES["Q4_K"], importance, name="tensor x")


@pytest.mark.usefixtures("without_ggml")
def test_without_ggml_the_extra_is_named() -> None:
    values = np.ones((1, 256), np.float32)
    with pytest.raises(UsageError, match="writing Q4_K needs ggml's own routine") as error:
        encode_blocks(values, DTYPES["Q4_K"])
    assert "pip install 'entrenar[xllamacpp]'" in str(error.value.hint)
    with pytest.raises(UsageError, match="writing Q4_0 with an importance matrix needs ggml"):
        encode_blocks(values, DTYPES["Q4_0"], values[0])
    assert encode_blocks(values, DTYPES["Q8_0"], values[0]).size, "importances are nothing to Q8_0"
    with pytest.raises(UsageError, match="weights cannot be quantised to Q8_K"):
        encode_blocks(values, DTYPES["Q8_K"])


@pytest.mark.usefixtures("without_ggml")
def test_without_ggml_the_head_of_the_oldest_mixes_is_q8_0() -> None:
    model = MixedModel("llama", 1, 4, 4, {"token_embd.weight": (8, 256), "blk.0.attn_v.weight": (8, 256)})
    chosen = writable_here(dtypes_of(model, MIXES["q4_0"]), MIXES["q4_0"])
    assert {name: dtype.name for name, dtype in chosen.items()} == {
        "token_embd.weight": "Q8_0",
        "blk.0.attn_v.weight": "Q4_0",
    }
    for mix in ("q6_k", "q4_k_m", "iq4_xs"):
        with pytest.raises(UsageError, match=f"{mix} writes .*, which needs ggml"):
            writable_here(dtypes_of(model, MIXES[mix]), MIXES[mix])
    with pytest.raises(UsageError, match="q4_0 writes Q4_0 with an importance matrix, which needs ggml"):
        writable_here(dtypes_of(model, MIXES["q4_0"], importance=True), MIXES["q4_0"], importance=True)


@pytest.mark.real_models
@pytest.mark.usefixtures("with_ggml")
def test_with_ggml_every_mix_can_be_written() -> None:
    model = MixedModel("llama", 1, 4, 4, {"token_embd.weight": (8, 256), "blk.0.attn_v.weight": (8, 256)})
    for mix in MIXES.values():
        chosen = dtypes_of(model, mix, importance=True)
        assert writable_here(chosen, mix, importance=True) == chosen
        for dtype in chosen.values():
            assert encode_blocks(np.ones((8, 256), np.float32), dtype).size == dtype.size_bytes((8, 256))
