"""Sums over two tensors that add up across blocks: what their differences, norms and cosine follow from.

Values that float32 holds are subtracted in it, and their squares and absolute values are added up in it over parts of
8,192, and in float64 over these; a block for which that is not good enough is done again in float64.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.formats.decoding import numbers_per_value
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.results import Difference
from entrenar_core.measuring.sums import dot, total

NEGLIGIBLE = 1e-30  # a mean square beside which what float32 loses, squares below 1e-38, does not count


@dataclass(frozen=True, slots=True)
class DifferenceSums:
    """Over places where both are finite, but for `differing` and `odd`, the places where one is not as the other."""

    numbers: int = 0
    differing: int = 0
    odd: int = 0
    abs_sum: float = 0.0
    square: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0
    product: float = 0.0  # of a and b − a
    inner: float = 0.0  # of a and b
    max_abs: float = 0.0
    largest_at: int = -1

    def __add__(self, other: "DifferenceSums") -> "DifferenceSums":
        larger = other if other.max_abs > self.max_abs else self
        return DifferenceSums(
            self.numbers + other.numbers,
            self.differing + other.differing,
            self.odd + other.odd,
            self.abs_sum + other.abs_sum,
            self.square + other.square,
            self.square_a + other.square_a,
            self.square_b + other.square_b,
            self.product + other.product,
            self.inner + other.inner,
            larger.max_abs,
            larger.largest_at,
        )

    def moved(self, numbers: int) -> "DifferenceSums":
        """The same, of a block that so many numbers lie before."""
        return replace(self, largest_at=self.largest_at + numbers)

    def at(self, place: int) -> "DifferenceSums":
        """The same, with the largest difference at another place."""
        return replace(self, largest_at=place)

    def difference(self, tensor: StoredTensor) -> Difference:
        numbers = max(self.numbers, 1)
        norm_a, norm_b, apart = math.sqrt(self.square_a), math.sqrt(self.square_b), math.sqrt(self.square)
        at = (
            np.unravel_index(self.largest_at // numbers_per_value(tensor.dtype), tensor.shape) if self.max_abs else None
        )
        return Difference(
            values=tensor.values,
            identical=False,
            differing=self.differing,
            non_finite_differ=self.odd > 0,
            max_abs=self.max_abs,
            largest_at=None if at is None else tuple(map(int, at)),
            mean_abs=self.abs_sum / numbers,
            rms=apart / math.sqrt(numbers),
            distance=apart,
            norm=norm_a,
            cosine_distance=self._cosine_distance(norm_a, norm_b) if norm_a and norm_b else None,
        )

    def _cosine_distance(self, norm_a: float, norm_b: float) -> float:
        if not 0.5 < norm_b / norm_a < 2:
            return min(max(1 - self.inner / (norm_a * norm_b), 0.0), 2.0)
        # 2(|a||b| − a·b) = |b − a|² − (|b| − |a|)², and |b|² − |a|² = |b − a|² + 2a·(b − a): where a and b are almost
        # alike, nothing large is subtracted from its like.
        longer = (self.square + 2 * self.product) / (norm_a + norm_b)
        return max(self.square - longer**2, 0.0) / (2 * norm_a * norm_b)


def in_float32(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    apart: NDArray[np.float32],
    differs: NDArray[np.bool_],
    largest: float = 0.0,
) -> DifferenceSums | None:
    """Of b − a; None where float32 is not enough: values are not finite, or squares leave its range.

    Args:
        apart, differs: room for as many, which is written over.
        largest: the place of a largest difference below this is not looked for.
    """
    np.subtract(b, a, out=apart)
    square, square_a, product = dot(apart, apart), dot(a, a), dot(a, apart)
    square_b = square_a + 2 * product + square
    inner = square_a + product
    if not square_b > square_a / 4:  # much was subtracted from its like
        square_b, inner = dot(b, b), dot(a, b)
    if not all(NEGLIGIBLE * len(a) <= found < math.inf for found in (square, square_a, square_b)):
        return None
    np.not_equal(apart, 0, out=differs)
    np.abs(apart, out=apart)
    max_abs = float(apart.max())
    at = int(apart.argmax()) if max_abs >= largest else -1
    differing = int(np.count_nonzero(differs))
    return DifferenceSums(len(a), differing, 0, total(apart), square, square_a, square_b, product, inner, max_abs, at)


def of_equal(a: NDArray[Any]) -> DifferenceSums:
    """Of values that are the same in both."""
    with np.errstate(all="ignore"):
        square = dot(a, a) if a.dtype == np.float32 else math.inf
        if NEGLIGIBLE * len(a) <= square < math.inf:
            return DifferenceSums(len(a), square_a=square, square_b=square, inner=square)
        return in_float64(a, a)


def in_float64(a: NDArray[Any], b: NDArray[Any]) -> DifferenceSums:
    """Of b − a, where both are finite."""
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    exact_a, exact_b = (np.where(finite, one, 0).astype(np.float64) for one in (a, b))
    apart = exact_b - exact_a
    product = dot(exact_a, apart)
    np.abs(apart, out=apart)
    at = int(apart.argmax())
    return DifferenceSums(
        int(np.count_nonzero(finite)),
        int(np.count_nonzero(differs)),
        int(np.count_nonzero(differs & ~finite)),
        float(apart.sum()),
        dot(apart, apart),
        dot(exact_a, exact_a),
        dot(exact_b, exact_b),
        product,
        dot(exact_a, exact_b),
        float(apart[at]),
        at,
    )
