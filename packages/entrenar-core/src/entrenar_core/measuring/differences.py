"""How far two stored tensors are apart, value by value, and whether they are the same to the bit.

Blocks that are equal to the bit are not decoded. Of others, values that float32 holds are subtracted in it, and their
squares and absolute values are added up in it over parts of 8,192, and in float64 over these; a block for which that is
not good enough, since values are not finite or their squares leave the range of float32, is done again in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import ModelError
from entrenar_core.formats.decoding import numbers_per_value
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.reading import Bytes, Content, Progress, content_of, share_out
from entrenar_core.measuring.results import Difference
from entrenar_core.measuring.sums import dot, require_squares
from entrenar_core.stored_model import StoredModel

_BLOCK_VALUES = 1 << 18  # a multiple of every block of a dtype
_NEGLIGIBLE = 1e-30  # a mean square beside which what float32 loses, squares below 1e-38, does not count
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
    found: dict[int, _Sums] = {}
    equal: list[int] = []

    def comparing() -> Callable[[int], int]:
        room = _Room(pair)

        def compare(start: int) -> int:
            a, b = room.read(start)
            if pair.is_alike and _same(a, b):
                equal.append(start)
            else:
                found[start] = room.sums(*room.decode(start, a, b)).moved(start * pair.numbers)
            return len(a) + len(b)

        return compare

    def norms() -> Callable[[int], int]:
        room = _Room(pair)

        def norm(start: int) -> int:
            found[start] = room.norm(*room.decode(start, *room.read(start)))
            return 0

        return norm

    starts = range(0, tensor.values, _BLOCK_VALUES)
    share_out(starts, comparing, progress=progress, threads=threads)
    if pair.is_alike and len(equal) == len(starts):
        return Difference(tensor.values, True, 0, False, 0.0, None, 0.0, 0.0, 0.0, 0.0)
    share_out(sorted(equal), norms, threads=threads)
    together = sum((found[start] for start in starts), _Sums())
    require_squares(tensor, together.square, together.square_a, together.square_b)
    return together.difference(tensor)


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
        places = [_place(side, start) for side in self.pair.sides]
        a, b = (
            side.bytes_at(place, raw[: side.size_bytes - place])
            for side, place, raw in zip(self.pair.sides, places, self.raw, strict=True)
        )
        return a, b

    def decode(self, start: int, *raw: Bytes) -> tuple[NDArray[Any], NDArray[Any]]:
        """Their values."""
        sides = zip(self.pair.sides, raw, self.floats, strict=False)
        a, b = (side.decode(_place(side, start), part, room) for side, part, room in sides)
        return a, b

    def sums(self, a: NDArray[Any], b: NDArray[Any]) -> "_Sums":
        """Of b − a."""
        with np.errstate(all="ignore"):
            found = self.in_float32(a, b) if a.dtype == b.dtype == np.float32 else None
            return _in_float64(a, b) if found is None else found

    def norm(self, a: NDArray[Any], b: NDArray[Any]) -> "_Sums":
        """Of values that are the same."""
        with np.errstate(all="ignore"):
            square = dot(a, a) if a.dtype == np.float32 else math.inf
            if _NEGLIGIBLE * len(a) <= square < math.inf:
                return _Sums(len(a), square_a=square, square_b=square)
            return _in_float64(a, b)

    def in_float32(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> "_Sums | None":
        """None where float32 is not enough."""
        apart, differs = self.floats[2][: len(a)], self.flags[: len(a)]
        np.subtract(b, a, out=apart)
        square, square_a, square_b, product = (*(dot(one, one) for one in (apart, a, b)), dot(a, apart))
        if not all(_NEGLIGIBLE * len(a) <= found < math.inf for found in (square, square_a, square_b)):
            return None
        np.not_equal(apart, 0, out=differs)
        np.abs(apart, out=apart)
        at = int(apart.argmax())
        count = int(np.count_nonzero(differs))
        return _Sums(len(a), count, 0, float(apart.sum()), square, square_a, square_b, product, float(apart[at]), at)


def _place(content: Content, value: int) -> int:
    """At which of its bytes the block of this value starts."""
    return value // content.tensor.dtype.block * content.tensor.dtype.block_bytes


def _same(a: Bytes, b: Bytes) -> bool:
    whole = len(a) // 8 * 8  # eight at a time
    return np.array_equal(a[:whole].view("<u8"), b[:whole].view("<u8")) and np.array_equal(a[whole:], b[whole:])


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over places where both are finite, but for `differing` and `odd`, the places where one is not as the other."""

    numbers: int = 0
    differing: int = 0
    odd: int = 0
    abs_sum: float = 0.0
    square: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0
    product: float = 0.0  # of a and b − a
    max_abs: float = 0.0
    largest_at: int = -1

    def __add__(self, other: "_Sums") -> "_Sums":
        larger = other if other.max_abs > self.max_abs else self
        return _Sums(
            self.numbers + other.numbers,
            self.differing + other.differing,
            self.odd + other.odd,
            self.abs_sum + other.abs_sum,
            self.square + other.square,
            self.square_a + other.square_a,
            self.square_b + other.square_b,
            self.product + other.product,
            larger.max_abs,
            larger.largest_at,
        )

    def moved(self, numbers: int) -> "_Sums":
        """The same, of a block that so many numbers lie before."""
        return replace(self, largest_at=self.largest_at + numbers)

    def difference(self, tensor: StoredTensor) -> Difference:
        numbers = max(self.numbers, 1)
        norm_a, norm_b, apart = math.sqrt(self.square_a), math.sqrt(self.square_b), math.sqrt(self.square)
        at = (
            np.unravel_index(self.largest_at // numbers_per_value(tensor.dtype), tensor.shape) if self.max_abs else None
        )
        # 2(|a||b| − a·b) = |b − a|² − (|b| − |a|)², and |b|² − |a|² = |b − a|² + 2a·(b − a): where a and b are almost
        # alike, nothing large is subtracted from its like.
        longer = (self.square + 2 * self.product) / (norm_a + norm_b) if norm_a else norm_b
        unlike = max(self.square - longer**2, 0.0)
        return Difference(
            values=tensor.values,
            identical=False,
            differing=self.differing,
            non_finite_differ=self.odd > 0,
            max_abs=self.max_abs,
            largest_at=None if at is None else tuple(map(int, at)),
            mean_abs=self.abs_sum / numbers,
            rms=apart / math.sqrt(numbers),
            relative=apart / norm_a if norm_a else None,
            cosine_distance=unlike / (2 * norm_a * norm_b) if norm_a and norm_b else None,
        )


def _in_float64(a: NDArray[Any], b: NDArray[Any]) -> _Sums:
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    exact_a, exact_b = (np.where(finite, one, 0).astype(np.float64) for one in (a, b))
    apart = exact_b - exact_a
    product = dot(exact_a, apart)
    np.abs(apart, out=apart)
    at = int(apart.argmax())
    return _Sums(
        int(np.count_nonzero(finite)),
        int(np.count_nonzero(differs)),
        int(np.count_nonzero(differs & ~finite)),
        float(apart.sum()),
        dot(apart, apart),
        dot(exact_a, exact_a),
        dot(exact_b, exact_b),
        product,
        float(apart[at]),
        at,
    )
