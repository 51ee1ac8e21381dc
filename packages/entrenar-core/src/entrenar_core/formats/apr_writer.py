"""Writes an APR file, version 2: header, metadata and index first, since all sizes are known, then the bytes as they
come, and a checksum of all of it that is computed on the way.

The same tensors and metadata give the same bytes. Source: crates/apr-format in https://github.com/paiml/aprender.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from entrenar_core.errors import ModelError
from entrenar_core.formats.apr import (
    ALIGNMENT,
    CODES,
    HEADER_BYTES,
    LAYOUT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    QUANTISED,
    ROW_MAJOR,
    SUM_BYTES,
    VERSION,
    VOCABULARY,
    aligned,
    header_sum,
)
from entrenar_core.formats.apr_metadata import compact, completed
from entrenar_core.formats.writing import Outgoing

WRITES = tuple(CODES)


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, Any]) -> None:
    """Writes the tensors, sorted by name.

    What every APR file says of itself is added to the metadata where it is missing.

    Raises:
        OSError: the file cannot be written.
        ModelError: a tensor or the metadata cannot be held by APR, or a source ends too early.
    """
    named = sorted(((_name(tensor), tensor) for tensor in tensors), key=lambda pair: pair[0])
    for (before, _), (name, tensor) in pairwise(named):
        if name == before:
            raise ModelError(f"two tensors are called {tensor.name}", "a name must be there once")
    start = _start(named, metadata)
    with path.open("wb") as file:
        file.write(start)
        checksum = zlib.crc32(start)
        for _, tensor in named:
            checksum = _put(file, tensor, checksum)
        file.write(checksum.to_bytes(SUM_BYTES, "little"))


def _name(tensor: Outgoing) -> bytes:
    """The name as it is stored, of a tensor that APR can hold."""
    try:
        name = tensor.name.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"tensor {tensor.name!a} has a name that is no Unicode text", "rename it") from error
    if len(name) > MAX_NAME_BYTES:
        raise ModelError(f"the name of tensor {tensor.name} takes more than {MAX_NAME_BYTES} bytes", "rename it")
    if tensor.dtype.name not in CODES:
        raise ModelError(
            f"tensor {tensor.name} is stored as {tensor.dtype}, which APR lacks", f"it has {', '.join(CODES)}"
        )
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise ModelError(
            f"tensor {tensor.name} has {len(tensor.shape)} dimensions, and APR holds {MAX_DIMENSIONS}", "reshape it"
        )
    return name


def _start(named: Sequence[tuple[bytes, Outgoing]], metadata: Mapping[str, Any]) -> bytes:
    """Everything before the data."""
    tensors = [tensor for _, tensor in named]
    found = completed(
        metadata,
        total_size=sum(tensor.size_bytes for tensor in tensors),
        param_count=sum(math.prod(tensor.shape) for tensor in tensors),
    )
    text = compact(found).encode()
    index, offset = bytearray(), 0
    for name, tensor in named:
        index += struct.pack("<H", len(name)) + name
        index += struct.pack("<BB", CODES[tensor.dtype.name], len(tensor.shape))
        index += struct.pack(f"<{len(tensor.shape)}Q2Q", *tensor.shape, offset, tensor.size_bytes)
        offset += aligned(tensor.size_bytes)
    index_at = HEADER_BYTES + aligned(len(text))
    data_at = index_at + aligned(len(index))
    flags = ROW_MAJOR
    flags |= QUANTISED if any(tensor.dtype.kind == "quantised" for tensor in tensors) else 0
    flags |= VOCABULARY if "tokenizer.vocabulary" in found else 0

    def header(checksum: int) -> bytes:
        places = (HEADER_BYTES, len(text), index_at, data_at)
        return LAYOUT.pack(MAGIC, *VERSION, flags, len(tensors), *places, checksum, bytes(20))

    parts = (header(header_sum(header(0))), _padded(text), _padded(bytes(index)))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _put(file: BinaryIO, tensor: Outgoing, checksum: int) -> int:
    """Writes a tensor with its padding; the checksum of all up to there."""
    left = tensor.size_bytes
    for chunk in tensor.chunks():
        left -= memoryview(chunk).nbytes
        file.write(chunk)
        checksum = zlib.crc32(chunk, checksum)
    if left:
        raise ModelError(
            f"tensor {tensor.name} has {tensor.size_bytes - left:,} bytes, where {tensor.size_bytes:,} are expected",
            "its source was changed while it was read: start again",
        )
    padding = bytes(-tensor.size_bytes % ALIGNMENT)
    file.write(padding)
    return zlib.crc32(padding, checksum)
