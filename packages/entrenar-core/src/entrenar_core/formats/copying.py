"""Ranges of files copied into other files: by the system alone where it can (`copy_file_range`), so that their bytes
never pass through this process; else read and written.

Linux copies as many pages at a time as a pipe has, and a third faster where these are whole pages of both files and a
whole piece of the page cache in the new one (measured on ext4: 2 GB in 0.65 s instead of 1.0 s).
"""

import errno
import os

from entrenar_core.formats.sources import FileSource

PAGE_BYTES, PIPE_BYTES = 1 << 12, 1 << 16
_BLOCK_BYTES = 1 << 22
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def copy_range(source: FileSource, offset: int, target: int, at: int, size: int) -> None:
    """Copies a range of a source to where it belongs in an open file. May be called from several threads at once.

    Raises:
        OSError: it cannot be written.
        ModelError: the source ends before.
    """
    done = _copied(source.fileno(), offset, target, at, size) if hasattr(os, "copy_file_range") else 0
    while done < size:
        block = memoryview(source.read(offset + done, min(_BLOCK_BYTES, size - done)))
        put(target, block, at + done)
        done += len(block)


def put(target: int, block: memoryview, at: int) -> None:
    """Writes all of a block to where it belongs in an open file."""
    done = 0
    while done < len(block):
        done += os.pwrite(target, block[done:], at + done)


def _copied(source: int, offset: int, target: int, at: int, size: int) -> int:
    """How much the system has copied: none where it cannot, less where the source ends before."""
    done = 0
    while done < size:
        try:
            copied = os.copy_file_range(source, target, size - done, offset + done, at + done)
        except OSError as error:
            if done or error.errno not in _NOT_COPIED:
                raise
            return 0
        if not copied:
            break
        done += copied
    return done
