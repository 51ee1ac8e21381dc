"""Reads the readable form of APR: one JSON object with the metadata and the values of every tensor.

    {"version":"1.0","metadata":{…},"tensors":{"bias":{"shape":[1],"dtype":"f32","data":[0.125]}}}

The values of a tensor are one flat list, row by row, as `apr_json_values` has them. The tensors are walked one at a
time, so that besides the text and their bytes only the numbers of one are in memory.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.apr import MAX_DIMENSIONS
from entrenar_core.formats.apr_json_values import DTYPE_NAMES, bytes_of
from entrenar_core.formats.apr_metadata import MetadataDecoder, oddities_of
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import MAX_LETTERS, odd_name, shown
from entrenar_core.formats.sources import Source, text_bytes
from entrenar_core.formats.tensors import Header, StoredTensor

VERSION = "1.0"
MAX_BYTES = 1_000_000_000
DTYPES_BY_SPELLING = {name.lower(): DTYPES[name] for name in DTYPE_NAMES}
_MAX_TENSORS = 1_000_000
_MAX_DIMENSION = 2**40
_BLANK = re.compile(r"[ \t\n\r]*")
_FIELDS = {"shape", "dtype", "data"}


def read(source: Source) -> Header:
    """Reads the whole file, since it is one text; every tensor is `inline`.

    Raises:
        ModelError: the file is no sound APR in JSON, or is larger than 1 GB.
    """
    return _Reader(source).header()


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = ""
        self.rest = MetadataDecoder()
        self.top: dict[str, Any] = {}
        self.tensors: list[StoredTensor] = []
        self.inline: dict[str, bytes] = {}
        self.oddities: list[str] = []

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound APR file in JSON: {what}", "fetch or export it again")

    def header(self) -> Header:
        size = self.source.size_bytes
        if size > MAX_BYTES:
            raise ModelError(
                f"{self.source.name} has {size:,} bytes, and JSON is read up to {MAX_BYTES:,}",
                "the binary form of APR holds models of every size",
            )
        try:
            self.text = text_bytes(self.source, 0, size, self.fail).decode()
            end = self.blank(self.members(0, self.part))
            if end != len(self.text):
                raise self.fail(f"something follows its end at character {end:,}")
        except UnicodeDecodeError as error:
            raise self.fail("it is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise self.fail(f"it is not JSON, or cut short: {error}") from error
        metadata = self.metadata()
        oddities = (*self.oddities, *self.rest.oddities, *oddities_of(metadata))
        return Header(WeightFormat.APR_JSON, tuple(self.tensors), metadata, size, oddities, self.inline)

    def members(self, at: int, take: Callable[[str, int], int]) -> int:
        """Walks an object; `take` is given each key with the place of its value, and gives the place after it."""
        at = self.blank(self.sign("{", at))
        if self.text[at : at + 1] == "}":
            return at + 1
        seen: set[str] = set()
        while True:
            key, at = self.value(self.rest, at)
            if not isinstance(key, str):
                raise ValueError("a key that is no text")
            if key in seen:
                raise self.fail(f"{shown(key)} comes twice")
            seen.add(key)
            at = self.blank(take(key, self.blank(self.sign(":", at))))
            if self.text[at : at + 1] == "}":
                return at + 1
            at = self.blank(self.sign(",", at))

    def sign(self, expected: str, at: int) -> int:
        at = self.blank(at)
        if self.text[at : at + 1] != expected:
            raise ValueError(f"`{expected}` is missing at character {at:,}")
        return at + 1

    def blank(self, at: int) -> int:
        found = _BLANK.match(self.text, at)
        assert found, "a pattern that nothing fits too"
        return found.end()

    def value(self, decoder: MetadataDecoder, at: int) -> tuple[Any, int]:
        return decoder.raw_decode(self.text, at)

    def part(self, key: str, at: int) -> int:
        if key == "tensors":
            if self.text[at : at + 1] != "{":
                raise self.fail("its tensors are no object")
            return self.members(at, self.tensor)
        self.top[key], end = self.value(self.rest, at)
        return end

    def metadata(self) -> dict[str, Any]:
        version = self.top.pop("version", None)
        if version != VERSION:
            raise self.fail(f"version {str(version)[:20]}; {VERSION} is read")
        metadata = self.top.pop("metadata", {})
        if not isinstance(metadata, dict):
            raise self.fail("its metadata is no object")
        self.oddities += [f"it has the extra part {shown(key)}" for key in sorted(self.top)[:10]]
        if not self.tensors:
            self.oddities.append("it holds no tensors")
        return metadata

    def tensor(self, name: str, at: int) -> int:
        decoder = MetadataDecoder()
        entry, end = self.value(decoder, at)
        if len(name) > MAX_LETTERS:
            raise self.fail(f"a name of {len(name):,} characters")
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise self.fail("a name that is no Unicode text")
        called = shown(name)
        if not isinstance(entry, dict) or _FIELDS - entry.keys():
            raise self.fail(f"tensor {called} has no shape, dtype and data")
        if decoder.oddities:
            raise self.fail(f"tensor {called} has a field that comes twice")
        if extra := entry.keys() - _FIELDS:
            self.oddities.append(f"tensor {called} has the extra field {shown(min(extra))}")
        if (why := odd_name(name)) is not None:
            self.oddities.append(f"tensor {called} {why}")
        if len(self.tensors) >= _MAX_TENSORS:
            raise self.fail(f"more than {_MAX_TENSORS:,} tensors")
        self.keep(name, entry["dtype"], self.shape(called, entry["shape"]), entry["data"])
        return end

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
        if not isinstance(data, list):
            raise self.fail(f"the data of tensor {called} is no list")
        if len(data) != math.prod(shape):
            raise self.fail(
                f"tensor {called} of shape {list(shape)} takes {math.prod(shape):,} values in one list, "
                f"and has {len(data):,}"
            )
        try:
            self.inline[name] = bytes_of(data, dtype)
        except ValueError as error:
            raise self.fail(f"tensor {called} of dtype {spelling} has {error}") from error
        self.tensors.append(StoredTensor(name, dtype, shape, "", 0, len(self.inline[name]), inline=True))
