"""Writes a safetensors file: the header first, since all sizes are known, then the bytes as they come.

Where the system copies ranges of files by itself (`copy_file_range`), bytes that stay as they are never pass through
this process. Source: the format's description in https://github.com/huggingface/safetensors.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from entrenar_core.formats.safetensors import DTYPE_NAMES, METADATA
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing

WRITES = DTYPE_NAMES
_ALIGNMENT = 8
_PIECE_BYTES = 1 << 26
_THREADS = 2
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> None:
    """Writes the tensors in their order.

    Raises:
        OSError: the file cannot be written.
        ModelError: a source ends too early.
    """
    with path.open("wb") as file:
        file.write(header(tensors, metadata))
        for run in _runs(tensors):
            _put(file, run)


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


def _runs(tensors: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """The tensors in their order, those together that lie one behind another already."""
    run: list[Outgoing] = []
    end: tuple[FileSource, int] | None = None
    for tensor in tensors:
        if run and (tensor.origin is None or tensor.origin != end):
            yield run
            run = []
        run.append(tensor)
        end = tensor.origin and (tensor.origin[0], tensor.origin[1] + tensor.size_bytes)
    if run:
        yield run


def _put(file: BinaryIO, run: Sequence[Outgoing]) -> None:
    if run[0].origin is not None and hasattr(os, "copy_file_range"):
        source, offset = run[0].origin
        at, size = file.tell(), sum(tensor.size_bytes for tensor in run)
        file.flush()
        if copy_range(source.fileno(), offset, file.fileno(), at, size, run[0].tell):
            file.seek(at + size)
            return
    for tensor in run:
        for chunk in tensor.chunks():
            file.write(chunk)


def copy_range(
    source: int, offset: int, target: int, at: int, size: int, tell: Callable[[int], None] | None = None
) -> bool:
    """Copies a range between two open files, by the system alone; False, with nothing written, where it cannot.

    A file in the page cache is copied by the processor, so that two threads are faster than one; `tell` is called by
    this one.
    """

    def piece(start: int) -> int:
        length = min(_PIECE_BYTES, size - start)
        return _copied(source, offset + start, target, at + start, length)

    first = piece(0)
    if size and not first:
        return False
    tell = tell or _told_to_nobody
    tell(first)
    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            for copied in threads.map(piece, range(_PIECE_BYTES, size, _PIECE_BYTES)):
                if not copied:
                    raise _shorter()
                tell(copied)
        finally:
            threads.shutdown(cancel_futures=True)
    return True


def _told_to_nobody(_: int) -> None:
    pass


def _copied(source: int, offset: int, target: int, at: int, size: int) -> int:
    """How much is copied: all of it, or nothing where the system cannot, or the source ends before."""
    done = 0
    while done < size:
        try:
            copied = os.copy_file_range(source, target, size - done, offset + done, at + done)
        except OSError as error:
            if done or error.errno not in _NOT_COPIED:
                raise
            return 0
        if not copied and done:
            raise _shorter()
        if not copied:
            return 0
        done += copied
    return done


def _shorter() -> OSError:
    return OSError(errno.EIO, "the source became shorter while it was copied")
