"""Reads the header of an APR file, version 2: its metadata and the index of its tensors, not their data.

A header comes from strangers: its checksum is tested, every offset and count is held against the file before anything
is read or allocated, and the ranges of the tensors against each other. What the format's own programs let pass although
it is not as they write it is noted as an oddity. The checksum of the whole file takes all of its bytes: `check_sum`.

Source: crates/apr-format in https://github.com/paiml/aprender.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.apr_metadata import MetadataReader, oddities_of
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.json_texts import JsonError
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import odd_name
from entrenar_core.formats.sources import WINDOW_BYTES, Cursor, Source, text_bytes
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.units import size as humane

MAGIC, VERSION = b"APR\0", (2, 0)
ALIGNMENT, HEADER_BYTES, SUM_BYTES = 64, 64, 4
LAYOUT = struct.Struct("<4s2BHIQIQQI20s")
"""Magic, version, flags, number of tensors, metadata (offset, size), offsets of index and data, checksum, zeros."""
QUANTISED, VOCABULARY, ROW_MAJOR = 0x20, 0x200, 0x400
CODES: Mapping[str, int] = {"F32": 0, "F16": 1, "BF16": 30, "Q4_K": 12, "Q6_K": 14, "APR_Q4": 128, "APR_Q8": 129}
"""The numbers of dtypes; below 128 they are ggml's."""
MAX_NAME_BYTES, MAX_DIMENSIONS = 256, 8

_SHARDED = 0x10
_REFUSED = {0x1: "compressed by LZ4", 0x2: "compressed by zstd", 0x4: "encrypted", 0x800: "laid out column by column"}
_KNOWN_FLAGS = 0x0FFF
_DTYPES = {code: DTYPES[name] for name, code in CODES.items()}
_AMBIGUOUS = {
    2: "BF16 or Q4_0", 3: "F64 or Q4_1", 6: "I8 or Q5_0", 7: "U8 or Q5_1", 8: "APR_Q4 or Q8_0", 9: "APR_Q8 or Q8_1",
}  # fmt: skip
_MIN_ENTRY_BYTES = 20
_MAX_METADATA_BYTES, _MAX_INDEX_BYTES, _MAX_TENSORS = 64_000_000, 100_000_000, 200_000
_HUGE_DIMENSION = 2**40
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class AprDetails:
    """The flags in the header, and the checksum of the whole file as it stands at its end: CRC-32 of all before."""

    flags: int
    checksum: int


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def read(source: Source) -> Header:
    """Reads and checks the header; its `details` are `AprDetails`.

    Raises:
        ModelError: the file is no sound APR of version 2, or is cut short; then the error says how much is missing.
    """
    return _Reader(source).header()


def check_sum(source: Source) -> bool:
    """Whether the whole file is as it was written: reads all of it and compares with the checksum at its end.

    Raises:
        ModelError: it cannot be read.
    """
    end = source.size_bytes - SUM_BYTES
    if end < 0:
        return False
    found = 0
    for start in range(0, end, _READ_AT_ONCE):
        found = zlib.crc32(source.read(start, min(_READ_AT_ONCE, end - start)), found)
    return found.to_bytes(SUM_BYTES, "little") == source.read(end, SUM_BYTES)


def header_sum(header: bytes) -> int:
    """The checksum of a header, which leaves out the four bytes where it stands."""
    return zlib.crc32(header[44:], zlib.crc32(header[:40]))


def aligned(size: int) -> int:
    """The size with padding."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.cursor = Cursor(source, self.fail)
        self.take, self.number = self.cursor.take, self.cursor.number
        self.oddities: list[str] = []

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound APR file: {what}", "fetch or export it again")

    def header(self) -> Header:
        if self.source.size_bytes < HEADER_BYTES:
            raise self.fail(f"it has {self.source.size_bytes} bytes, and its header alone takes {HEADER_BYTES}")
        raw = self.take(HEADER_BYTES)
        magic, major, minor, flags, count, at, size, index_at, data_at, stored, reserved = LAYOUT.unpack(raw)
        if magic != MAGIC:
            raise ModelError(
                f"{self.source.name} is not an APR file", "APR files start with the letters APR and a zero"
            )
        if (major, minor) != VERSION:
            raise self.fail(f"version {major}.{minor}; 2.0 is read")
        if header_sum(raw) != stored:
            raise self.fail("the checksum of its header does not match; it was damaged")
        if any(reserved):
            self.oddities.append("the reserved bytes of its header are not zero")
        self.flags(flags)
        self.sections(at, size, index_at, data_at)
        metadata = self.metadata(at, size, index_at)
        tensors = self.tensors(count, data_at)
        end = self.placed(tensors, data_at)
        checksum = int.from_bytes(self.source.read(end, SUM_BYTES), "little")
        placed = tuple(
            StoredTensor(entry.name, entry.dtype, entry.shape, "", data_at + entry.offset, entry.size)
            for entry in tensors
        )
        details = AprDetails(flags, checksum)
        return Header(WeightFormat.APR, placed, metadata, data_at, tuple(self.oddities), details=details)

    def flags(self, flags: int) -> None:
        for flag, what in _REFUSED.items():
            if flags & flag:
                raise self.fail(f"it is {what}, which is not read")
        if not flags & ROW_MAJOR:
            raise self.fail("it does not say that its tensors are laid out row by row")
        if flags & _SHARDED:
            self.oddities.append("it says that it is one of several files of a model")
        if flags & ~_KNOWN_FLAGS:
            self.oddities.append(f"it has flags of unknown meaning, {flags & ~_KNOWN_FLAGS:#x}")

    def sections(self, at: int, size: int, index_at: int, data_at: int) -> None:
        """Header, metadata, index and data follow each other, each from a multiple of 64 on."""
        for name, place, before in (
            ("metadata", at, HEADER_BYTES), ("index", index_at, at + size), ("data", data_at, index_at),
        ):  # fmt: skip
            if place % ALIGNMENT:
                raise self.fail(f"its {name} starts at byte {place:,}, which is no multiple of {ALIGNMENT}")
            if place < before:
                raise self.fail(f"its {name} starts at byte {place:,}, before what comes first ends")
        if size > _MAX_METADATA_BYTES or data_at - index_at > _MAX_INDEX_BYTES:
            raise self.fail(f"metadata of {humane(size)} and an index of {humane(data_at - index_at)}: too large")
        self.inside(data_at + SUM_BYTES, "at least ")

    def inside(self, end: int, how: str = "") -> None:
        if end > self.source.size_bytes:
            missing = end - self.source.size_bytes
            what = f"{missing:,} bytes ({humane(missing)} of {humane(end)})"
            raise self.fail(f"{how}{what} are missing at its end; it was cut short")

    def padding(self, what: str, end: int) -> None:
        """Passes over zeros up to where the next part starts."""
        gap = end - self.cursor.position
        if gap >= ALIGNMENT:
            self.oddities.append(f"a hole of {gap:,} bytes {what}")
            self.cursor.skip(gap)
        elif any(self.take(gap)):
            self.oddities.append(f"the padding {what} is not zero")

    def metadata(self, at: int, size: int, index_at: int) -> Mapping[str, Any]:
        self.padding("before its metadata", at)
        raw: bytes | bytearray
        if size <= WINDOW_BYTES:
            raw = self.take(size)
        else:
            raw = text_bytes(self.source, at, size, self.fail)
            self.cursor.skip(size)
        self.padding("after its metadata", index_at)
        reader = MetadataReader()
        try:
            found = reader.parse(raw)
        except JsonError as error:
            raise self.fail(f"its metadata {error}") from error
        if not isinstance(found, dict):
            raise self.fail("its metadata is no JSON object")
        self.oddities += [*reader.oddities, *oddities_of(found)]
        return found

    def tensors(self, count: int, data_at: int) -> list[_Entry]:
        self.cursor.end, self.cursor.fail = data_at, lambda _: self.fail("its index ends before its tensors do")
        if count * _MIN_ENTRY_BYTES > self.cursor.left:
            raise self.fail(f"{count:,} tensors in an index of {self.cursor.left:,} bytes")
        if count > _MAX_TENSORS:
            raise self.fail(f"{count:,} tensors, where {_MAX_TENSORS:,} are read")
        found: list[_Entry] = []
        before = b""
        for place in range(count):
            name, entry = self.entry()
            if place and name <= before:
                raise self.fail(
                    f"tensor {entry.name} comes twice" if name == before else
                    f"its index is not sorted: {entry.name} comes after {found[-1].name}"
                )  # fmt: skip
            found.append(entry)
            before = name
        self.padding("after its index", data_at)
        return found

    def entry(self) -> tuple[bytes, _Entry]:
        length = self.number("H")
        if length > MAX_NAME_BYTES:
            raise self.fail(f"a name of {length:,} bytes, where {MAX_NAME_BYTES} are allowed")
        raw = self.take(length)
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name that is not UTF-8") from error
        if (why := odd_name(name)) is not None:
            self.oddities.append(f"tensor {name} {why}")
        dtype, dimensions = self.dtype(name, self.number("B")), self.number("B")
        if dimensions > MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions, and {MAX_DIMENSIONS} are allowed")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        entry = _Entry(name, dtype, shape, self.number("Q"), self.number("Q"))
        self.fits(entry)
        return raw, entry

    def dtype(self, name: str, code: int) -> Dtype:
        if (dtype := _DTYPES.get(code)) is not None:
            return dtype
        meanings = f", which is {_AMBIGUOUS[code]} by the program that wrote it" if code in _AMBIGUOUS else ""
        raise self.fail(f"tensor {name} has the dtype number {code}{meanings}: 0, 1, 12, 14, 30, 128 and 129 are read")

    def fits(self, entry: _Entry) -> None:
        is_empty = not math.prod(entry.shape)
        expected = entry.dtype.size_bytes(entry.shape)
        if expected != entry.size:
            raise self.fail(
                f"tensor {entry.name} of shape {list(entry.shape)} and dtype {entry.dtype} takes "
                f"{'no whole blocks' if expected is None else f'{expected:,} bytes'}, and has {entry.size:,}"
            )
        if entry.offset % ALIGNMENT:
            raise self.fail(f"the data of tensor {entry.name} does not start at a multiple of {ALIGNMENT}")
        if is_empty and any(length > _HUGE_DIMENSION for length in entry.shape):
            self.oddities.append(f"tensor {entry.name} is empty, and has the shape {list(entry.shape)}")

    def placed(self, tensors: Sequence[_Entry], data_at: int) -> int:
        """Where the data ends, and the checksum starts. Data need not lie in the order of the index."""
        end, before = 0, ""
        for entry in sorted(tensors, key=lambda entry: (entry.offset, entry.size)):
            if entry.size and entry.offset < end:
                raise self.fail(f"tensors {before} and {entry.name} overlap")
            if entry.offset > aligned(end):
                self.oddities.append(f"a hole of {entry.offset - aligned(end):,} bytes before tensor {entry.name}")
            end, before = max(end, entry.offset + entry.size), entry.name
        if not tensors:
            self.oddities.append("it holds no tensors")
        self.inside(data_at + aligned(end) + SUM_BYTES)
        last = self.source.size_bytes - SUM_BYTES
        if (beyond := last - data_at - aligned(end)) > 0:
            self.oddities.append(f"{beyond:,} bytes follow its last tensor")
        return last
