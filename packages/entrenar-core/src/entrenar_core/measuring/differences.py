"""How far two stored tensors are apart, value by value, and whether they are the same to the bit.

Blocks that are equal to the bit are not decoded, but for their norms where others are not equal. Blocks are small
enough for all that is made of one to stay in a cache, and no smaller, for threads wait for each other between numpy's
operations on them.
"""

import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import ModelError
from entrenar_core.formats.decoding import numbers_per_value
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.difference_sums import DifferenceSums, bf16_halves, in_float32, in_float64, of_equal
from entrenar_core.measuring.reading import Bytes, Content, Progress, content_of, share_out
from entrenar_core.measuring.results import Difference
from entrenar_core.measuring.sums import require_squares
from entrenar_core.stored_model import StoredModel

_BLOCK_VALUES = 1 << 18  # a multiple of every block of a dtype
_FIRST_BYTES = 4096
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def difference(
    first: StoredModel,
    tensor: StoredTensor,
    second: StoredModel,
    other: StoredTensor,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Difference:
    """Of `other`, in the second model, from `tensor`, in the first. Their dtypes may differ.

    Args:
        progress: is told of as many bytes as both tensors have.

    Raises:
        ModelError: their shapes differ, or one is complex and the other is not; or one cannot be decoded, or its file
            ends before or cannot be read; or it has values beyond 1e150.
    """
    pair = _Pair(content_of(first, tensor), content_of(second, other))
    found: dict[int, DifferenceSums] = {}
    equal: list[int] = []
    largest = [0.0]  # so far: the first of the largest differences of all is never below it

    def comparing() -> Callable[[int], int]:
        room = _Room(pair)

        def compare(start: int) -> int:
            a, b = room.read(start)
            if pair.is_alike and _same(a, b):
                equal.append(start)
            else:
                sums = room.sums(start, a, b, largest[0]).moved(start * pair.numbers)
                found[start], largest[0] = sums, max(sums.max_abs, largest[0])
            return len(a) + len(b)

        return compare

    def norms() -> Callable[[int], int]:
        room = _Room(pair)

        def square(start: int) -> int:
            found[start] = of_equal(room.decode_side(0, start, room.read_side(0, start)))
            return 0

        return square

    starts = range(0, tensor.values, _BLOCK_VALUES)
    share_out(starts, comparing, progress=progress, threads=threads)
    if pair.is_alike and len(equal) == len(starts):
        return Difference(tensor.values, True, 0, False, 0.0, None, 0.0, 0.0, 0.0, None, 0.0)
    share_out(sorted(equal), norms, threads=threads)
    together = sum((found[start] for start in starts), DifferenceSums())
    require_squares(tensor, together.square, together.square_a, together.square_b)
    return together.difference(tensor)


def norm(model: StoredModel, tensor: StoredTensor, *, threads: int | None = None) -> float:
    """The L2 norm of the finite values of a tensor.

    Raises:
        ModelError: it cannot be decoded, or its file ends before or cannot be read; or it has values beyond 1e150.
    """
    content = content_of(model, tensor)
    found: dict[int, float] = {}

    def squares() -> Callable[[int], int]:
        room = _Room(_Pair(content, content))

        def square(start: int) -> int:
            found[start] = of_equal(room.decode_side(0, start, room.read_side(0, start))).square_a
            return 0

        return square

    share_out(starts := range(0, tensor.values, _BLOCK_VALUES), squares, threads=threads)
    together = sum(found[start] for start in starts)
    require_squares(tensor, together)
    return math.sqrt(together)


def same_bytes(first: StoredModel, tensor: StoredTensor, second: StoredModel, other: StoredTensor) -> bool:
    """Whether two tensors have one shape, one dtype and one content, to the bit. Reads on only while they do.

    Raises:
        ModelError: one cannot be decoded, or its file ends before or cannot be read.
    """
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    pair = _Pair(content_of(first, tensor), content_of(second, other))
    room = _Room(pair)
    return pair.is_alike and all(_same(*room.read(start)) for start in range(0, tensor.values, _BLOCK_VALUES))


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


class _Pair:
    """Two tensors of one shape. `is_alike`: equal bytes are equal values. A value is of so many `numbers`."""

    def __init__(self, a: Content, b: Content) -> None:
        one, other = a.tensor, b.tensor
        if one.shape != other.shape:
            raise ModelError(
                f"tensor {one.name} has the shape {list(one.shape)}, and {other.name} {list(other.shape)}",
                "compare tensors of one shape",
            )
        self.numbers = numbers_per_value(one.dtype)
        if self.numbers != numbers_per_value(other.dtype):
            raise ModelError(
                f"tensor {one.name} is {one.dtype}, and {other.name} {other.dtype}: one is complex, the other is not",
                "compare real with real tensors",
            )
        self.sides = (a, b)
        self.is_alike = one.dtype == other.dtype and a.scale == b.scale
        self.is_bf16 = one.dtype.name == other.dtype.name == "BF16"


class _Room:
    """The buffers of a thread, and what is done in them: new memory for each block would cost more than all of it."""

    def __init__(self, pair: _Pair) -> None:
        self.pair = pair
        values = min(pair.sides[0].tensor.values, _BLOCK_VALUES)
        self.raw = [np.empty(min(side.size_bytes, _place(side, _BLOCK_VALUES)), np.uint8) for side in pair.sides]
        self.floats = [np.empty(values * pair.numbers, np.float32) for _ in range(3)]
        self.flags = np.empty(values * pair.numbers, np.bool_)

    def read(self, start: int) -> tuple[Bytes, Bytes]:
        """The bytes of the block that starts with this value."""
        return self.read_side(0, start), self.read_side(1, start)

    def read_side(self, number: int, start: int) -> Bytes:
        """Those of one side."""
        side, place = self.pair.sides[number], _place(self.pair.sides[number], start)
        return side.bytes_at(place, self.raw[number][: side.size_bytes - place])

    def decode_side(self, number: int, start: int, raw: Bytes) -> NDArray[Any]:
        """Those of one side."""
        side = self.pair.sides[number]
        return side.decode(_place(side, start), raw, self.floats[number])

    def sums(self, start: int, a: Bytes, b: Bytes, largest: float) -> DifferenceSums:
        """Of b − a, read from a block. `largest` is a difference below which its place does not matter."""
        if self.pair.is_bf16 and len(a) % 4 == 0:
            return self.between(bf16_halves(a, self.floats[0]), bf16_halves(b, self.floats[1]), largest).woven(
                len(a) // 4
            )
        return self.between(self.decode_side(0, start, a), self.decode_side(1, start, b), largest)

    def between(self, a: NDArray[Any], b: NDArray[Any], largest: float) -> DifferenceSums:
        """Of the values b − a."""
        with np.errstate(all="ignore"):
            if a.dtype == b.dtype == np.float32:
                found = in_float32(a, b, self.floats[2][: len(a)], self.flags[: len(a)], largest)
                if found is not None:
                    return found
            return in_float64(a, b)


def _place(content: Content, value: int) -> int:
    """At which of its bytes the block of this value starts."""
    return value // content.tensor.dtype.block * content.tensor.dtype.block_bytes


def _same(a: Bytes, b: Bytes) -> bool:
    if not np.array_equal(a[:_FIRST_BYTES], b[:_FIRST_BYTES]):  # blocks that differ mostly do so from the start
        return False
    whole = len(a) // 8 * 8  # eight at a time
    return np.array_equal(a[:whole].view("<u8"), b[:whole].view("<u8")) and np.array_equal(a[whole:], b[whole:])
