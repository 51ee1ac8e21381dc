"""Casting weights: every float is rounded as torch rounds it, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.encoding import CASTS, encode

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def bits(values: np.ndarray, dtype: str) -> bytes:  # type: ignore[type-arg]
    return encode(values, DTYPES[dtype]).tobytes()


@pytest.mark.parametrize("dtype", CASTS)
@given(values=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False)))
def test_single_precision_is_rounded_as_torch_does(dtype: str, values: "np.ndarray") -> None:  # type: ignore[type-arg]
    expected = torch.from_numpy(values.copy()).to(TORCH[dtype])
    assert bits(values, dtype) == expected.view(torch.uint8).numpy().tobytes()


@given(values=st.lists(st.floats(min_value=-3e38, max_value=3e38, allow_nan=False), min_size=1, max_size=20))
def test_double_precision_is_rounded_once(values: list[float]) -> None:
    """To the nearest bfloat16; by way of float32 some would be rounded twice."""
    codes = np.frombuffer(bits(np.array(values), "BF16"), np.uint16).astype(np.int64)
    for value, code in zip(values, codes.tolist(), strict=True):
        near, *others = (_bfloat16(around) for around in (code, code - 1, code + 1))
        assert all(
            abs(near - value) <= abs(other - value) for other in others if np.isfinite(other) and other * near >= 0
        )


def _bfloat16(code: int) -> float:
    return float(np.array([(code & 0xFFFF) << 16], np.uint32).view(np.float32)[0])


def test_what_lies_just_above_the_middle_of_two_is_rounded_up_once() -> None:
    value = 1 + 2**-8 + 2**-40  # its float32 is the middle itself, which would be rounded to the even 1
    assert np.frombuffer(bits(np.array([value]), "BF16"), np.uint16).tolist() == [0x3F81]


@pytest.mark.parametrize("dtype", CASTS)
def test_what_is_not_finite_stays_so(dtype: str) -> None:
    data = np.array([np.nan, np.inf, -np.inf], np.float32)
    found = torch.frombuffer(bytearray(bits(data, dtype)), dtype=TORCH[dtype])
    assert torch.isnan(found[0])
    assert found[1:].tolist() == [float("inf"), -float("inf")]


def test_a_nan_of_low_bits_alone_stays_one() -> None:
    low = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert all((code & 0x7FFF) > 0x7F80 for code in np.frombuffer(bits(low, "BF16"), np.uint16).tolist())


def test_a_half_that_is_too_large_becomes_infinite() -> None:
    assert np.isinf(np.frombuffer(bits(np.array([70_000.0], np.float32), "F16"), np.float16)).all()
