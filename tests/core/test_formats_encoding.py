"""Casting weights: every float is rounded as torch rounds it, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.encoding import CASTS, PART_VALUES, encode, encode_singles

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


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@given(
    values=arrays.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-65_519, 65_519, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32),
    )
)
def test_the_fast_way_to_16_bits_gives_the_same_bits(dtype: str, values: "np.ndarray") -> None:  # type: ignore[type-arg]
    values = np.append(values, np.float32(1.5))  # so that squares do not vanish
    out, spare = np.empty(len(values), np.uint16), np.empty((3, PART_VALUES), np.uint32)
    found = encode_singles(values, DTYPES[dtype], out, spare)
    expected = torch.from_numpy(values).to(TORCH[dtype])
    assert out.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    error = expected.double().numpy() - values.astype(np.float64)
    assert found is not None
    assert found.largest_error == np.abs(error).max()
    assert found.square == pytest.approx(float(values.astype(np.float64) @ values.astype(np.float64)), rel=1e-5)
    assert found.square_error == pytest.approx(float(error @ error), rel=1e-5, abs=1e-37)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("F16", 65_520.0), ("F16", np.inf), ("F16", np.nan), ("BF16", np.inf), ("BF16", np.nan), ("BF16", 3.4e38)],
)
def test_the_fast_way_gives_up_on_what_is_or_becomes_infinite(dtype: str, value: float) -> None:
    values = np.array([1.0, -value], np.float32)
    spare = np.empty((3, PART_VALUES), np.uint32)
    assert encode_singles(values, DTYPES[dtype], np.empty(2, np.uint16), spare) is None
