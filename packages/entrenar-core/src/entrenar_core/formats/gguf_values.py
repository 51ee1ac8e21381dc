"""The values that the metadata of a GGUF holds, each with its type: a program looks for a number of one type only.

Source: ggml's docs/gguf.md.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from entrenar_core.errors import ModelError


class Kind(IntEnum):
    """The number of a type in a file."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    TEXT = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


_CODES = {
    Kind.U8: "B", Kind.I8: "b", Kind.U16: "H", Kind.I16: "h", Kind.U32: "I", Kind.I32: "i", Kind.F32: "f",
    Kind.BOOL: "?", Kind.U64: "Q", Kind.I64: "q", Kind.F64: "d",
}  # fmt: skip


_MOST, _SHOWN = 3.4e38, 40


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it is to be written; of an array, `items` is the type of each."""

    kind: Kind
    value: Any
    items: Kind | None = None


def u32(value: int) -> Value:
    """A count, a size or the id of a token.

    Raises:
        ModelError: a GGUF holds no such number.
    """
    if type(value) is int and 0 <= value < 1 << 32:
        return Value(Kind.U32, value)
    raise ModelError(f"its settings have {_short(value)} where a count is meant", "correct config.json")


def f32(value: float) -> Value:
    """A number.

    Raises:
        ModelError: a GGUF holds no such number.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST:
        return Value(Kind.F32, float(value))
    raise ModelError(f"its settings have {_short(value)} where a finite number is meant", "correct config.json")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def flag(value: bool) -> Value:
    """Yes or no."""
    return Value(Kind.BOOL, value)


def text(value: str) -> Value:
    """A text, written in UTF-8."""
    return Value(Kind.TEXT, value)


def texts(values: Iterable[str]) -> Value:
    """A list of texts, such as the tokens of a vocabulary."""
    return Value(Kind.ARRAY, tuple(values), Kind.TEXT)


def f32s(values: Iterable[float]) -> Value:
    """A list of numbers, such as the scores of tokens."""
    return Value(Kind.ARRAY, tuple(values), Kind.F32)


def i32s(values: Iterable[int]) -> Value:
    """A list of whole numbers, such as the types of tokens."""
    return Value(Kind.ARRAY, tuple(values), Kind.I32)


def bools(values: Iterable[bool]) -> Value:
    """A list of yes and no, such as which layers slide."""
    return Value(Kind.ARRAY, tuple(values), Kind.BOOL)


def encoded(value: Value) -> bytes:
    """The bytes of a value, with its type in front."""
    if value.kind is not Kind.ARRAY:
        return value.kind.to_bytes(4, "little") + _plain(value.kind, value.value)
    assert value.items is not None
    head = Kind.ARRAY.to_bytes(4, "little") + value.items.to_bytes(4, "little")
    return head + len(value.value).to_bytes(8, "little") + _listed(value.items, value.value)


def encoded_text(value: str) -> bytes:
    """A text with its length in front; halves of a surrogate pair, which no UTF-8 has, become question marks."""
    data = value.encode("utf-8", errors="replace")
    return len(data).to_bytes(8, "little") + data


def _plain(kind: Kind, value: Any) -> bytes:
    return encoded_text(value) if kind is Kind.TEXT else struct.pack(f"<{_CODES[kind]}", value)


def _listed(kind: Kind, values: Sequence[Any]) -> bytes:
    if kind is Kind.TEXT:
        return b"".join(map(encoded_text, values))
    return struct.pack(f"<{len(values)}{_CODES[kind]}", *values)
