"""Reads stored tensors in blocks: the part that everything measured here shares. Nothing is mapped into memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import UnmeasurableError
from entrenar_core.formats.decoding import decodable, decode, numbers_per_value
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

Bytes = NDArray[np.uint8]


class InMemory:
    """Bytes that are here already, as a `Source`."""

    def __init__(self, name: str, raw: Bytes) -> None:
        self.name, self.size_bytes, self._raw = name, len(raw), raw

    def read(self, offset: int, size: int) -> bytes:
        """As `Source.read`."""
        return self._raw[offset : offset + size].tobytes()

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a tensor, row by row: `size_bytes` from `start` of `source` on. `scale` is what came before them."""

    tensor: StoredTensor
    source: Source
    start: int
    size_bytes: int
    scale: float | None = None

    def bytes_at(self, place: int, buffer: Bytes) -> Bytes:
        """As many bytes as the buffer has, from `place` on, which counts from the first; gives the buffer.

        Raises:
            ModelError: the file ends before, or cannot be read.
        """
        return fill(self.source, self.start + place, buffer)

    def decode(self, place: int, raw: Bytes, room: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """The numbers of whole blocks that were read from `place` on. `room` is written over, if that helps."""
        dtype = self.tensor.dtype
        numbers = decode(raw, dtype, scale=self.scale, room=room)
        before = place // dtype.block_bytes * dtype.block
        return numbers[: (self.tensor.values - before) * numbers_per_value(dtype)]  # a last block may not be full

    def cut(self, values: int) -> list[tuple[int, int]]:
        """Ranges of its bytes, as place and size: of so many values each, which are whole blocks, but for the last."""
        step = values // self.tensor.dtype.block * self.tensor.dtype.block_bytes
        return [(place, min(step, self.size_bytes - place)) for place in range(0, self.size_bytes, step)]


def content_of(model: StoredModel, tensor: StoredTensor) -> Content:
    """Where the bytes of a tensor lie row by row. One that lies in another order in its file is read whole for that.

    Raises:
        ModelError: its values cannot be decoded; or the file ends before, or cannot be read.
    """
    if not decodable(tensor.dtype):
        raise UnmeasurableError(
            tensor.name, f"is of the type {tensor.dtype}, whose values are not known", "leave this tensor out"
        )
    if tensor.inline:
        held = InMemory(tensor.name, np.frombuffer(model.inline(tensor), np.uint8))
        return Content(tensor, held, 0, held.size_bytes)
    source, head = model.sources[tensor.file], tensor.dtype.head_bytes
    if tensor.strides is not None:
        held = _row_by_row(source, tensor)
        return Content(tensor, held, 0, held.size_bytes)
    scale = float(fill(source, tensor.offset, np.empty(head, np.uint8)).view("<f4")[0]) if head else None
    return Content(tensor, source, tensor.offset + head, tensor.size_bytes - head, scale)


def _row_by_row(source: Source, tensor: StoredTensor) -> InMemory:
    assert tensor.strides is not None
    size = tensor.dtype.block_bytes
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    stored = np.frombuffer(source.read(tensor.offset, span * size), np.dtype((np.void, size)))
    strides = tuple(stride * size for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(stored, tensor.shape, strides, writeable=False)
    return InMemory(tensor.name, np.ascontiguousarray(view).reshape(-1).view(np.uint8))


def fill(source: Source, offset: int, buffer: Bytes) -> Bytes:
    """Reads as many bytes as the buffer has; gives the buffer.

    Raises:
        ModelError: the file ends before, or cannot be read.
    """
    if isinstance(source, FileSource):
        source.read_into(offset, buffer.data)
    else:
        buffer[:] = np.frombuffer(source.read(offset, len(buffer)), np.uint8)
    return buffer
