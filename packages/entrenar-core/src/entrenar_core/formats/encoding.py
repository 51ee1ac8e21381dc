"""Numbers to the bytes of a dtype: the floats that weights are cast to, rounded to nearest, ties to even."""

from typing import TYPE_CHECKING

from entrenar_core.formats.dtypes import Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CASTS = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights can be cast to."""


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
