"""Reads the header of a GGUF file: metadata and the table of tensors, not their data.

A header comes from strangers, so nothing in it is believed: every length is held against the bytes that are left
before anything is read or allocated, and whatever does not add up is a ModelError.

Source: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from entrenar_core.errors import ModelError

KEPT_ITEMS = 1024
"""Arrays up to this long are read; longer ones (token lists) only when asked for."""

_MAX_DEPTH, _MAX_DIMENSIONS, _MAX_NAME_BYTES = 4, 4, 65_535
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

# Code: name, weights in a block, bytes of a block (ggml.c, type_traits).
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array in the metadata that was measured and not read."""

    kind: str
    length: int


GgufValue = int | float | bool | str | tuple["GgufValue", ...] | SkippedArray


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the table. `shape` is in torch's order; `offset` counts bytes from the start of the file.

    `type` is ggml's name, or its number where this reader knows no name; then `size_bytes` is None.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    version: int
    metadata: Mapping[str, GgufValue]
    tensors: tuple[GgufTensor, ...]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path, *, arrays: bool = False) -> GgufHeader:
    """Reads the header; with `arrays` also its long arrays, such as the vocabulary.

    Takes time and memory in proportion to the header, at most some tens of bytes per byte of the file.

    Raises:
        ModelError: the file cannot be read, is no GGUF of version 2 or 3, or is malformed anywhere in its header.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path, arrays=arrays).header()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the file and its permissions") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path, *, arrays: bool) -> None:
        self.file, self.path, self.arrays = file, path, arrays
        self.size = path.stat().st_size
        self.position = 0

    def fail(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} is not a sound GGUF file: {what}", "fetch or convert it again; it may be cut short"
        )

    def take(self, size: int) -> bytes:
        self.require(size)
        data = self.file.read(size)
        if len(data) != size:
            raise self.fail("it became shorter while it was read")
        self.position += size
        return data

    def skip(self, size: int) -> None:
        self.require(size)
        self.file.seek(size, 1)
        self.position += size

    def require(self, size: int) -> None:
        if size > self.size - self.position:
            raise self.fail(f"{size:,} bytes are announced at byte {self.position:,}, and the file ends before")

    def number(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return int(value)

    def name(self) -> str:
        size = self.number("Q")
        if size > _MAX_NAME_BYTES:
            raise self.fail(f"a name of {size:,} bytes")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name that is not UTF-8") from error

    def header(self) -> GgufHeader:
        if self.size < 24 or self.take(4) != b"GGUF":
            raise ModelError(f"{self.path} is not a GGUF file", "GGUF files start with the letters GGUF")
        version = self.number("I")
        if version not in (2, 3):
            raise self.fail(f"version {version}; 2 and 3 are read, little-endian")
        tensors, pairs = self.number("Q"), self.number("Q")
        self.require(tensors * _MIN_TENSOR_BYTES + pairs * _MIN_PAIR_BYTES)
        metadata: dict[str, GgufValue] = {}
        for _ in range(pairs):
            key = self.name()
            if key in metadata:
                raise self.fail(f"the key {key} comes twice")
            metadata[key] = self.value(self.number("I"))
        table = [self.tensor() for _ in range(tensors)]
        return GgufHeader(version, metadata, self.placed(table, self.alignment(metadata)))

    def value(self, kind: int, depth: int = 0) -> GgufValue:
        if kind in _SCALARS:
            code = _SCALARS[kind][1]
            value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
            return value
        if kind == _STRING:
            return self.take(self.number("Q")).decode(errors="replace")
        if kind == _ARRAY:
            return self.array(depth + 1)
        raise self.fail(f"a value of the unknown type {kind}")

    def array(self, depth: int) -> GgufValue:
        if depth > _MAX_DEPTH:
            raise self.fail(f"arrays nested more than {_MAX_DEPTH} deep")
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            name, code = _SCALARS[kind]
            size = length * struct.calcsize("<" + code)
            self.require(size)
            if self.arrays or length <= KEPT_ITEMS:
                return struct.unpack(f"<{length}{code}", self.take(size))
            self.skip(size)
            return SkippedArray(name, length)
        if kind not in (_STRING, _ARRAY):
            raise self.fail(f"an array of the unknown type {kind}")
        self.require(length * (8 if kind == _STRING else 12))
        if self.arrays or length <= KEPT_ITEMS:
            return tuple(self.value(kind, depth) for _ in range(length))
        for _ in range(length):
            if kind == _STRING:
                self.skip(self.number("Q"))
            else:
                self.array(depth + 1)
        return SkippedArray("string" if kind == _STRING else "array", length)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.name()
        dimensions = self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions, and {_MAX_DIMENSIONS} are allowed")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def alignment(self, metadata: Mapping[str, GgufValue]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r}, not a power of two")
        return alignment

    def placed(self, table: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> tuple[GgufTensor, ...]:
        """The tensors with their place in the file, which each must lie inside."""
        start = -(-self.position // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, code, offset in table:
            if name in found:
                raise self.fail(f"the tensor {name} comes twice")
            type_name, block, block_bytes = TENSOR_TYPES.get(code, (str(code), 1, 0))
            if shape and shape[-1] % block:
                raise self.fail(f"tensor {name}: rows of {shape[-1]:,} weights cannot be cut into {type_name} blocks")
            size = math.prod(shape) // block * block_bytes
            if offset % alignment or start + offset + size > self.size:
                raise self.fail(f"the data of tensor {name} does not lie inside the file")
            known = size if code in TENSOR_TYPES else None
            found[name] = GgufTensor(name, shape, type_name, start + offset, known)
        return tuple(found.values())
