"""The tensors in ONNX files: where their values lie, in the file or beside it, or what they are where they are numbers
of varying length.

Source: `TensorProto` in onnx.proto3 of the ONNX project.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from entrenar_core.errors import ModelError
from entrenar_core.formats.choosing import stays_below
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Messages, varints
from entrenar_core.formats.tensors import StoredTensor

TYPES: Mapping[int, tuple[str, str | None]] = {
    1: ("float", "F32"),
    2: ("uint8", "U8"),
    3: ("int8", "I8"),
    4: ("uint16", "U16"),
    5: ("int16", "I16"),
    6: ("int32", "I32"),
    7: ("int64", "I64"),
    8: ("string", None),
    9: ("bool", "BOOL"),
    10: ("float16", "F16"),
    11: ("double", "F64"),
    12: ("uint32", "U32"),
    13: ("uint64", "U64"),
    14: ("complex64", "C64"),
    15: ("complex128", "C128"),
    16: ("bfloat16", "BF16"),
    17: ("float8e4m3fn", "F8_E4M3"),
    18: ("float8e4m3fnuz", "F8_E4M3FNUZ"),
    19: ("float8e5m2", "F8_E5M2"),
    20: ("float8e5m2fnuz", "F8_E5M2FNUZ"),
    21: ("uint4", "U4"),
    22: ("int4", "I4"),
    23: ("float4e2m1", "F4"),
    24: ("float8e8m0", "F8_E8M0"),
    25: ("uint2", None),
    26: ("int2", None),
    27: ("float6e2m3", "F6_E2M3"),
    28: ("float6e3m2", "F6_E3M2"),
}
"""ONNX's numbers of types: its name for each, and ours. What has none of ours is no tensor here."""

MAX_INLINE_BYTES = 32_000_000
"""What values that do not lie in a file as they are may take together. Exporters write weights as they are."""
_MAX_DIMENSIONS = 64
_MAX_BYTES = 2**63 - 1
_EXTERNAL = 1
_RAW, _UNSIGNED = 9, 11
_SIX = 6
# The fields for values of some types only: of what kind a single value is, and the types; None are all others.
_TYPED: Mapping[int, tuple[int, tuple[str, ...] | None]] = {
    4: (FIXED32, ("F32", "C64")),
    5: (VARINT, None),
    7: (VARINT, ("I64",)),
    10: (FIXED64, ("F64", "C128")),
    _UNSIGNED: (VARINT, ("U32", "U64")),
}
_VALUES = frozenset((_RAW, *_TYPED))
_OF_ONE_FIELD = tuple(name for _, names in _TYPED.values() for name in names or ())


@dataclass(slots=True)
class TensorEntry:
    """A tensor as its message tells it. `where` is the graph that it is in: empty for that of the model.

    `values` are where its values lie, by the number of their field; what comes in pieces is put together. `elsewhere`
    has the entries that say where they lie in another file, which only count if it is `external`.
    """

    where: str
    name: str = ""
    shape: tuple[int, ...] = ()
    type: int = 0
    values: dict[int, Field | bytearray] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    external: bool = False
    is_part: bool = False

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether its values are floats of any width."""
        name = TYPES.get(self.type, ("", None))[1]
        return name is not None and DTYPES[name].kind == "float"


def read_tensor(messages: Messages, message: Field, where: str) -> TensorEntry:
    """What a TensorProto says; its values stay where they are.

    Raises:
        ModelError: it is no sound message.
    """
    found = TensorEntry(where)
    for part in messages.fields(message):
        if part.number == 1:
            found.shape += tuple(messages.numbers(part, _MAX_DIMENSIONS))
            if len(found.shape) > _MAX_DIMENSIONS or min(found.shape, default=0) < 0:
                raise messages.fail(f"a tensor of the shape {list(found.shape[:8])}")
        elif part.number in _VALUES:
            _note_values(messages, found, part)
        elif part.number == 13:
            key, text = read_pair(messages, part)
            if key in found.elsewhere:
                raise messages.fail(f"a tensor that lies elsewhere with two of {key[:40]!r}")
            found.elsewhere[key] = text
        else:
            _note(messages, found, part)
    return found


def read_pair(messages: Messages, message: Field) -> tuple[str, str]:
    """What a StringStringEntryProto says: a key, and a text."""
    found = {part.number: messages.text(part) for part in messages.fields(message) if part.number in (1, 2)}
    return found.get(1, ""), found.get(2, "")


def _note(messages: Messages, found: TensorEntry, part: Field) -> None:
    if part.number == 2:
        found.type = messages.number(part)
    elif part.number == 3:
        found.is_part = True
    elif part.number == 8:
        found.name = messages.text(part)
    elif part.number == 14:
        found.external = messages.number(part) == _EXTERNAL


def _note_values(messages: Messages, found: TensorEntry, part: Field) -> None:
    single = _TYPED[part.number][0] if part.number in _TYPED else BYTES
    if part.kind not in (BYTES, single):
        raise messages.fail("values of another kind than their field is for")
    if part.start == part.end:
        return
    before = found.values.get(part.number)
    if before is None and part.kind == BYTES:
        found.values[part.number] = part
    elif part.number == _RAW:
        raise messages.fail("raw values twice in one tensor")
    else:
        pieces = before if isinstance(before, bytearray) else _piece(messages, before)
        pieces += _piece(messages, part)
        if len(pieces) > MAX_INLINE_BYTES:
            raise messages.fail(f"values in pieces of more than {MAX_INLINE_BYTES:,} bytes")
        found.values[part.number] = pieces


def _piece(messages: Messages, part: Field | None) -> bytearray:
    """The bytes of a field, of which there may be further ones."""
    if part is None:
        return bytearray()
    if part.end - part.start > MAX_INLINE_BYTES:
        raise messages.fail(f"a piece of values of {part.end - part.start:,} bytes")
    return bytearray(messages.bytes(part))


@dataclass(frozen=True, slots=True)
class Placing:
    """Finds where the values of an entry lie, which is called `name`."""

    messages: Messages
    entry: TensorEntry
    name: str

    def fail(self, what: str) -> ModelError:
        """The error that the entry is wrong in this way."""
        return self.messages.fail(f"tensor {self.name} {what}")

    def dtype(self) -> Dtype | None:
        """Its dtype; None where its type is none of ours.

        Raises:
            ModelError: there is no such type.
        """
        if self.entry.type not in TYPES:
            raise self.fail(f"has the unknown type {self.entry.type}")
        name = TYPES[self.entry.type][1]
        return None if name is None else DTYPES[name]

    def stored(self, dtype: Dtype) -> tuple[StoredTensor, bytes | None]:
        """The tensor; and its bytes, if they do not lie in a file as they are.

        Raises:
            ModelError: its values are not there, or are not those of its dtype and shape.
        """
        entry = self.entry
        size = -(-entry.size * dtype.block_bytes // dtype.block)  # the last block may have fewer values
        if entry.is_part or size > _MAX_BYTES:
            raise self.fail("is a part of a larger one" if entry.is_part else f"has the shape {list(entry.shape)}")
        if len(entry.values) + entry.external > 1:
            raise self.fail("says its values twice")
        if entry.external:
            file, offset = self._beside(size)
            return StoredTensor(self.name, dtype, entry.shape, file, offset, size), None
        values = self._values(dtype)
        given = values.end - values.start if isinstance(values, Field) else len(values)
        if given != size:
            raise self._missized(dtype, size, given)
        if isinstance(values, Field):
            return StoredTensor(self.name, dtype, entry.shape, "", values.start, size), None
        inline = bytes(values) if values else None
        return StoredTensor(self.name, dtype, entry.shape, "", 0, size, inline=inline is not None), inline

    def _missized(self, dtype: Dtype, size: int, given: int) -> ModelError:
        shape = list(self.entry.shape)
        return self.fail(f"of shape {shape} and dtype {dtype} takes {size:,} bytes, and has {given:,}")

    def _beside(self, size: int) -> tuple[str, int]:
        """The file beside the graph in which it lies, and where in it."""
        said = self.entry.elsewhere
        location = said.get("location", "")
        check_location(self.messages.source.name, location)
        offset, length = said.get("offset") or "0", said.get("length") or str(size)
        for key, text in (("offset", offset), ("length", length)):
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise self.fail(f"has the {key} {text[:40]!r} in {location}")
        if int(length) != size:
            raise self.fail(f"of shape {list(self.entry.shape)} takes {size:,} bytes, and {length} are in {location}")
        return location, int(offset)

    def _values(self, dtype: Dtype) -> Field | bytearray:
        """Where its bytes lie, or what they are."""
        if not self.entry.values:
            return bytearray()
        ((number, values),) = self.entry.values.items()
        if number == _RAW:
            return values
        single, names = _TYPED[number]
        if (dtype.name not in names) if names else (dtype.name in _OF_ONE_FIELD):
            raise self.fail(f"is of the dtype {dtype}, and has values of another")
        return self._numbers(values, dtype, unsigned=number == _UNSIGNED) if single == VARINT else values

    def _numbers(self, values: Field | bytearray, dtype: Dtype, *, unsigned: bool) -> bytearray:
        """Numbers of varying length as bytes. Each is one value; of types of four bits, it is two."""
        import numpy

        bits = _SIX if dtype.block == 4 else 8 * dtype.block_bytes
        lowest = 0 if unsigned or bits == _SIX else -(1 << bits - 1)
        wanted = -(-self.entry.size // 2) if dtype.block == 2 else self.entry.size
        self._require_few(values, wanted * -(-bits // 8))
        found, fixed = 0, bytearray()
        packed = self.messages.bytes(values) if isinstance(values, Field) else values
        for block in varints(packed, self.messages.fail):
            numbers = block.view(numpy.int64)
            if bits < 64 and ((numbers < lowest) | (numbers >= 1 << bits)).any():
                raise self.fail(f"has values that are no {dtype}")
            found += len(block)
            if found > wanted:
                break
            fixed += block.astype(f"<u{-(-bits // 8)}").tobytes()
        if found != wanted:
            more = "more" if found > wanted else f"{found:,}"
            raise self.fail(f"of shape {list(self.entry.shape)} has {wanted:,} numbers, and {more} are there")
        return _six_bits(fixed) if bits == _SIX else fixed

    def _require_few(self, values: Field | bytearray, size: int) -> None:
        """Raises ModelError where numbers of varying length take much, as they are or as `size` bytes of one length."""
        given = values.end - values.start if isinstance(values, Field) else len(values)
        if max(given, size) > MAX_INLINE_BYTES:
            raise self.fail(f"has numbers of varying length in {given:,} bytes, and {MAX_INLINE_BYTES:,} are read")


def check_location(graph: str, location: str) -> None:
    """Whether the place that a graph names for weights is a file in its folder or below it.

    Raises:
        ModelError: it is none.
    """
    if not location or not stays_below(location):
        raise ModelError(
            f"{graph} keeps weights in {location!r}, which is no file of its folder",
            "such a file is broken or hostile: fetch the model from where you trust it",
        )


def _six_bits(codes: bytearray) -> bytearray:
    """Numbers of six bits, a byte each, as four of them in three bytes, the first in the lowest bits."""
    import numpy

    fours = numpy.zeros((-(-len(codes) // 4), 4), dtype="<u4")
    fours.reshape(-1)[: len(codes)] = numpy.frombuffer(codes, dtype=numpy.uint8)
    threes = (fours << numpy.array([0, 6, 12, 18], dtype="<u4")).sum(axis=1, dtype="<u4").view(numpy.uint8)
    return bytearray(threes.reshape(-1, 4)[:, :3].tobytes()[: -(-len(codes) * 3 // 4)])
