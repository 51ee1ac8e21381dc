"""How far two stored tensors are apart, value by value, and whether they are the same to the bit.

Values are read in blocks that are small enough for all that is made of one to stay in a cache. Blocks that are equal to
the bit are not decoded, but for their norms where others are not equal. One thread does all: several would wait for
each other's turn between numpy's operations (`processes.py` is for many tensors on many cores).
"""

import math
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import ModelError
from entrenar_core.formats.decoding import numbers_per_value
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.difference_pieces import PIECE_VALUES, Pieces, bf16_halves, woven
from entrenar_core.measuring.difference_sums import DifferenceSums, in_float32, in_float64, of_equal
from entrenar_core.measuring.reading import Bytes, Content, content_of
from entrenar_core.measuring.results import Difference
from entrenar_core.measuring.sums import require_squares
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import Progress

BLOCK_VALUES = 1 << 18  # a multiple of every block of a dtype
_IN_FLOAT32 = frozenset(("F32", "BF16", "F16"))
_FIRST_BYTES = 4096
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def difference(
    first: StoredModel,
    tensor: StoredTensor,
    second: StoredModel,
    other: StoredTensor,
    *,
    progress: Progress | None = None,
) -> Difference:
    """Of `other`, in the second model, from `tensor`, in the first. Their dtypes may differ.

    Args:
        progress: is told of as many bytes as both tensors have.

    Raises:
        ModelError: their shapes differ, or one is complex and the other is not; or one cannot be decoded, or its file
            ends before or cannot be read; or it has values beyond 1e150.
    """
    a, b = content_of(first, tensor), content_of(second, other)
    return together(a, sums_between(a, b, 0, tensor.values, progress))


def sums_between(
    a: Content, b: Content, start: int, stop: int, progress: Progress | None = None
) -> DifferenceSums | None:
    """Over the values from `start`, the first of a block, up to `stop`; None where all are equal to the bit.

    Args:
        progress: is told of as many bytes as both have there.

    Raises:
        ModelError: as for `difference`, but for values beyond 1e150.
    """
    work = _Work(a, b)
    found: dict[int, DifferenceSums] = {}
    equal: list[int] = []
    largest = 0.0
    for at in range(start, stop, BLOCK_VALUES):
        raw = work.read(0, at), work.read(1, at)
        if work.is_alike and _same(*raw):
            equal.append(at)
        else:
            sums = found[at] = work.sums(at, *raw, largest).moved(at * work.numbers)
            largest = max(sums.max_abs, largest)
        if progress is not None:
            progress(sum(map(len, raw)))
    if work.is_alike and not found:
        return None
    found |= {at: work.equal(at) for at in equal}
    return sum((found[at] for at in sorted(found)), DifferenceSums())


def sums_of_equal(a: Content, start: int, stop: int) -> DifferenceSums:
    """Over values, from the first of a block up to `stop`, that are the same in another tensor.

    Raises:
        ModelError: the file ends before or cannot be read.
    """
    work = _Work(a)
    return sum((work.equal(at) for at in range(start, stop, BLOCK_VALUES)), DifferenceSums())


def together(a: Content, sums: DifferenceSums | None) -> Difference:
    """What follows from the sums over all values of a tensor and another one; None where they are equal.

    Raises:
        ModelError: values are so large that their squares are beyond float64.
    """
    if sums is None:
        return Difference(a.tensor.values, True, 0, False, 0.0, None, 0.0, 0.0, 0.0, None, 0.0)
    require_squares(a.tensor, sums.square, sums.square_a, sums.square_b)
    return sums.difference(a.tensor)


def norm(model: StoredModel, tensor: StoredTensor) -> float:
    """The L2 norm of the finite values of a tensor.

    Raises:
        ModelError: it cannot be decoded, or its file ends before or cannot be read; or it has values beyond 1e150.
    """
    square = sums_of_equal(content_of(model, tensor), 0, tensor.values).square_a
    require_squares(tensor, square)
    return math.sqrt(square)


def same_bytes(first: StoredModel, tensor: StoredTensor, second: StoredModel, other: StoredTensor) -> bool:
    """Whether two tensors have one shape, one dtype and one content, to the bit. Reads on only while they do.

    Raises:
        ModelError: one cannot be decoded, or its file ends before or cannot be read.
    """
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    work = _Work(content_of(first, tensor), content_of(second, other))
    places = range(0, tensor.values, BLOCK_VALUES)
    return work.is_alike and all(_same(work.read(0, at), work.read(1, at)) for at in places)


def digest(model: StoredModel, tensor: StoredTensor) -> bytes:
    """Of the bytes of a tensor: all of them where they are few, else of samples that are spread evenly over them.

    It finds what may be equal, and `same_bytes` says whether it is.

    Raises:
        ModelError: the tensor cannot be decoded, or its file ends before or cannot be read.
    """
    content = content_of(model, tensor)
    summed = blake2b(repr((content.size_bytes, content.scale)).encode(), digest_size=16)
    size = content.size_bytes
    if size <= _SAMPLES * _SAMPLE_BYTES:
        summed.update(content.bytes_at(0, np.empty(size, np.uint8)).data)
        return summed.digest()
    buffer = np.empty(_SAMPLE_BYTES, np.uint8)
    for number in range(_SAMPLES):
        summed.update(content.bytes_at((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1), buffer).data)
    return summed.digest()


class _Work:
    """Two tensors of one shape, or one alone, and the buffers that their blocks are worked on in: new memory for each
    would cost more than all that is done there. `is_alike`: equal bytes are equal values. A value is so many `numbers`.
    """

    def __init__(self, a: Content, *others: Content) -> None:
        for b in others:
            _require_comparable(a.tensor, b.tensor)
        self.sides = (a, *others)
        self.numbers = numbers_per_value(a.tensor.dtype)
        self.is_alike = all(a.tensor.dtype == b.tensor.dtype and a.scale == b.scale for b in others)
        self._names = {side.tensor.dtype.name for side in self.sides}
        self._raw = [np.empty(min(side.size_bytes, _place(side, BLOCK_VALUES)), np.uint8) for side in self.sides]
        numbers = min(a.tensor.values, BLOCK_VALUES) * self.numbers
        self._floats = [np.empty(numbers, np.float32) for _ in range(3)]
        self._flags = np.empty(numbers, np.bool_)
        self._pieces = Pieces(BLOCK_VALUES // PIECE_VALUES)
        self._piece_bytes = [_place(side, PIECE_VALUES) for side in self.sides]

    def read(self, number: int, at: int) -> Bytes:
        """The bytes of one side's block that starts with this value."""
        side, place = self.sides[number], _place(self.sides[number], at)
        return side.bytes_at(place, self._raw[number][: side.size_bytes - place])

    def equal(self, at: int) -> DifferenceSums:
        """Over a block that is the same on both sides."""
        return of_equal(self._decoded(0, at, self.read(0, at)))

    def sums(self, at: int, a: Bytes, b: Bytes, largest: float) -> DifferenceSums:
        """Over a block that was read. `largest` is a difference below which its place does not matter."""
        pieces, rest = divmod(len(a), self._piece_bytes[0])
        if self._names <= _IN_FLOAT32 and not rest:
            found = self._pieces.sums(pieces, lambda piece: self._piece(at, (a, b), piece), largest)
            if found is not None:
                return found.at(woven(found.largest_at)) if self._names == {"BF16"} else found
        one, other = self._decoded(0, at, a), self._decoded(1, at, b)
        with np.errstate(all="ignore"):
            if one.dtype == other.dtype == np.float32:
                found = in_float32(one, other, self._floats[2][: len(one)], self._flags[: len(one)], largest)
                if found is not None:
                    return found
            return in_float64(one, other)

    def _decoded(self, number: int, at: int, raw: Bytes) -> NDArray[Any]:
        side = self.sides[number]
        return side.decode(_place(side, at), raw, self._floats[number])

    def _piece(self, at: int, sides: tuple[Bytes, Bytes], number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The numbers of a piece of a block; of BF16 in halves."""
        one, other = (
            raw[number * size : (number + 1) * size] for raw, size in zip(sides, self._piece_bytes, strict=True)
        )
        if self._names == {"BF16"}:
            return bf16_halves(one, self._floats[0]), bf16_halves(other, self._floats[1])
        at += number * PIECE_VALUES
        return self._decoded(0, at, one), self._decoded(1, at, other)


def _require_comparable(one: StoredTensor, other: StoredTensor) -> None:
    if one.shape != other.shape:
        raise ModelError(
            f"tensor {one.name} has the shape {list(one.shape)}, and {other.name} {list(other.shape)}",
            "compare tensors of one shape",
        )
    if numbers_per_value(one.dtype) != numbers_per_value(other.dtype):
        raise ModelError(
            f"tensor {one.name} is {one.dtype}, and {other.name} {other.dtype}: one is complex, the other is not",
            "compare real with real tensors",
        )


def _place(content: Content, value: int) -> int:
    """At which of its bytes the block of this value starts."""
    return value // content.tensor.dtype.block * content.tensor.dtype.block_bytes


def _same(a: Bytes, b: Bytes) -> bool:
    if not np.array_equal(a[:_FIRST_BYTES], b[:_FIRST_BYTES]):  # blocks that differ mostly do so from the start
        return False
    whole = len(a) // 8 * 8  # eight at a time
    return np.array_equal(a[:whole].view("<u8"), b[:whole].view("<u8")) and np.array_equal(a[whole:], b[whole:])
