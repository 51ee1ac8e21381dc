"""Numbers to the bytes of a dtype: the floats that weights are cast to, rounded to nearest, ties to even.

`encode` knows every cast. `encode_singles` is the way of most weights, from 32 bits to 16: in parts that stay in a
cache, without memory of its own, and with the error, which is there already when a value is rounded.
"""

from typing import TYPE_CHECKING, NamedTuple

from entrenar_core.errors import UsageError
from entrenar_core.formats.dtypes import Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CASTS = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights can be cast to."""
# What people write for a dtype, beside the names in headers.
_CALLED = {
    **{name.lower(): name for name in CASTS},
    "fp64": "F64",
    "fp32": "F32",
    "fp16": "F16",
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
}
PART_VALUES = 1 << 16
"""How many values `encode_singles` takes."""
_VANISHING = 1e-25  # of squares in 32 bits, what is left of those of the errors is not exact
_TOO_LARGE_FOR_HALF = 65_520.0  # from here on, 65,536 is as near as 65,504


class Rounded(NamedTuple):
    """Sums of squares of values and of what rounding changed, and the largest change."""

    square: float
    square_error: float
    largest_error: float


def dtype_called(name: str) -> str:
    """A dtype of `CASTS` by any of its customary names.

    Raises:
        UsageError: weights are not cast to it.
    """
    try:
        return _CALLED[name.lower()]
    except KeyError as error:
        raise UsageError(f"weights are not cast to {name}", "the dtypes are bf16, fp16, fp32 and fp64") from error


def encode(values: "NDArray[np.floating]", dtype: Dtype) -> "NDArray[np.uint8]":
    """The bytes of values, little-endian, rounded once. What is too large becomes infinite; NaN stays NaN.

    Raises:
        KeyError: the dtype is none of `CASTS`.
    """
    import numpy as np

    if dtype.name == "BF16":
        return _bfloat16(np.ascontiguousarray(values)).view(np.uint8)
    with np.errstate(over="ignore"):
        cast = values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype.name])
    return np.ascontiguousarray(cast).view(np.uint8).reshape(-1)


def _bfloat16(values: "NDArray[np.floating]") -> "NDArray[np.uint16]":
    """The upper half of a float32, after adding what rounds the lower half away."""
    import numpy as np

    if values.dtype == np.float64:
        values = _rounded_to_odd(values.astype(np.float64, copy=False))
    bits = values.astype("<f4", copy=False).reshape(-1).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    not_a_number = (bits & 0x7FFFFFFF) > 0x7F800000
    if not_a_number.any():  # rounding may carry the bits of a NaN away
        rounded[not_a_number] = ((bits[not_a_number] >> 16) | 0x40).astype("<u2")
    return rounded


def _rounded_to_odd(values: "NDArray[np.float64]") -> "NDArray[np.float32]":
    """As float32, and never exactly between two bfloat16 where the float64 was not: rounding twice is once then.

    Source: S. Boldo, G. Melquiond, Emulation of FMA and correctly rounded sums, 2008, on rounding to odd.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32).copy()
    inexact = np.isfinite(values) & np.isfinite(near) & (near.astype(np.float64) != values)
    away = inexact & (np.abs(near.astype(np.float64)) > np.abs(values))
    bits[away] -= 1  # towards zero
    bits[inexact] |= 1
    return bits.view(np.float32)


def encode_singles(
    values: "NDArray[np.float32]", dtype: Dtype, out: "NDArray[np.uint16]", spare: "NDArray[np.uint32]"
) -> Rounded | None:
    """Rounds to BF16 or F16 as `encode` does.

    None, with `out` spoilt, where something is or becomes infinite or NaN, or where squares vanish.

    Args:
        values: up to `PART_VALUES`.
        out: room for as many.
        spare: of shape (3, PART_VALUES), written over.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        found = (_to_bfloat16 if dtype.name == "BF16" else _to_half)(values, out, *spare[:, : len(values)])
    return found if found is not None and found.square > _VANISHING and np.isfinite(found).all() else None


def _to_bfloat16(
    values: "NDArray[np.float32]", out: "NDArray[np.uint16]", rounded: "NDArray[np.uint32]", *_: "NDArray[np.uint32]"
) -> Rounded:
    """The upper half, after adding what rounds the lower half away."""
    import numpy as np

    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, 16, out=out, casting="unsafe")
    np.bitwise_and(rounded, 0xFFFF0000, out=rounded)
    error = rounded.view(np.float32)
    np.subtract(error, values, out=error)
    return _rounded(values, error)


def _to_half(
    values: "NDArray[np.float32]",
    out: "NDArray[np.uint16]",
    work: "NDArray[np.uint32]",
    large: "NDArray[np.uint32]",
    total: "NDArray[np.uint32]",
) -> Rounded | None:
    """Adds a power of two so large that ten bits of a value are left: they are the last ones of the sum.

    The power is 2^15 times that of the value, which is taken four times, and at least that of the smallest normal half.
    Source: M. Dukhan, https://github.com/Maratyszcza/FP16.
    """
    import numpy as np

    bits, size, error = values.view(np.uint32), work.view(np.float32), large.view(np.float32)
    np.bitwise_and(bits, 0x7FFFFFFF, out=work)
    if not float(size.max(initial=0.0)) < _TOO_LARGE_FOR_HALF:
        return None
    np.multiply(size, np.float32(4), out=size)
    np.bitwise_and(bits, 0x7F800000, out=large)
    np.maximum(large, 113 << 23, out=large)
    np.add(large, 15 << 23, out=large)
    np.add(large.view(np.float32), size, out=total.view(np.float32))
    np.subtract(total.view(np.float32), large.view(np.float32), out=error)
    np.subtract(error, size, out=error)
    np.multiply(error, np.float32(0.25), out=error)
    found = _rounded(values, error)
    np.right_shift(total, 13, out=work)
    np.bitwise_and(work, 0x7C00, out=work)
    np.bitwise_and(total, 0x0FFF, out=total)
    np.add(work, total, out=work)
    np.right_shift(bits, 16, out=total)
    np.bitwise_and(total, 0x8000, out=total)
    np.bitwise_or(work, total, out=out, casting="unsafe")
    return found


def _rounded(values: "NDArray[np.float32]", error: "NDArray[np.float32]") -> Rounded:
    """The error of a value that is rounded is exact in its own precision."""
    from entrenar_core.measuring.sums import dot

    largest = max(float(error.max(initial=0.0)), -float(error.min(initial=0.0)))
    return Rounded(dot(values, values), dot(error, error), largest)
