"""A stored tensor as a matrix that is gone through by blocks of rows, as often as an algorithm asks."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import UnmeasurableError
from entrenar_core.measuring.reading import Content

Matrix = NDArray[np.float32]

KEPT_BYTES = 256 * 2**20
"""A matrix that takes no more in float32 is kept in memory; a larger one is read again each time."""

_BLOCK_VALUES = 1 << 21


class StoredMatrix:
    """The first dimension of a tensor by all others, divided by `scale` so that no value is above 1.

    One that is kept is turned so that it has no more columns than rows. `largest` is the largest absolute value.
    """

    def __init__(self, content: Content) -> None:
        """Reads it.

        Raises:
            ModelError: the tensor has fewer than two dimensions, is complex, or has values that are not finite; or its
                file ends before, or cannot be read.
        """
        tensor = content.tensor
        if len(tensor.shape) < 2 or tensor.dtype.kind == "complex":
            raise UnmeasurableError(
                tensor.name,
                f"of shape {list(tensor.shape)} and dtype {tensor.dtype} has no rank",
                "name a tensor of two dimensions or more, of real numbers",
            )
        self._content = content
        self.rows, self.columns = tensor.shape[0], math.prod(tensor.shape[1:])
        self.largest = float(np.max([_largest(block) for block in self._stored()], initial=0.0))
        if not math.isfinite(self.largest):
            raise UnmeasurableError(
                tensor.name,
                "has values that are NaN or infinite",
                "`entrenar-inspect validate` says where the first of them is",
            )
        self.scale = 2.0 ** min(max(math.frexp(self.largest)[1], -120), 1023)  # what float32 has the inverse of
        self._kept = self._read_whole() if 4 * tensor.values <= KEPT_BYTES else None
        if self._kept is not None:
            self.rows, self.columns = self._kept.shape

    def blocks(self) -> Iterator[Matrix]:
        """Its rows from first to last, two million values at once; a block is there until the next is asked for."""
        if self._kept is None:
            yield from map(self._scaled, self._stored())
        else:
            step = max(_BLOCK_VALUES // max(self.columns, 1), 1)
            yield from (self._kept[first : first + step] for first in range(0, self.rows, step))

    def _read_whole(self) -> Matrix:
        whole, first = np.empty((self.rows, self.columns), np.float32), 0
        for block in self._stored():
            whole[first : first + len(block)] = self._scaled(block)
            first += len(block)
        return whole if self.columns <= self.rows else whole.T

    def _scaled(self, block: NDArray[Any]) -> Matrix:
        if block.dtype == np.float32:
            block *= np.float32(1 / self.scale)
            return block
        scaled: Matrix = (block * (1 / self.scale)).astype(np.float32)
        return scaled

    def _stored(self) -> Iterator[NDArray[Any]]:
        """Blocks of rows as they are stored, of whole blocks of the dtype; each takes the place of the one before."""
        rows, columns = self._content.tensor.shape[0], math.prod(self._content.tensor.shape[1:])
        dtype = self._content.tensor.dtype
        if not rows * columns:
            return
        unit = dtype.block // math.gcd(dtype.block, columns)
        step = max(_BLOCK_VALUES // columns // unit, 1) * unit
        raw = np.empty(step * columns // dtype.block * dtype.block_bytes, np.uint8)
        room = np.empty(step * columns, np.float32)
        for place, size in self._content.cut(step * columns):
            values = self._content.decode(place, self._content.bytes_at(place, raw[:size]), room)
            yield values.reshape(-1, columns)


def _largest(block: NDArray[Any]) -> float:
    return max(-float(block.min()), float(block.max()))
