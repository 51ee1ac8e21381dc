"""What every writer of a format is given: the tensors, whose sizes are known before their bytes are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written, row by row and little-endian.

    `chunks` gives its bytes in blocks, which may be views of one buffer: each is used before the next is asked for.
    `origin` is where the same bytes lie already, file and offset, so that a system that can copies them by itself;
    `tell` is then told how many bytes were.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]
    origin: tuple[FileSource, int] | None = None
    tell: Callable[[int], None] | None = None

    @property
    def size_bytes(self) -> int:
        size = self.dtype.size_bytes(self.shape)
        assert size is not None, f"{self.name}: {self.shape} cannot be stored as {self.dtype}"
        return size
