"""The values of a tensor as JSON has them, and back, to the bit.

Floats are written as the exact numbers that they are, whatever their dtype. JSON has no infinity and no NaN, so those
are texts: "Infinity", "-Infinity", "NaN", and "NaN(0x7fa00001)" for a NaN of other bits than computing gives.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entrenar_core.formats.dtypes import Dtype

if TYPE_CHECKING:
    import numpy

DTYPE_NAMES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""What JSON holds exactly."""

_INFINITIES = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_OTHER_NAN = re.compile(r"NaN\(0x([0-9a-f]{1,16})\)")
_KINDS = {list: "a list", dict: "an object", type(None): "null", str: "a text", bool: "true or false", float: "a float"}


def values_of(data: bytes | memoryview, dtype: Dtype) -> list[float | int | bool | str]:
    """Little-endian bytes as what JSON has.

    Raises:
        ValueError: a byte of a boolean is neither 0 nor 1.
    """
    import numpy

    bits = numpy.frombuffer(data, f"<u{dtype.block_bytes}")
    if dtype.kind == "boolean":
        if bits.size and bits.max() > 1:
            raise ValueError("a boolean that is neither 0 nor 1")
        return list(bits.astype(bool).tolist())
    if dtype.kind == "integer":
        return list(bits.view(f"<{dtype.name[0].lower()}{dtype.block_bytes}").tolist())
    wide = (bits.astype("<u4") << 16).view("<f4") if dtype.name == "BF16" else bits.view(f"<f{dtype.block_bytes}")
    found: list[float | int | bool | str] = wide.tolist()
    infinity = _INFINITIES[dtype.name]
    for place in numpy.flatnonzero(bits & infinity == infinity).tolist():
        found[place] = _text(int(bits[place]), dtype)
    return found


def bytes_of(values: Sequence[Any], dtype: Dtype) -> bytes:
    """What JSON has as little-endian bytes; a number that the dtype does not have becomes the nearest that it has.

    Raises:
        ValueError: there is something else than numbers that the dtype can hold, or than true and false.
    """
    kinds = set(map(type, values))
    if dtype.kind == "boolean":
        _only(kinds, {bool})
        return bytes(values)
    if dtype.kind == "integer":
        _only(kinds, {int})
        return _integers(values, dtype)
    _only(kinds, {int, float, str})
    texts = {place: _bits(value, dtype) for place, value in enumerate(values) if type(value) is str}
    numbers = [0.0 if place in texts else value for place, value in enumerate(values)] if texts else values
    bits = _floats(numbers, dtype)
    for place, pattern in texts.items():
        bits[place] = pattern
    return bits.tobytes()


def _only(kinds: set[type], allowed: set[type]) -> None:
    for kind in kinds - allowed:
        raise ValueError(f"{_KINDS.get(kind, 'a number')} among its values")


def _integers(values: Sequence[int], dtype: Dtype) -> bytes:
    import numpy

    kind = f"<{dtype.name[0].lower()}{dtype.block_bytes}"
    limits = numpy.iinfo(kind)
    for value in (min(values, default=0), max(values, default=0)):
        if not limits.min <= value <= limits.max:
            raise ValueError(f"a value beyond what {dtype.name.lower()} holds")
    return numpy.array(values, kind).tobytes()


def _floats(values: Sequence[float], dtype: Dtype) -> "numpy.ndarray[Any, Any]":
    """Their bits. BF16 is rounded to by way of single precision."""
    import numpy

    beyond = ValueError(f"a value beyond what {dtype.name.lower()} holds")
    try:
        wide = numpy.array(values, "<f8")
    except OverflowError as error:
        raise beyond from error
    size = 4 if dtype.name == "BF16" else dtype.block_bytes
    with numpy.errstate(over="ignore", under="ignore"):
        bits = wide.astype(f"<f{size}").view(f"<u{size}")
    if dtype.name == "BF16":
        bits = ((bits.astype("<u8") + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    infinity = _INFINITIES[dtype.name]
    if (bits & infinity == infinity).any():
        raise beyond
    return bits


def _sign(dtype: Dtype) -> int:
    return 1 << 8 * dtype.block_bytes - 1


def _quiet(infinity: int) -> int:
    """The NaN that computing gives: infinity, and the highest bit below its exponent."""
    return infinity | (infinity & -infinity) >> 1


def _text(bits: int, dtype: Dtype) -> str:
    infinity = _INFINITIES[dtype.name]
    named = {infinity: "Infinity", infinity | _sign(dtype): "-Infinity", _quiet(infinity): "NaN"}
    return named.get(bits) or f"NaN({bits:#x})"


def _bits(text: str, dtype: Dtype) -> int:
    infinity = _INFINITIES[dtype.name]
    named = {"Infinity": infinity, "-Infinity": infinity | _sign(dtype), "NaN": _quiet(infinity)}
    if text in named:
        return named[text]
    found = _OTHER_NAN.fullmatch(text)
    bits = int(found[1], 16) if found else 0
    is_nan = bits & infinity == infinity and bits & (infinity & -infinity) - 1
    if not is_nan or bits >= 2 * _sign(dtype):
        raise ValueError(f"the text {text[:40]!r} among its values")
    return bits
