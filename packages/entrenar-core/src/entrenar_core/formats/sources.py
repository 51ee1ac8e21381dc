"""The bytes of a file, wherever it lies: on a disk here, or on a server that answers for ranges of it.

Readers of headers ask a `Source` for small ranges and never for a whole file, so that one reader serves both places.
Nothing is mapped into memory: a file that is cut short while it is read is an error then, and not a crash.
"""

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.units import size as humane

WINDOW_BYTES = 65_536
_LENGTH = struct.Struct("<Q")
_TEXT_BLOCK_BYTES = 1 << 23  # of a file on a server each is a request


class Source(Protocol):
    """A file of `size_bytes` bytes, called `name` in errors."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ModelError: the file ends before, or does not arrive.
        """
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


class FileSource:
    """A file on this machine, open until it is closed."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Opens it.

        Raises:
            NotFoundError: it is not there.
            ModelError: it cannot be read, or is no plain file.
        """
        self.path, self.name = path, name or str(path)
        self._file = -1
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait for its writer
                raise ModelError(f"{self.name} is no plain file", "name a file, or a folder that holds a model")
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self.size_bytes = os.fstat(self._file).st_size
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.name} does not exist", "check the spelling") from error
        except OSError as error:
            raise ModelError(f"{self.name} cannot be read: {error.strerror}", "check its permissions") from error

    def fileno(self) -> int:
        """Of the open file, for what copies or maps it."""
        return self._file

    def read(self, offset: int, size: int) -> bytes:
        """As `Source.read`."""
        self._require(offset, size)
        found = b""
        while len(found) < size:
            try:
                more = os.pread(self._file, size - len(found), offset + len(found))
            except OSError as error:
                raise self._unreadable(error) from error
            if not more:
                raise self._short(offset + size)
            found = found + more if found else more
        return found

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer from `offset` on. May be called from several threads at once.

        Raises:
            ModelError: the file ends before, or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._file, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if not got:
                raise self._short(offset + len(buffer))
            done += got

    def _require(self, offset: int, size: int) -> None:
        """Raises ModelError where the file ends before: nothing is allocated for what is not there."""
        if offset + size > self.size_bytes:
            raise self._short(offset + size)

    def _unreadable(self, error: OSError) -> ModelError:
        return ModelError(f"{self.name} cannot be read: {error.strerror}", "check its disk")

    def _short(self, end: int) -> ModelError:
        size_bytes = os.fstat(self._file).st_size  # it may have been cut since it was opened
        return ModelError(
            f"{self.name} ends {humane(max(end - size_bytes, 0))} too early: it has {size_bytes:,} bytes",
            "fetch or export it again",
        )

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def text_bytes(source: Source, start: int, size: int, fail: Callable[[str], ModelError]) -> bytearray:
    """The bytes of a text in a range of a source.

    A file may claim any length and be all zeros, which take no room on a disk. No text has one, so that reading ends
    with the first of them.

    Raises:
        ModelError: there is a zero, or the file ends before or cannot be read.
    """
    found = bytearray()
    while len(found) < size:
        block = source.read(start + len(found), min(_TEXT_BLOCK_BYTES, size - len(found)))
        if (zero := block.find(0)) >= 0:
            raise fail(f"it has a zero at byte {start + len(found) + zero:,}, where text should be")
        found += block
    return found


class Cursor:
    """Reads a range of a source from its start to its end, a window at a time, and believes no length.

    What a header announces is held against the bytes that are left before anything is read or allocated.
    """

    def __init__(self, source: Source, fail: Callable[[str], ModelError], start: int = 0, end: int | None = None):
        self.source, self.fail = source, fail
        self.position, self.end = start, source.size_bytes if end is None else end
        self._window, self._window_start = b"", start

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return self.end - self.position

    def require(self, size: int) -> None:
        """Raises ModelError where fewer bytes are left."""
        if size > self.left:
            missing = size - self.left
            raise self.fail(
                f"{size:,} bytes are announced at byte {self.position:,}, and the file ends before: "
                f"{missing:,} of them are missing"
            )

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        begin = self._look(size)
        self.position += size
        return self._window[begin : begin + size]

    def _look(self, size: int) -> int:
        """Has the next `size` bytes in the window; returns where there."""
        self.require(size)
        begin = self.position - self._window_start
        if begin + size > len(self._window):
            wanted = min(max(size, WINDOW_BYTES), self.source.size_bytes - self.position)
            self._window, self._window_start, begin = self.source.read(self.position, wanted), self.position, 0
        return begin

    def skip(self, size: int) -> None:
        """Passes over `size` bytes."""
        self.require(size)
        self.position += size
        if self.position - self._window_start > len(self._window):
            self._window, self._window_start = b"", self.position

    def skip_texts(self, count: int) -> None:
        """Passes over texts that each have their length before them, in eight bytes."""
        while count:
            at = self._look(_LENGTH.size)
            window, last = self._window, len(self._window) - _LENGTH.size
            while count and at <= last:
                at += _LENGTH.size + _LENGTH.unpack_from(window, at)[0]
                count -= 1
            self.skip(self._window_start + at - self.position)

    def number(self, code: str) -> int:
        """A little-endian number, its type as `struct` writes it."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return int(value)
