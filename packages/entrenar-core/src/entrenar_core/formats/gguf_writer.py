"""Writes a GGUF file: metadata and the table of tensors first, since all sizes are known, then the bytes as they come.

Source: ggml's docs/gguf.md, version 3, little-endian.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf import TENSOR_TYPES
from entrenar_core.formats.gguf_values import Value, encoded, encoded_text
from entrenar_core.formats.writing import Outgoing

CODES: Mapping[str, int] = {dtype.name: code for code, dtype in TENSOR_TYPES.items()}
WRITES = tuple(CODES)
ALIGNMENT = 32
_VERSION = 3
_MAX_NAME_BYTES, _MAX_DIMENSIONS = 63, 4  # ggml's, where a name ends with a zero


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, Value]) -> None:
    """Writes the tensors in their order, each at a multiple of 32 bytes.

    Raises:
        OSError: the file cannot be written.
        ModelError: a tensor has a name or a shape that GGUF does not hold.
    """
    for tensor in tensors:
        _require(tensor)
    head = _head(tensors, metadata)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for tensor in tensors:
            for chunk in tensor.chunks():
                file.write(chunk)
            file.write(bytes(-tensor.size_bytes % ALIGNMENT))


def _require(tensor: Outgoing) -> None:
    size, dimensions = len(tensor.name.encode(errors="replace")), len(tensor.shape)
    if size > _MAX_NAME_BYTES:
        raise ModelError(
            f"the name of tensor {tensor.name} has {size} bytes, and llama.cpp takes {_MAX_NAME_BYTES}",
            "write the model in another format",
        )
    if dimensions > _MAX_DIMENSIONS:
        raise ModelError(
            f"tensor {tensor.name} has {dimensions} dimensions, and GGUF holds up to {_MAX_DIMENSIONS}",
            "write the model in another format",
        )


def _head(tensors: Sequence[Outgoing], metadata: Mapping[str, Value]) -> bytes:
    parts = [b"GGUF", _VERSION.to_bytes(4, "little")]
    parts += [len(tensors).to_bytes(8, "little"), len(metadata).to_bytes(8, "little")]
    for key, value in metadata.items():
        parts += [encoded_text(key), encoded(value)]
    offset = 0
    for tensor in tensors:
        parts += [encoded_text(tensor.name), len(tensor.shape).to_bytes(4, "little")]
        parts += [length.to_bytes(8, "little") for length in reversed(tensor.shape)]
        parts += [CODES[tensor.dtype.name].to_bytes(4, "little"), offset.to_bytes(8, "little")]
        offset += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)
