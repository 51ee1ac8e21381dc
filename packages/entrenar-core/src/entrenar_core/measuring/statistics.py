"""Statistics of a stored tensor, exact to the accumulation of float64.

Values of 16 bits and fewer are counted by their bit patterns, two bytes at a time, in one pass: 65,536 counts say
everything, exactly. Wider values, and blocks of quantised weights once they are decoded, are summed block by block
about the mean of each block, and read a second time for what needs mean and standard deviation first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from entrenar_core.formats.decoding import decode, numbers_per_value
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.reading import Content, content_of
from entrenar_core.measuring.results import TensorStatistics
from entrenar_core.measuring.sums import Bins, Floats, Integers, Moments, require_squares
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import Progress, share_out

_PATTERNS = 1 << 16
_COUNTED_BYTES = 1 << 20  # of a block: its counts are 65,536 numbers, which must be few beside it
_SUMMED_VALUES = 1 << 18  # of a block: less makes more calls, more does not stay in a cache

_Place = tuple[int, int]


def statistics_of(
    model: StoredModel, tensor: StoredTensor, *, progress: Progress | None = None, threads: int | None = None
) -> TensorStatistics:
    """Count, moments, extremes, outliers and histogram of a tensor; values that are not finite are only counted.

    Args:
        progress: is told of as many bytes as the tensor has.

    Raises:
        ModelError: the tensor cannot be decoded, or has values beyond 1e150; or its file ends before or cannot be read.
    """
    content = content_of(model, tensor)
    if _is_counted(tensor.dtype):
        return _counted(content, progress, threads)
    return _summed(content, progress, threads)


def _is_counted(dtype: Dtype) -> bool:
    """Whether 16 bits hold a number of whole values."""
    return dtype.kind != "quantised" and 16 % (dtype.block_bytes * 8) == 0


# Counting patterns


def _counted(content: Content, progress: Progress | None, threads: int | None) -> TensorStatistics:
    counts, lock = np.zeros(_PATTERNS, np.int64), Lock()

    def worker() -> Callable[[_Place], int]:
        room = min(content.size_bytes, _COUNTED_BYTES)
        buffer, indices = np.zeros(room + room % 2, np.uint8), np.empty((room + 1) // 2, np.intp)

        def count(place: _Place) -> int:
            start, size = place
            content.bytes_at(start, buffer[:size])
            buffer[size : size + size % 2] = 0  # half a pattern is left: it is taken off in `_values`
            patterns = buffer[: size + size % 2].view("<u2")
            np.copyto(indices[: len(patterns)], patterns)
            found = np.bincount(indices[: len(patterns)], minlength=_PATTERNS)
            with lock:
                np.add(counts, found, out=counts)
            return size

        return count

    share_out(
        content.cut(_COUNTED_BYTES * 8 // int(content.tensor.dtype.bits)), worker, progress=progress, threads=threads
    )
    return _statistics(*_values(counts, content))


def _values(counts: Integers, content: Content) -> tuple[Floats, Integers]:
    """The values that the counted patterns stand for, and how often each is there."""
    dtype = content.tensor.dtype
    if dtype.block_bytes == 1:
        pairs = counts.reshape(256, 256)
        counts = pairs.sum(0) + pairs.sum(1)
        counts[0] -= content.size_bytes % 2
    codes = np.flatnonzero(counts).astype(f"<u{dtype.block_bytes}")
    values = decode(codes.view(np.uint8), dtype).astype(np.float64)
    return values, np.repeat(counts[codes], len(values) // max(len(codes), 1))


def _statistics(values: Floats, counts: Integers) -> TensorStatistics:
    finite = np.isfinite(values)
    nan, total = int(counts[np.isnan(values)].sum()), int(counts.sum())
    values, counts = values[finite], counts[finite]
    moments = Moments.counted(values, counts)
    bins = Bins(moments)
    if not moments.values:
        return TensorStatistics(total, nan, total - nan, None)
    places = bins.places(values).astype(np.intp)
    bins.counts += np.bincount(places, counts, len(bins.counts)).astype(np.int64)
    return TensorStatistics(total, nan, total - nan - moments.values, bins.distribution())


# Summing blocks


@dataclass(slots=True)
class _Part:
    """What a block gave."""

    moments: Moments
    numbers: int
    nan: int


def _summed(content: Content, progress: Progress | None, threads: int | None) -> TensorStatistics:
    blocks = list(enumerate(content.cut(_SUMMED_VALUES)))
    parts: dict[int, _Part] = {}

    def summing() -> Callable[[tuple[int, _Place]], int]:
        room = _Room(content)

        def add(block: tuple[int, _Place]) -> int:
            number, (start, size) = block
            values, count, nan = room.finite(start, size)
            exact, spare = room.exact[: len(values)], room.spare[: len(values)]
            with np.errstate(over="ignore", invalid="ignore"):
                parts[number] = _Part(Moments.of(values, exact, spare), count, nan)
            return size // 2

        return add

    share_out(blocks, summing, progress=progress, threads=threads)
    # In the order of the blocks, so that the same bits come out whichever thread was first.
    moments = sum((parts[number].moments for number, _ in blocks), Moments())
    total, nan = sum(part.numbers for part in parts.values()), sum(part.nan for part in parts.values())
    if not moments.values:
        return TensorStatistics(total, nan, total - nan, None)
    require_squares(content.tensor, moments.square, moments.mean * moments.mean * moments.values)
    bins, lock = Bins(moments), Lock()

    def binning() -> Callable[[tuple[int, _Place]], int]:
        room = _Room(content)

        def add(block: tuple[int, _Place]) -> int:
            _, (start, size) = block
            values, _, _ = room.finite(start, size)
            exact, indices = room.exact[: len(values)], room.indices[: len(values)]
            np.copyto(exact, values)
            np.copyto(indices, bins.places(exact), casting="unsafe")
            found = np.bincount(indices, minlength=len(bins.counts))
            with lock:
                bins.counts += found
            return size - size // 2

        return add

    share_out(blocks, binning, progress=progress, threads=threads)
    return TensorStatistics(total, nan, total - nan - moments.values, bins.distribution())


class _Room:
    """The buffers of a thread."""

    def __init__(self, content: Content) -> None:
        dtype = content.tensor.dtype
        values = min(content.tensor.values + dtype.block, _SUMMED_VALUES)
        self.content, self.raw = content, np.empty(values // dtype.block * dtype.block_bytes, np.uint8)
        numbers = values * numbers_per_value(dtype)
        self.exact, self.spare = np.empty(numbers), np.empty(numbers)
        self.indices = self.spare.view(np.int64)

    def finite(self, start: int, size: int) -> tuple[NDArray[np.generic], int, int]:
        """The finite values of a block, how many values it has, and how many of these are NaN."""
        values = self.content.decode(start, self.content.bytes_at(start, self.raw[:size]))
        count = len(values)
        if np.isfinite(values.min()) and np.isfinite(values.max()):
            return values, count, 0
        return values[np.isfinite(values)], count, int(np.count_nonzero(np.isnan(values)))
