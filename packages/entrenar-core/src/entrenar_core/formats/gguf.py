"""Reads the header of a GGUF file: metadata and the table of tensors, not their data.

A header comes from strangers, so nothing in it is believed: every length is held against the bytes that are left
before anything is read or allocated, and whatever does not add up is a ModelError.

Source: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES, GGML_BLOCKS, Dtype
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import odd_name, shown
from entrenar_core.formats.sources import Cursor, FileSource, Source
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.units import size as humane

KEPT_ITEMS = 1024
"""Arrays up to this long are read; longer ones (token lists) only when asked for."""

_MAX_DEPTH, _MAX_DIMENSIONS, _MAX_NAME_BYTES = 4, 4, 65_535
# Of all together: large vocabularies have 300,000 tokens and twice as many merges, and a text may be a tokenizer.json.
_MAX_STEPS, _STEPS_OF_AN_ARRAY, _MAX_KEPT_BYTES = 2_000_000, 20, 40_000_000
_MIN_PAIR_BYTES, _MIN_TENSOR_BYTES = 13, 24
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}

_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
TENSOR_TYPES: Mapping[int, Dtype] = {
    **{code: DTYPES[name] for code, name in _PLAIN.items()},
    **{code: DTYPES[name] for code, (name, _, _) in GGML_BLOCKS.items()},
}
"""What ggml's numbers mean."""


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array in the metadata that was measured and not read."""

    kind: str
    length: int


_Entry = tuple[str, tuple[int, ...], int, int]
GgufValue = int | float | bool | str | tuple["GgufValue", ...] | SkippedArray


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself. `kinds` has the number of the type of each value, and of an array's items."""

    version: int
    metadata: Mapping[str, GgufValue]
    tensors: tuple[StoredTensor, ...]
    header_bytes: int
    oddities: tuple[str, ...] = ()
    kinds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        return sum(tensor.values for tensor in self.tensors)


def read(source: Source) -> Header:
    """The header as every format gives it: see `GgufHeader`, which is its `details`.

    Raises:
        ModelError: as `read_header`.
    """
    found = _Reader(source, arrays=False).header()
    return Header(WeightFormat.GGUF, found.tensors, found.metadata, found.header_bytes, found.oddities, details=found)


def read_header(path: Path, *, arrays: bool = False) -> GgufHeader:
    """Reads the header; with `arrays` also its long arrays, such as the vocabulary.

    Takes time and memory in proportion to the header, at most some tens of bytes per byte of the file.

    Raises:
        NotFoundError: there is no such file.
        ModelError: the file cannot be read, is no GGUF of version 2 or 3, or is malformed anywhere in its header.
    """
    with FileSource(path) as source:
        return _Reader(source, arrays=arrays).header()


class _Reader:
    def __init__(self, source: Source, *, arrays: bool) -> None:
        self.source, self.arrays = source, arrays
        self.cursor = Cursor(source, self.fail)
        self.take, self.skip, self.require = self.cursor.take, self.cursor.skip, self.cursor.require
        self.number = self.cursor.number
        self.names: set[str] = set()
        self.steps_left, self.bytes_left = _MAX_STEPS, _MAX_KEPT_BYTES
        self.oddities: list[str] = []
        self.items: int | None = None  # the type of the items of the last array

    def fail(self, what: str) -> ModelError:
        return ModelError(
            f"{self.source.name} is not a sound GGUF file: {what}", "fetch or convert it again; it may be cut short"
        )

    def name(self) -> str:
        size = self.number("Q")
        if size > _MAX_NAME_BYTES:
            raise self.fail(f"a name of {size:,} bytes")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name that is not UTF-8") from error

    def kept(self, size: int) -> bytes:
        """Bytes of the metadata, of which there may be so many."""
        self.require(size)
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise self.fail(f"a value of {size:,} bytes: its metadata has more than {humane(_MAX_KEPT_BYTES)}")
        return self.take(size)

    def spend(self, steps: int) -> None:
        """Counts what is gone through one by one, which zeros that take no room on a disk could be without end."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise self.fail(
                f"its arrays have more than {_MAX_STEPS:,} texts, or {_MAX_STEPS // _STEPS_OF_AN_ARRAY:,} arrays"
            )

    def header(self) -> GgufHeader:
        if self.source.size_bytes < 24 or self.take(4) != b"GGUF":
            raise ModelError(f"{self.source.name} is not a GGUF file", "GGUF files start with the letters GGUF")
        version = self.number("I")
        if version not in (2, 3):
            raise self.fail(f"version {version}; 2 and 3 are read, little-endian")
        tensors, pairs = self.number("Q"), self.number("Q")
        self.require(tensors * _MIN_TENSOR_BYTES + pairs * _MIN_PAIR_BYTES)
        metadata: dict[str, GgufValue] = {}
        kinds: dict[str, tuple[int, int | None]] = {}
        for _ in range(pairs):
            key = self.name()
            if key in metadata:
                raise self.fail(f"the key {shown(key)} comes twice")
            kind = self.number("I")
            metadata[key] = self.value(kind)
            kinds[key] = (kind, self.items if kind == _ARRAY else None)
        table = [self.tensor() for _ in range(tensors)]
        alignment = self.alignment(metadata)
        start = -(-self.cursor.position // alignment) * alignment
        placed = self.placed(table, start, alignment)
        return GgufHeader(version, metadata, placed, start, tuple(self.oddities), kinds)

    def value(self, kind: int, depth: int = 0) -> GgufValue:
        if kind in _SCALARS:
            code = _SCALARS[kind][1]
            value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
            return value
        if kind == _STRING:
            return self.kept(self.number("Q")).decode(errors="replace")
        if kind == _ARRAY:
            return self.array(depth + 1)
        raise self.fail(f"a value of the unknown type {kind}")

    def array(self, depth: int) -> GgufValue:
        if depth > _MAX_DEPTH:
            raise self.fail(f"arrays nested more than {_MAX_DEPTH} deep")
        kind, length = self.number("I"), self.number("Q")
        if depth == 1:
            self.items = kind
        if kind in _SCALARS:
            name, code = _SCALARS[kind]
            size = length * struct.calcsize("<" + code)
            self.require(size)
            if self.arrays or length <= KEPT_ITEMS:
                return struct.unpack(f"<{length}{code}", self.kept(size))
            self.skip(size)
            return SkippedArray(name, length)
        if kind not in (_STRING, _ARRAY):
            raise self.fail(f"an array of the unknown type {kind}")
        self.require(length * (8 if kind == _STRING else 12))
        self.spend(length if kind == _STRING else length * _STEPS_OF_AN_ARRAY)
        if self.arrays or length <= KEPT_ITEMS:
            return tuple(self.value(kind, depth) for _ in range(length))
        if kind == _STRING:
            self.cursor.skip_texts(length)
            return SkippedArray("string", length)
        for _ in range(length):
            self.array(depth + 1)
        return SkippedArray("array", length)

    def tensor(self) -> _Entry:
        name = self.name()
        if name in self.names:
            raise self.fail(f"the tensor {shown(name)} comes twice")
        self.names.add(name)
        dimensions = self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise self.fail(f"tensor {shown(name)} has {dimensions} dimensions, and {_MAX_DIMENSIONS} are allowed")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def alignment(self, metadata: Mapping[str, GgufValue]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {shown(repr(alignment))}, not a power of two")
        return alignment

    def placed(self, table: list[_Entry], start: int, alignment: int) -> tuple[StoredTensor, ...]:
        """The tensors with their place in the file, which each must lie inside."""
        places = sorted({offset for *_, offset in table})
        found: list[StoredTensor] = []
        for name, shape, code, offset in table:
            called = shown(name)
            if (why := odd_name(name)) is not None:
                self.oddities.append(f"tensor {called} {why}")
            if offset % alignment:
                raise self.fail(f"the data of tensor {called} does not start at a multiple of {alignment}")
            dtype = TENSOR_TYPES.get(code)
            if dtype is None:
                after = places[bisect_right(places, offset) :]
                size = (after[0] if after else max(self.source.size_bytes - start, offset)) - offset
                dtype = Dtype(f"ggml type {code}", "quantised", 1, 0)
                self.oddities.append(f"tensor {called} is of the unknown type {code}; its size is that of its place")
            else:
                size = self.size_of(called, dtype, shape)
            found.append(StoredTensor(name, dtype, shape, "", start + offset, size))
        if found:
            self.inside(max(found, key=lambda tensor: tensor.end))
        return tuple(found)

    def size_of(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> int:
        size = dtype.size_bytes(shape)
        if size is None:
            row = shape[-1] if shape else 1
            raise self.fail(f"tensor {name}: rows of {row:,} weights cannot be cut into {dtype} blocks")
        return size

    def inside(self, last: StoredTensor) -> None:
        if last.end > self.source.size_bytes:
            missing = last.end - self.source.size_bytes
            raise self.fail(
                f"the data of tensor {shown(last.name)} does not lie inside the file: {missing:,} bytes "
                f"({humane(missing)} of {humane(last.end)}) are missing at its end"
            )
