"""Sums over values that add up across blocks, in float64: moments, bins, and dot products on one core."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import UnmeasurableError
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.results import HISTOGRAM_BINS, OUTLIER_DEVIATIONS, Distribution

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DOT_VALUES = 8192  # OpenBLAS starts threads of its own for more than 10,000, which here compete with ours


def dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The dot product of two vectors of one type, added up in float64 over parts of `DOT_VALUES`."""
    whole = len(a) // DOT_VALUES * DOT_VALUES
    rows_a, rows_b = (one[:whole].reshape(-1, DOT_VALUES) for one in (a, b))
    return float(np.vecdot(rows_a, rows_b).sum(dtype=np.float64)) + float(np.dot(a[whole:], b[whole:]))


ONES = np.ones(DOT_VALUES, np.float32)


def total(a: NDArray[np.float32]) -> float:
    """The sum of a vector, as `dot` adds up: by BLAS, which is several times as fast as numpy's sum."""
    whole = len(a) // DOT_VALUES * DOT_VALUES
    rest = a[whole:]
    sums = np.vecdot(a[:whole].reshape(-1, DOT_VALUES), ONES)
    return float(sums.sum(dtype=np.float64)) + float(np.dot(rest, ONES[: len(rest)]))


def require_squares(tensor: StoredTensor, *squares: float) -> None:
    """Raises UnmeasurableError where a sum of squares is beyond what float64 holds."""
    if not all(map(math.isfinite, squares)):
        raise UnmeasurableError(
            tensor.name, "has values so large that their squares are beyond float64", "leave this tensor out"
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Of finite values. `square` is the sum of squared distances from their mean."""

    values: int = 0
    mean: float = 0.0
    square: float = 0.0
    abs_sum: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    zeros: int = 0

    def __add__(self, other: "Moments") -> "Moments":
        """Of the values of both: Chan, Golub & LeVeque 1979, eq. 2.1."""
        if not self.values or not other.values:
            return self if self.values else other
        values, apart = self.values + other.values, other.mean - self.mean
        return Moments(
            values,
            self.mean + apart * (other.values / values),
            self.square + other.square + apart * apart * (self.values * other.values / values),
            self.abs_sum + other.abs_sum,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.zeros + other.zeros,
        )

    @property
    def std(self) -> float:
        return math.sqrt(self.square / self.values)

    @classmethod
    def of(cls, values: NDArray[Any], exact: Floats, spare: Floats) -> "Moments":
        """Of a block that has values, all finite. `exact` and `spare` are room for as many."""
        if not len(values):
            return cls()
        np.copyto(exact, values)
        mean = float(exact.sum()) / len(exact)
        abs_sum = float(np.abs(exact, out=spare).sum())
        np.subtract(exact, mean, out=spare)
        low, high = float(values.min()), float(values.max())
        zeros = int(np.count_nonzero(values == 0)) if low <= 0 <= high else 0
        return cls(len(values), mean, dot(spare, spare), abs_sum, low, high, zeros)

    @classmethod
    def counted(cls, values: Floats, counts: Integers) -> "Moments":
        """Of distinct values, none of them infinite, each of which is there so many times."""
        total = int(counts.sum())
        if not total:
            return cls()
        mean = float((values * counts).sum()) / total
        return cls(
            total,
            mean,
            float(((values - mean) ** 2 * counts).sum()),
            float((np.abs(values) * counts).sum()),
            float(values.min()),
            float(values.max()),
            int(counts[values == 0].sum()),
        )


@dataclass(slots=True)
class Bins:
    """How many values lie in each bin of a histogram; the first and last count, besides, are what lies beyond it."""

    moments: Moments
    counts: Integers = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS + 2, np.int64))

    @property
    def low(self) -> float:
        return max(self.moments.minimum, self.moments.mean - OUTLIER_DEVIATIONS * self.moments.std)

    @property
    def high(self) -> float:
        return min(self.moments.maximum, self.moments.mean + OUTLIER_DEVIATIONS * self.moments.std)

    def places(self, exact: Floats) -> Floats:
        """The bins of values, as places in `counts`; written over the values."""
        width = (self.high - self.low) / HISTOGRAM_BINS
        if not width or not math.isfinite(1 / width):  # one value, again and again
            exact.fill(1 + HISTOGRAM_BINS // 2)
            return exact
        np.subtract(exact, self.low - width, out=exact)
        np.multiply(exact, 1 / width, out=exact)
        return np.clip(exact, 0, HISTOGRAM_BINS + 1, out=exact)

    def distribution(self) -> Distribution:
        """Of all values, which were counted."""
        moments = self.moments
        beyond = (self.low > moments.minimum, self.high < moments.maximum)
        first, *inside, last = self.counts.tolist()
        inside[0] += first
        inside[-1] += last
        return Distribution(
            values=moments.values,
            mean=moments.mean,
            std=moments.std,
            minimum=moments.minimum,
            maximum=moments.maximum,
            abs_mean=moments.abs_sum / moments.values,
            l2_norm=math.sqrt(moments.square + moments.values * moments.mean**2),
            zeros=moments.zeros,
            outliers=first * beyond[0] + last * beyond[1],
            low=self.low,
            high=self.high,
            histogram=tuple(inside),
        )
