"""What measuring tensors gives. Plain numbers, so that what shows them imports neither numpy nor torch."""

from dataclasses import dataclass

OUTLIER_DEVIATIONS = 4.0
"""Values further from the mean than this many standard deviations are outliers: 6 of 100,000 normal ones."""
HISTOGRAM_BINS = 32


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A tensor with values that are no finite numbers: how many, and the first, row by row, with its coordinates."""

    tensor: str
    nan: int
    inf: int
    first: tuple[int, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """The finite values of a tensor. `std` is that of the values themselves: divided by their number.

    `histogram` has `HISTOGRAM_BINS` bins of one width between `low` and `high`, which are the extremes of the values,
    but not further from the mean than `OUTLIER_DEVIATIONS` standard deviations; its outer bins have what lies beyond,
    too. So one far value does not press all others into one bin, and normally distributed tensors look alike at any
    scale.
    """

    values: int
    mean: float
    std: float
    minimum: float
    maximum: float
    abs_mean: float
    l2_norm: float
    zeros: int
    outliers: int
    low: float
    high: float
    histogram: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.values

    @property
    def outlier_ratio(self) -> float:
        """The share of outliers."""
        return self.outliers / self.values


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """All values of a tensor; a complex number counts as its two parts. `finite` is None where no value is."""

    count: int
    nan: int
    inf: int
    finite: Distribution | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two tensors of one shape, value by value: b − a, whatever their dtypes.

    `identical`: they have one dtype, and every bit is the same; values are not looked at then. `differing` counts the
    values that are another; 0 and −0 are one value, and so are NaN and NaN. `non_finite_differ`: one is NaN or infinite
    where the other is not so; such places count as differing, and for no other figure here. `largest_at` are the
    coordinates of `max_abs`; None where it is 0. `distance` is the L2 norm of the difference, `norm` that of a; that of
    identical tensors is not computed, and None. `cosine_distance` is 1 − the cosine similarity, exact also where that
    rounds to 1 and neither is twice as long; None where a or b is all zeros; 0 of identical tensors.
    """

    values: int
    identical: bool
    differing: int
    non_finite_differ: bool
    max_abs: float
    largest_at: tuple[int, ...] | None
    mean_abs: float
    rms: float
    distance: float
    norm: float | None
    cosine_distance: float | None

    @property
    def relative(self) -> float | None:
        """The L2 norm of the difference over that of a; None where a is all zeros. Of identical tensors it is 0."""
        if self.identical:
            return 0.0
        return self.distance / self.norm if self.norm else None

    @property
    def cosine(self) -> float | None:
        """The cosine similarity."""
        return None if self.cosine_distance is None else 1.0 - self.cosine_distance

    @property
    def differing_ratio(self) -> float:
        """The share of values that differ."""
        return self.differing / self.values if self.values else 0.0


@dataclass(frozen=True, slots=True)
class EffectiveRank:
    """How many directions a matrix of `rows` × `columns` spreads over.

    `entropy_rank` is exp of the entropy of the singular values over their sum (Roy & Vetterli 2007), `stable_rank` the
    square of the Frobenius norm over that of the largest singular value; both are 0 of a matrix of zeros.
    `standard_error` is of `entropy_rank` where it was estimated from random vectors, and None where it was computed.
    """

    rows: int
    columns: int
    entropy_rank: float
    stable_rank: float
    largest_singular_value: float
    standard_error: float | None
