"""What every writer of a format is given: the tensors, whose sizes are known before their bytes are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource

Put = Callable[[int, memoryview, Callable[[], None]], None]
"""Writes bytes to where they belong in a tensor, now or later; then calls what it is given."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a tensor; `do` computes and puts them."""

    size_bytes: int
    do: Callable[[Put], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written, row by row and little-endian.

    `chunks` gives its bytes in blocks, which may be views of one buffer: each is used before the next is asked for.
    For writers that can use them there are faster ways to the same bytes. `origin` is where they lie already, file and
    offset, so that a system that can copies them by itself. `parts` are done in any order, several at once. `tell` is
    then told how many bytes more were written.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]
    origin: tuple[FileSource, int] | None = None
    parts: Callable[[], Iterable[Part]] | None = None
    tell: Callable[[int], None] | None = None

    @property
    def size_bytes(self) -> int:
        size = self.dtype.size_bytes(self.shape)
        assert size is not None, f"{self.name}: {self.shape} cannot be stored as {self.dtype}"
        return size
