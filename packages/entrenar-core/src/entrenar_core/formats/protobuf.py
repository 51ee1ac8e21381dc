"""Protobuf messages in a file, walked field by field: what is only passed over is not read, and no length is believed.

Source: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from entrenar_core.errors import ModelError
from entrenar_core.formats.sources import WINDOW_BYTES, Source

if TYPE_CHECKING:
    from numpy import uint64
    from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_MAX_VARINT_BYTES = 10
_MAX_NAME_BYTES = 4096
_BLOCK_BYTES = 1_000_000

Fail = Callable[[str], ModelError]


class Field(NamedTuple):
    """A field of a message: its number and kind, where in the file its value lies, and of a varint the value."""

    number: int
    kind: int
    start: int
    end: int
    value: int = 0


class Messages:
    """The messages in a source, and what their fields hold. What is wrong is raised as the error that `fail` makes."""

    def __init__(self, source: Source, fail: Fail) -> None:
        self.source, self.fail = source, fail
        self._window, self._start, self._safe_end = b"", 0, 0

    def fields(self, message: Field | None = None) -> Iterator[Field]:
        """The fields of the message in a field; without one, of that which the whole file is."""
        if message is not None and message.kind != BYTES:
            raise self.fail("a number where a message should be")
        place, end = (0, self.source.size_bytes) if message is None else (message.start, message.end)
        while place < end:
            key, place = self._varint(place, end)
            number, kind = key >> 3, key & 7
            if not number:
                raise self.fail("a field without a number")
            if kind == VARINT:
                value, after = self._varint(place, end)
                yield Field(number, kind, place, after, value)
            else:
                size, place = self._size(kind, place, end)
                after = place + size
                if after > end:
                    there = end - place
                    raise self.fail(
                        f"{size:,} bytes are announced, and {there:,} are there: {size - there:,} bytes are missing"
                    )
                yield Field(number, kind, place, after)
            place = after

    def _size(self, kind: int, place: int, end: int) -> tuple[int, int]:
        if kind == BYTES:
            return self._varint(place, end)
        if kind not in _FIXED_BYTES:
            raise self.fail(f"a field of the unknown kind {kind}")
        return _FIXED_BYTES[kind], place

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """The varint at a place of a message that ends at `end`, and where it ends itself."""
        if not self._start <= place < self._safe_end:
            self._look_at(place)
        value, at = 0, place - self._start
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            if place >= end:
                raise self.fail("it ends inside a number")
            byte = self._window[at]
            place, at = place + 1, at + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, place
        raise self.fail("a number of more than 64 bits")

    def _look_at(self, place: int) -> None:
        """Takes a window of the file; up to `_safe_end`, no varint that starts in it leads out of it."""
        size = min(WINDOW_BYTES, self.source.size_bytes - place)
        self._window, self._start = self.source.read(place, size), place
        at_end = place + size == self.source.size_bytes
        self._safe_end = place + size - (0 if at_end else _MAX_VARINT_BYTES - 1)

    def bytes(self, field: Field) -> bytes:
        """The bytes of a field as they lie in the file; their number is the caller's to bound."""
        start, end = field.start - self._start, field.end - self._start
        if start >= 0 and end <= len(self._window):
            return self._window[start:end]
        return self.source.read(field.start, field.end - field.start)

    def text(self, field: Field, limit_bytes: int = _MAX_NAME_BYTES) -> str:
        """Text of at most this many bytes."""
        if field.kind != BYTES:
            raise self.fail("a number where a text should be")
        if field.end - field.start > limit_bytes:
            raise self.fail(f"a name of {field.end - field.start:,} bytes")
        return self.bytes(field).decode(errors="replace")

    def number(self, field: Field) -> int:
        """A signed number of 64 bits."""
        if field.kind != VARINT:
            raise self.fail("a message where a number should be")
        return signed(field.value)

    def numbers(self, field: Field, limit: int) -> list[int]:
        """A repeated number, which comes one by one or packed; at most `limit` of them."""
        if field.kind == VARINT:
            return [signed(field.value)]
        if field.kind != BYTES or field.end - field.start > limit * _MAX_VARINT_BYTES:
            raise self.fail(f"more than {limit} numbers where a few should be")
        found, place = [], field.start
        while place < field.end:
            value, place = self._varint(place, field.end)
            found.append(signed(value))
        return found


def signed(value: int) -> int:
    """What 64 bits mean in two's complement, as protobuf's int32 and int64 are written."""
    return value - (1 << 64) if value >> 63 else value


def varints(packed: bytes | bytearray, fail: Fail) -> "Iterator[NDArray[uint64]]":
    """The numbers in a packed run of varints, in blocks.

    Raises:
        ModelError: it ends inside a number, or one has more than 64 bits.
    """
    import numpy

    run = numpy.frombuffer(packed, dtype=numpy.uint8)
    begin = 0
    while begin < len(run):
        block = run[begin : begin + _BLOCK_BYTES]
        ends = numpy.flatnonzero(block < 0x80)
        if not len(ends):
            raise fail("it ends inside a number")
        starts = numpy.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        last = block[starts[lengths == _MAX_VARINT_BYTES] + _MAX_VARINT_BYTES - 1]
        if lengths.max() > _MAX_VARINT_BYTES or (last > 1).any():
            raise fail("a number of more than 64 bits")
        values = numpy.zeros(len(ends), dtype=numpy.uint64)
        for index in range(lengths.max()):
            longer = lengths > index
            bits = (block[starts[longer] + index] & 0x7F).astype(numpy.uint64)
            values[longer] |= bits << numpy.uint64(7 * index)
        yield values
        begin += int(ends[-1]) + 1
