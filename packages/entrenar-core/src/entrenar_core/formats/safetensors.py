"""Reads the header of a safetensors file, and judges it as strictly as its format is written down.

The header comes from strangers: its length is held against the file before it is read, every shape against the range
that it names, and the ranges against each other. What the safetensors library merely lets pass is noted as an oddity.

Source: the format's description in https://github.com/huggingface/safetensors, and version 0.8.0 of its library.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import MAX_LETTERS, odd_name, shown
from entrenar_core.formats.sources import Source, text_bytes
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.units import size as humane

MAX_HEADER_BYTES = 100_000_000
FIRST_READ_BYTES = 100_000
"""What is asked for at once: almost every header is shorter."""
METADATA = "__metadata__"
DTYPE_NAMES = tuple(name for name in DTYPES if DTYPES[name].kind != "quantised" and name not in ("I4", "U4", "C128"))
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**63 - 1
_HUGE_DIMENSION = 2**40
_MAX_REPEATED = 100
_MAX_DIMENSIONS = 64  # as many as torch has


def read(source: Source) -> Header:
    """Reads and checks the header.

    Raises:
        ModelError: the file is no sound safetensors, or is cut short; then the error says how much is missing.
    """
    return _Reader(source).header()


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.oddities: list[str] = []

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound safetensors file: {what}", "fetch or export it again")

    def header(self) -> Header:
        text, start = self.text()
        entries = self.entries(text)
        metadata = self.metadata(entries.pop(METADATA, {}))
        tensors = tuple(self.tensor(name, entry, start) for name, entry in entries.items())
        self.contiguous(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.end)), start)
        if not tensors:
            self.oddities.append("it holds no tensors")
        if start % 8:
            self.oddities.append(f"its data starts at byte {start:,}, which is no multiple of 8")
        return Header(WeightFormat.SAFETENSORS, tensors, metadata, start, tuple(self.oddities))

    def text(self) -> tuple[str, int]:
        """The header's text, and where the data starts."""
        size = self.source.size_bytes
        if size < 8:
            raise self.fail(f"it has {size} bytes")
        first = self.source.read(0, min(FIRST_READ_BYTES, size))
        (length,) = struct.unpack("<Q", first[:8])
        if length > MAX_HEADER_BYTES:
            raise self.fail(f"a header of {humane(length)}, where {humane(MAX_HEADER_BYTES)} are allowed")
        if 8 + length > size:
            missing = 8 + length - size
            raise self.fail(f"{missing:,} bytes ({humane(missing)}) of its header are missing; it may be cut short")
        raw = bytearray(first[8 : 8 + length])
        raw += text_bytes(self.source, len(first), length - len(raw), self.fail)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail("its header is not UTF-8") from error
        if not text.startswith("{"):
            self.oddities.append("its header does not start with `{`")
        return text, 8 + length

    def entries(self, text: str) -> dict[str, Any]:
        repeated: list[tuple[str, bool]] = []

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key, value in pairs:
                if key in found:
                    repeated.append((key, found[key] == value))
                    if len(repeated) > _MAX_REPEATED:
                        raise ValueError(f"more than {_MAX_REPEATED} keys come twice")
                found[key] = value
            return found

        try:
            entries = json.loads(text, object_pairs_hook=unique, parse_constant=self.constant)
        except (ValueError, RecursionError) as error:
            raise self.fail(f"its header is not JSON: {error}") from error
        if not isinstance(entries, dict):
            raise self.fail("its header is no JSON object")
        for key, same in repeated:
            if not same:
                raise self.fail(f"{shown(key)} comes twice and says two things")
            self.oddities.append(f"{shown(key)} comes twice")
        return entries

    def constant(self, name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def metadata(self, found: Any) -> Mapping[str, str]:
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise self.fail(f"{METADATA} is no object of strings")
        return found

    def tensor(self, name: str, entry: Any, start: int) -> StoredTensor:
        if len(name) > MAX_LETTERS:
            raise self.fail(f"a name of {len(name):,} characters")
        called = shown(name)
        if not isinstance(entry, dict) or _FIELDS - entry.keys():
            raise self.fail(f"tensor {called} has no dtype, shape and data_offsets")
        if extra := entry.keys() - _FIELDS:
            self.oddities.append(f"tensor {called} has the extra field {shown(min(extra))}")
        if (why := odd_name(name)) is not None:
            self.oddities.append(f"tensor {called} {why}")
        if entry["dtype"] not in DTYPE_NAMES:  # a tuple: what stands there need not be hashable
            raise self.fail(f"tensor {called} has the unknown dtype {str(entry['dtype'])[:60]}")
        dtype = DTYPES[entry["dtype"]]
        shape = self.sizes(called, "shape", entry["shape"])
        offsets = self.sizes(called, "data_offsets", entry["data_offsets"])
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self.fail(f"tensor {called} has the data_offsets {list(offsets)}, which is no range")
        return self.sized(StoredTensor(name, dtype, shape, "", start + offsets[0], offsets[1] - offsets[0]))

    def sized(self, tensor: StoredTensor) -> StoredTensor:
        """The tensor, if its shape takes as many bytes as it has."""
        called, dtype, shape, given = shown(tensor.name), tensor.dtype, tensor.shape, tensor.size_bytes
        expected = dtype.size_bytes(shape)
        if expected != given:
            raise self.fail(
                f"tensor {called} of shape {list(shape)} and dtype {dtype} takes "
                f"{'no whole bytes' if expected is None else f'{expected:,} bytes'}, and has {given:,}"
            )
        if not given and any(length > _HUGE_DIMENSION for length in shape):
            self.oddities.append(f"tensor {called} is empty, and has the shape {list(shape)}")
        if given and tensor.offset % min(dtype.block_bytes, 8):
            self.oddities.append(f"tensor {called} does not start at a multiple of the size of a {dtype}")
        return tensor

    def sizes(self, name: str, field: str, found: Any) -> tuple[int, ...]:
        if not isinstance(found, list) or not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in found):
            raise self.fail(f"the {field} of tensor {name} is no list of sizes")
        if len(found) > _MAX_DIMENSIONS:
            raise self.fail(
                f"the {field} of tensor {name} has {len(found):,} numbers, and {_MAX_DIMENSIONS} are allowed"
            )
        return tuple(found)

    def contiguous(self, tensors: Sequence[StoredTensor], start: int) -> None:
        """Data follows the header, without holes, up to the end of the file."""
        end = start
        for before, tensor in zip((None, *tensors), tensors, strict=False):
            if tensor.offset < end:
                raise self.fail(f"tensors {shown(before.name) if before else ''} and {shown(tensor.name)} overlap")
            if tensor.offset > end:
                raise self.fail(f"a hole of {tensor.offset - end:,} bytes before tensor {shown(tensor.name)}")
            end = tensor.end
        if end > self.source.size_bytes:
            missing = end - self.source.size_bytes
            raise self.fail(
                f"{missing:,} bytes ({humane(missing)} of {humane(end)}) are missing at its end; it was cut short"
            )
        if end < self.source.size_bytes:
            raise self.fail(f"{self.source.size_bytes - end:,} bytes follow its last tensor")
