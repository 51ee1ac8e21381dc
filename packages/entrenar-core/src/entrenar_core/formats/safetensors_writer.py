"""Writes a safetensors file: the header first, since all sizes are known, then the bytes as they come.

Where the system copies ranges of files by itself (`copy_file_range`), bytes that stay as they are never pass through
this process. Source: the format's description in https://github.com/huggingface/safetensors.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from entrenar_core.formats.safetensors import DTYPE_NAMES, METADATA
from entrenar_core.formats.writing import Outgoing

WRITES = DTYPE_NAMES
_ALIGNMENT = 8
_COPIED_AT_ONCE = 1 << 28
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> None:
    """Writes the tensors in their order.

    Raises:
        OSError: the file cannot be written.
        ModelError: a source ends too early.
    """
    with path.open("wb") as file:
        file.write(header(tensors, metadata))
        for tensor in tensors:
            _put(file, tensor)


def header(tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> bytes:
    """The length of the header and the header, padded by spaces so that the data is aligned."""
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype.name, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _put(file: BinaryIO, tensor: Outgoing) -> None:
    if tensor.origin is not None:
        source, offset = tensor.origin
        file.flush()
        if copy_range(source.fileno(), offset, file.fileno(), tensor.size_bytes, tensor.tell):
            return
    for chunk in tensor.chunks():
        file.write(chunk)


def copy_range(source: int, offset: int, target: int, size: int, tell: Callable[[int], None] | None = None) -> bool:
    """Copies a range to where the target stands, by the system alone; False, with nothing written, where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < size:
        try:
            copied = os.copy_file_range(source, target, min(size - done, _COPIED_AT_ONCE), offset + done)
        except OSError as error:
            if done or error.errno not in _NOT_COPIED:
                raise
            return False
        if not copied:
            if done:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            return False
        done += copied
        if tell is not None:
            tell(copied)
    return True
