"""Reads the header of a safetensors file, and judges it as strictly as its format is written down.

The header comes from strangers: its length is held against the file before it is read, every shape against the range
that it names, and the ranges against each other. What the safetensors library merely lets pass is noted as an oddity.

Source: the format's description in https://github.com/huggingface/safetensors, and version 0.8.0 of its library.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.json_texts import JsonError, is_half, members, parse
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import MAX_LETTERS, odd_name, shown
from entrenar_core.formats.sources import Source, text_bytes
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.units import size as humane

MAX_HEADER_BYTES = 100_000_000
"""What the format allows."""
MAX_READ_BYTES, MAX_TENSORS = 32_000_000, 250_000
"""What is read of it: no model has as much, and what a file makes a reader spend is bounded by this."""
FIRST_READ_BYTES = 100_000
"""What is asked for at once: almost every header is shorter."""
METADATA = "__metadata__"
DTYPE_NAMES = tuple(name for name in DTYPES if DTYPES[name].kind != "quantised" and name not in ("I4", "U4", "C128"))
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_SIZE = 2**63 - 1
_HUGE_DIMENSION = 2**40
_USUAL = re.compile(
    rb"""
    B("(?:[^"\\\x00-\x1f]++|\\.)*+")B:B
    (\{(?:B(?:
        "dtype"B:B"(?P<dtype>[A-Z0-9_]++)"
        |"shape"B:B\[B(?P<shape>(?:N(?:B,BN)*+)?+)B\]
        |"data_offsets"B:B\[B(?P<first>N)B,B(?P<last>N)B\]
    )B(?:,(?!B\})|(?=\}))){3}\})
    B([,}])
    """.replace(b"B", rb"[\ \t\n\r]*+").replace(b"N", rb"(?:0|[1-9][0-9]{0,18}+)"),
    re.VERBOSE | re.DOTALL,
)
"""A tensor's key and entry with nothing odd about them, its fields in any order."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_DTYPES = {name.encode(): DTYPES[name] for name in DTYPE_NAMES}
_MAX_REPEATED, _MAX_ODDITIES, _MAX_UNUSUAL = 100, 1000, 20_000
_MAX_DIMENSIONS = 64  # as many as torch has


def read(source: Source) -> Header:
    """Reads and checks the header.

    Raises:
        ModelError: the file is no sound safetensors, or is cut short; then the error says how much is missing.
    """
    return _Reader(source).header()


@dataclass(frozen=True, slots=True)
class _Kind:
    """Of which many tensors are; `alignment` is what their places should be multiples of."""

    dtype: Dtype
    shape: tuple[int, ...]
    size_bytes: int | None
    alignment: int


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.oddities: list[str] = []
        self.repeated = self.unusual = 0
        self.kinds: dict[tuple[bytes, bytes], _Kind] = {}

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound safetensors file: {what}", "fetch or export it again")

    def header(self) -> Header:
        raw, start = self.text()
        tensors, metadata = self.entries(raw, start)
        self.contiguous(sorted(tensors, key=attrgetter("offset", "size_bytes")), start)
        if not tensors:
            self.note("it holds no tensors")
        if start % 8:
            self.note(f"its data starts at byte {start:,}, which is no multiple of 8")
        return Header(WeightFormat.SAFETENSORS, tensors, metadata, start, tuple(self.oddities))

    def note(self, oddity: str) -> None:
        if len(self.oddities) < _MAX_ODDITIES:
            self.oddities.append(oddity)

    def text(self) -> tuple[bytearray, int]:
        """The header's text, and where the data starts."""
        size = self.source.size_bytes
        if size < 8:
            raise self.fail(f"it has {size} bytes")
        first = self.source.read(0, min(FIRST_READ_BYTES, size))
        (length,) = struct.unpack("<Q", first[:8])
        for most, what in ((MAX_HEADER_BYTES, "allowed"), (MAX_READ_BYTES, "read")):
            if length > most:
                raise self.fail(f"a header of {humane(length)}, where {humane(most)} are {what}")
        if 8 + length > size:
            missing = 8 + length - size
            raise self.fail(f"{missing:,} bytes ({humane(missing)}) of its header are missing; it may be cut short")
        raw = bytearray(first[8 : 8 + length])
        raw += text_bytes(self.source, len(first), length - len(raw), self.fail)
        if not raw.startswith(b"{"):
            self.note("its header does not start with `{`")
        return raw, 8 + length

    def entries(self, raw: bytearray, start: int) -> tuple[tuple[StoredTensor, ...], Mapping[str, str]]:
        """The tensors, and what the file says besides; entry by entry, since all at once would take much memory."""
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, Mapping[str, str]] = {}
        try:
            for name, member in members(raw, _USUAL):
                usual = self.usual(name, member, start) if member.re is _USUAL else None
                found = self.entry(name, member[2], start) if usual is None else usual
                into: dict[str, Any] = tensors if isinstance(found, StoredTensor) else metadata
                if name in into:
                    self.twice(name, into[name] == found)
                into[name] = found
                if len(tensors) > MAX_TENSORS:
                    raise self.fail(f"more than {MAX_TENSORS:,} tensors")
        except JsonError as error:
            raise self.fail(f"its header {error}") from error
        return tuple(tensors.values()), metadata.get(METADATA, {})

    def entry(self, name: str, value: bytes, start: int) -> StoredTensor | Mapping[str, str]:
        """What a member of the header's object says."""
        self.unusual += 1
        if self.unusual > _MAX_UNUSUAL:
            raise self.fail(f"more than {_MAX_UNUSUAL:,} tensors with odd names, further fields and the like")
        found = parse(value, pairs=self.unique, constants=False)
        if name == METADATA:
            return self.metadata(found)
        if not isinstance(found, dict) or _FIELDS - found.keys():
            raise self.fail(f"tensor {shown(name)} has no dtype, shape and data_offsets")
        if extra := found.keys() - _FIELDS:
            self.note(f"tensor {shown(name)} has the extra field {shown(min(extra))}")
        return self.tensor(name, found["dtype"], found["shape"], found["data_offsets"], start)

    def usual(self, name: str, member: re.Match[bytes], start: int) -> StoredTensor | None:
        """A sound tensor in little time; None of any other."""
        _, _, told, sizes, first, last, _ = member.groups()
        if told is None or sizes is None or first is None or name == METADATA or _PLAIN.fullmatch(name) is None:
            return None
        kind = self.kinds.get((told, sizes)) or self.kind(told, sizes)
        offset = start + int(first)
        size = start + int(last) - offset
        if kind is None or size <= 0 or size != kind.size_bytes:
            return None
        tensor = StoredTensor(name, kind.dtype, kind.shape, "", offset, size)
        return self.sized(tensor) if offset % kind.alignment else tensor

    def kind(self, told: bytes, sizes: bytes) -> _Kind | None:
        """What tensors of this dtype and shape have in common, as a header has them; None of such as are none."""
        dtype = _DTYPES.get(told)
        shape = tuple(int(size) for size in sizes.split(b",")) if sizes else ()
        if dtype is None or len(shape) > _MAX_DIMENSIONS:
            return None
        self.kinds[told, sizes] = _Kind(dtype, shape, dtype.size_bytes(shape), min(dtype.block_bytes, 8))
        return self.kinds[told, sizes]

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.twice(key, found[key] == value)
            found[key] = value
        return found

    def twice(self, key: str, alike: bool) -> None:
        if not alike:
            raise self.fail(f"{shown(key)} comes twice and says two things")
        self.repeated += 1
        if self.repeated > _MAX_REPEATED:
            raise self.fail(f"more than {_MAX_REPEATED} keys come twice")
        self.note(f"{shown(key)} comes twice")

    def metadata(self, found: Any) -> Mapping[str, str]:
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise self.fail(f"{METADATA} is no object of strings")
        if any(is_half(text) for pair in found.items() for text in pair):
            raise self.fail(f"{METADATA} has a string that is no Unicode text")
        return found

    def tensor(self, name: str, told: Any, shape: Any, data_offsets: Any, start: int) -> StoredTensor:
        if len(name) > MAX_LETTERS:
            raise self.fail(f"a name of {len(name):,} characters")
        if is_half(name):
            raise self.fail("a name that is no Unicode text")
        called = shown(name)
        if (why := odd_name(name)) is not None:
            self.note(f"tensor {called} {why}")
        if told not in DTYPE_NAMES:  # a tuple: what stands there need not be hashable
            raise self.fail(f"tensor {called} has the unknown dtype {str(told)[:60]}")
        dtype = DTYPES[told]
        sizes = self.sizes(called, "shape", shape)
        offsets = self.sizes(called, "data_offsets", data_offsets)
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self.fail(f"tensor {called} has the data_offsets {list(offsets)}, which is no range")
        return self.sized(StoredTensor(name, dtype, sizes, "", start + offsets[0], offsets[1] - offsets[0]))

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
            self.note(f"tensor {called} is empty, and has the shape {list(shape)}")
        if given and tensor.offset % min(dtype.block_bytes, 8):
            self.note(f"tensor {called} does not start at a multiple of the size of a {dtype}")
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
        end, before = start, ""
        for tensor in tensors:
            if tensor.offset < end:
                raise self.fail(f"tensors {shown(before)} and {shown(tensor.name)} overlap")
            if tensor.offset > end:
                raise self.fail(f"a hole of {tensor.offset - end:,} bytes before tensor {shown(tensor.name)}")
            end, before = end + tensor.size_bytes, tensor.name
        if end > self.source.size_bytes:
            missing = end - self.source.size_bytes
            raise self.fail(
                f"{missing:,} bytes ({humane(missing)} of {humane(end)}) are missing at its end; it was cut short"
            )
        if end < self.source.size_bytes:
            raise self.fail(f"{self.source.size_bytes - end:,} bytes follow its last tensor")
