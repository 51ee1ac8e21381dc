"""Reads the readable form of APR: one JSON object with the metadata and the values of every tensor.

    {"version":"1.0","metadata":{…},"tensors":{"bias":{"shape":[1],"dtype":"f32","data":[0.125]}}}

The values of a tensor are one flat list, row by row, as `apr_json_values` has them. The text is walked once, and where
each list lies is noted; its numbers are read when they are asked for. Of a small file all are read at once, so that it
is found sound or not when it is opened.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.apr import MAX_DIMENSIONS
from entrenar_core.formats.apr_json_values import DTYPE_NAMES, bytes_of
from entrenar_core.formats.apr_metadata import MetadataReader, oddities_of
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.json_scanning import ListPlace, Scan
from entrenar_core.formats.json_texts import JsonError, is_half, parse
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import MAX_LETTERS, odd_name, shown
from entrenar_core.formats.sources import Source
from entrenar_core.formats.tensors import Header, StoredTensor

VERSION = "1.0"
MAX_BYTES = 1_000_000_000
SMALL_BYTES = 4_000_000
"""Of a file that is no larger all values are read when it is opened."""
DTYPES_BY_SPELLING = {name.lower(): DTYPES[name] for name in DTYPE_NAMES}
_MAX_TENSORS, _MAX_ODDITIES = 100_000, 1000
_MAX_DIMENSION = 2**40
_FIELDS = {"shape", "dtype", "data"}
_READ_AT_ONCE = 1 << 20


def read(source: Source) -> Header:
    """Walks the whole file, since it is one text; every tensor is `inline`, its values read when they are looked at.

    Raises:
        ModelError: the file is no sound APR in JSON, or is larger than 1 GB.
    """
    return _Reader(source).header()


@dataclass(frozen=True, slots=True)
class _Values(Mapping[str, bytes]):
    """The bytes of tensors, made from their lists one tensor at a time."""

    reader: "_Reader"
    places: Mapping[str, tuple[ListPlace, Dtype]]

    def __getitem__(self, name: str) -> bytes:
        return b"".join(self.reader.values(name, *self.places[name]))

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.scan = Scan(source, self.fail)
        self.rest = MetadataReader()
        self.top: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self.places: dict[str, tuple[ListPlace, Dtype]] = {}
        self.oddities: list[str] = []

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound APR file in JSON: {what}", "fetch or export it again")

    def note(self, oddity: str) -> None:
        if len(self.oddities) < _MAX_ODDITIES:
            self.oddities.append(oddity)

    def header(self) -> Header:
        size = self.source.size_bytes
        if size > MAX_BYTES:
            raise ModelError(
                f"{self.source.name} has {size:,} bytes, and JSON is read up to {MAX_BYTES:,}",
                "the binary form of APR holds models of every size",
            )
        try:
            self.parts()
        except JsonError as error:
            raise self.fail(f"it {error}") from error
        metadata = self.metadata()
        values: Mapping[str, bytes] = _Values(self, self.places)
        if size <= SMALL_BYTES:
            values = dict(values)
        oddities = (*self.oddities, *self.rest.oddities, *oddities_of(metadata))
        return Header(WeightFormat.APR_JSON, tuple(self.tensors.values()), metadata, size, oddities, values)

    def parts(self) -> None:
        seen = set[str]()
        for key in self.once(seen):
            if key != "tensors":
                self.top[key] = self.rest.parse(self.scan.value())
            elif self.scan.next() != b"{":
                raise self.fail("its tensors are no object")
            else:
                for name in self.once(set()):
                    self.tensor(name)
        self.scan.finish()

    def once(self, seen: set[str]) -> Iterator[str]:
        """The keys of the object that comes next, each of which may come once."""
        for key in self.scan.members():
            if key in seen:
                raise self.fail(f"{shown(key)} comes twice")
            seen.add(key)
            yield key

    def metadata(self) -> dict[str, Any]:
        version = self.top.pop("version", None)
        if version != VERSION:
            raise self.fail(f"version {str(version)[:20]}; {VERSION} is read")
        metadata = self.top.pop("metadata", {})
        if not isinstance(metadata, dict):
            raise self.fail("its metadata is no object")
        self.oddities += [f"it has the extra part {shown(key)}" for key in sorted(self.top)[:10]]
        if not self.tensors:
            self.note("it holds no tensors")
        return metadata

    def tensor(self, name: str) -> None:
        if len(name) > MAX_LETTERS:
            raise self.fail(f"a name of {len(name):,} characters")
        if is_half(name):
            raise self.fail("a name that is no Unicode text")
        called = shown(name)
        if self.scan.next() != b"{":
            raise self.fail(f"tensor {called} has no shape, dtype and data")
        found: dict[str, Any] = {}
        for field in self.scan.members():
            if field in found:
                raise self.fail(f"tensor {called} has a field that comes twice")
            is_list = field == "data" and self.scan.next() == b"["
            found[field] = self.scan.pass_list() if is_list else parse(self.scan.value(), constants=False)
        if _FIELDS - found.keys():
            raise self.fail(f"tensor {called} has no shape, dtype and data")
        if extra := found.keys() - _FIELDS:
            self.note(f"tensor {called} has the extra field {shown(min(extra))}")
        if (why := odd_name(name)) is not None:
            self.note(f"tensor {called} {why}")
        if len(self.tensors) >= _MAX_TENSORS:
            raise self.fail(f"more than {_MAX_TENSORS:,} tensors")
        self.keep(name, found["dtype"], self.shape(called, found["shape"]), found["data"])

    def shape(self, name: str, found: Any) -> tuple[int, ...]:
        if not isinstance(found, list) or not all(type(size) is int and 0 <= size <= _MAX_DIMENSION for size in found):
            raise self.fail(f"the shape of tensor {name} is no list of sizes")
        if len(found) > MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {len(found)} dimensions, and {MAX_DIMENSIONS} are allowed")
        return tuple(found)

    def keep(self, name: str, spelling: Any, shape: tuple[int, ...], data: Any) -> None:
        called = shown(name)
        dtype = DTYPES_BY_SPELLING.get(spelling) if isinstance(spelling, str) else None
        if dtype is None:
            raise self.fail(f"tensor {called} has the unknown dtype {str(spelling)[:60]}")
        if not isinstance(data, ListPlace):
            raise self.fail(f"the data of tensor {called} is no list")
        values, size = math.prod(shape), dtype.size_bytes(shape)
        if data.values != values or size is None:
            raise self.fail(
                f"tensor {called} of shape {list(shape)} takes {values:,} values in one list, and has {data.values:,}"
            )
        self.places[name] = data, dtype
        self.tensors[name] = StoredTensor(name, dtype, shape, "", 0, size, inline=True)

    def values(self, name: str, place: ListPlace, dtype: Dtype) -> Iterator[bytes]:
        """The bytes of a tensor, some of its list after some."""
        begin = place.start
        while begin < place.end:
            block = self.source.read(begin, min(_READ_AT_ONCE, place.end - begin))
            cut = len(block) if begin + len(block) == place.end else block.rfind(b",")
            if cut < 0:
                raise self.fail(f"tensor {shown(name)} has a value of more than {_READ_AT_ONCE:,} bytes")
            try:
                yield bytes_of(parse(b"[" + block[:cut] + b"]", constants=False), dtype)
            except JsonError as error:
                raise self.fail(f"it {error}, between bytes {begin:,} and {begin + cut:,}") from error
            except ValueError as error:
                raise self.fail(f"tensor {shown(name)} of dtype {dtype.name.lower()} has {error}") from error
            begin += cut + (begin + cut < place.end)
