"""What `compare` returns."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Change:
    """What is other in the second of two models. `name` ends in `.*` for a whole module.

    `now` is the new name of what was renamed, the new shape of what was reshaped, and both dtypes of what was retyped.
    """

    kind: Literal["added", "removed", "renamed", "reshaped", "retyped"]
    name: str
    shape: tuple[int, ...] | None
    parameters: int | None
    now: str | tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far the values of a tensor moved. `changed` is the share of values that did; `cosine` is None of zeros.
    `non_finite_differ`: somewhere one side alone is NaN or infinite, for which no other figure here stands.
    """

    name: str
    values: int
    max_abs: float
    mean_abs: float
    cosine: float | None
    changed: float
    non_finite_differ: bool


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """The same of a module: the largest difference, the mean over all values, the least cosine of a tensor. `beyond`
    counts tensors that differ by more than is tolerated, `non_finite` those where one side alone is NaN or infinite.
    """

    name: str
    tensors: int
    beyond: int
    non_finite: int
    max_abs: float
    mean_abs: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models beside each other. `beyond` counts tensors whose values differ by more than `tolerance`; it is None
    where values were not compared.
    """

    first: str
    second: str
    changes: tuple[Change, ...]
    in_common: int
    modules: tuple[ModuleDifference, ...]
    tensors: tuple[TensorDifference, ...]
    beyond: int | None
    tolerance: float
    failed: bool
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 where a change is among those that must not be."""
        return int(self.failed)
