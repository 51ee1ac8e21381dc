"""Every dtype decoded as the library does that defines it: torch, ml_dtypes, onnx, gguf; APR as it is described."""

import struct
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from entrenar_core.errors import ModelError
from entrenar_core.formats.decoding import decodable, decode, numbers_per_value
from entrenar_core.formats.dtypes import DTYPES, GGML_BLOCKS, Dtype

EVERY_BYTE = np.arange(256, dtype=np.uint8)
EVERY_PAIR = np.arange(65_536, dtype="<u2").view(np.uint8)
DECODED = [name for name in DTYPES if decodable(DTYPES[name])]
BLOCKS = [name for name, *_ in GGML_BLOCKS.values() if name in DECODED]
TORCH_FLOATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
PLAIN = ("F64", "F32", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


def same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(found, expected, strict=True)
    kept = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found)[kept], np.signbit(expected)[kept])


def random_bytes(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("name", TORCH_FLOATS)
def test_every_code_of_a_float_is_what_torch_says(name: str) -> None:
    raw = EVERY_PAIR if DTYPES[name].block_bytes == 2 else EVERY_BYTE
    same(decode(raw, DTYPES[name]), torch.from_numpy(raw).view(TORCH_FLOATS[name]).float().numpy())


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("F4", ml_dtypes.float4_e2m1fn),
        ("F6_E2M3", ml_dtypes.float6_e2m3fn),
        ("F6_E3M2", ml_dtypes.float6_e3m2fn),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_every_code_of_a_small_float_is_what_ml_dtypes_says(name: str, reference: type) -> None:
    dtype = DTYPES[name]
    codes = np.arange(1 << int(dtype.bits), dtype=np.uint8)
    packed = sum(int(code) << int(dtype.bits) * place for place, code in enumerate(codes))  # from the lowest bits up
    raw = np.frombuffer(packed.to_bytes(int(len(codes) * dtype.bits) // 8, "little"), np.uint8)
    same(decode(raw, dtype), codes.view(reference).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("F4", onnx.TensorProto.FLOAT4E2M1, [0.5, -6.0, 1.5, 4.0]),
        ("I4", onnx.TensorProto.INT4, [-8, 7, -1, 3]),
        ("U4", onnx.TensorProto.UINT4, [15, 0, 8, 1]),
    ],
)
def test_nibbles_lie_as_onnx_packs_them(name: str, kind: int, values: list[float]) -> None:
    tensor = onnx.helper.make_tensor("t", kind, [len(values)], values)
    raw = np.frombuffer(numpy_helper.from_array(numpy_helper.to_array(tensor), "t").raw_data, np.uint8)
    assert len(raw) == 2
    same(decode(raw, DTYPES[name]), np.array(values, np.float32))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_are_exact(name: str) -> None:
    dtype = DTYPES[name]
    code = {"F64": "d", "F32": "f", "64": "q", "32": "i", "16": "h", "8": "b"}
    form = code.get(name) or code[name[1:]]
    form = form.upper() if name.startswith("U") else form
    raw = random_bytes(dtype.block_bytes * 100)
    raw[: dtype.block_bytes] = 255  # the largest unsigned, −1, NaN
    expected = struct.unpack(f"<100{form}", raw.tobytes())
    found = decode(raw, dtype)
    assert [repr(value) for value in found.tolist()] == [repr(type(found.tolist()[0])(value)) for value in expected]


def test_a_complex_number_is_its_two_parts() -> None:
    values = np.array([1 + 2j, -3.5 - 0j])
    for name, kind in (("C64", "<c8"), ("C128", "<c16")):
        found = decode(np.frombuffer(values.astype(kind).tobytes(), np.uint8), DTYPES[name])
        assert found.tolist() == [1, 2, -3.5, -0.0]
        assert numbers_per_value(DTYPES[name]) == 2
    assert numbers_per_value(DTYPES["F32"]) == 1


def test_what_is_not_zero_is_true() -> None:
    assert decode(np.array([0, 1, 2, 255], np.uint8), DTYPES["BOOL"]).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_decoded_as_gguf_does(name: str) -> None:
    dtype = DTYPES[name]
    kind = gguf.GGMLQuantizationType[name]
    for blocks in (1, 5, 700):  # less than what is decoded at once, and more, with a rest
        raw = random_bytes(blocks * dtype.block_bytes, blocks)
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(raw.reshape(blocks, -1), kind).reshape(-1)
        same(decode(raw, dtype), expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "MXFP4"])
def test_quantised_weights_come_back_in_their_order(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal(96).astype(np.float32)
    raw = gguf.quants.quantize(weights.reshape(1, -1), gguf.GGMLQuantizationType[name]).reshape(-1)
    assert np.corrcoef(decode(raw, DTYPES[name]), weights)[0, 1] > 0.98


@given(st.lists(st.integers(-8, 7), min_size=64, max_size=64), st.floats(2**-10, 100, width=16))
def test_apr_q4_has_a_scale_and_nibbles_in_turn(levels: list[int], scale: float) -> None:
    raw = b""
    for block in (levels[:32], levels[32:]):
        raw += struct.pack("<e", scale)
        raw += bytes(low + 8 | high + 8 << 4 for low, high in zip(block[::2], block[1::2], strict=True))
    found = decode(np.frombuffer(raw, np.uint8), DTYPES["APR_Q4"])
    assert found.tolist() == [np.float32(level) * np.float32(scale) for level in levels]


def test_apr_q8_has_one_scale_in_front() -> None:
    levels, scale = [-128, -1, 0, 5, 127], np.float32(0.1)
    raw = np.frombuffer(struct.pack("<f5b", scale, *levels), np.uint8)
    expected = np.array(levels, np.float32) * scale
    same(decode(raw, DTYPES["APR_Q8"]), expected)
    same(decode(raw[4:], DTYPES["APR_Q8"], scale=float(scale)), expected)
    assert not np.isfinite(decode(raw[4:], DTYPES["APR_Q8"], scale=float("inf"))).any()


@given(name=st.sampled_from(DECODED), first=st.integers(0, 40), second=st.integers(0, 300), seed=st.integers(0, 99))
def test_blocks_one_by_one_are_the_blocks_together(name: str, first: int, second: int, seed: int) -> None:
    dtype = DTYPES[name]
    raw = random_bytes((first + second) * dtype.block_bytes, seed)
    cut = first * dtype.block_bytes
    parts = [decode(part, dtype, scale=0.5 if dtype.head_bytes else None) for part in (raw[:cut], raw[cut:])]
    whole = decode(raw, dtype, scale=0.5 if dtype.head_bytes else None)
    assert len(whole) == (first + second) * dtype.block * numbers_per_value(dtype)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", ["F16", "BF16", "F32", "Q4_0"])
def test_room_changes_nothing(name: str) -> None:
    raw = random_bytes(DTYPES[name].block_bytes * 8)
    expected = decode(raw, DTYPES[name])
    for size in (4, 8, 1000):
        np.testing.assert_array_equal(decode(raw, DTYPES[name], room=np.full(size, 7, np.float32)), expected)


def test_room_is_used() -> None:
    room = np.zeros(8, np.float32)
    assert np.shares_memory(decode(random_bytes(8), DTYPES["BF16"], room=room), room)


@pytest.mark.parametrize("dtype", [DTYPES["Q8_K"], DTYPES["Q8_1"], Dtype("ggml type 99", "quantised", 1, 0)])
def test_an_unknown_type_is_refused(dtype: Dtype) -> None:
    assert not decodable(dtype)
    with pytest.raises(ModelError, match=f"type {dtype}"):
        decode(random_bytes(292 * 40), dtype)
