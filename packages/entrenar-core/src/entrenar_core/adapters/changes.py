"""What adapters do to one matrix of a model, as it is stored: a low-rank sum, DoRA's rescaling, or a whole difference.

Each is applied to rows of the matrix in place, so that no more of a model than a block needs to be in memory. Formulas:
Hu et al. 2021, LoRA (arXiv:2106.09685), W + s·B·A; Liu et al. 2024, DoRA (arXiv:2402.09353), eq. 5,
m · (W + s·B·A) / ‖W + s·B·A‖, the length that of each output's row.

Shapes: R rows and C columns of the stored matrix, k directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_COLUMNS = 512


class Change(Protocol):
    """Of one matrix. `whole`: all its rows must be given together. `square` is the sum of the squares of what it adds,
    None where that depends on the matrix.
    """

    @property
    def whole(self) -> bool: ...

    @property
    def square(self) -> float | None: ...

    def apply(self, values_RC: Tensor, start: int) -> None:
        """Changes the rows from `start` on, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Factors:
    """Adds left · right."""

    left_Rk: Tensor
    right_kC: Tensor

    @property
    def whole(self) -> bool:
        return False

    @property
    def square(self) -> float:
        """‖left · right‖² by the products of k × k, without the matrix."""
        return max(float((_products(self.left_Rk.T) * _products(self.right_kC)).sum()), 0.0)

    @property
    def product(self) -> Tensor:
        """The matrix that they stand for."""
        return self.left_Rk @ self.right_kC

    def apply(self, values_RC: Tensor, start: int) -> None:
        left = self.left_Rk[start : start + len(values_RC)]
        values_RC.addmm_(left.to(values_RC.dtype), self.right_kC.to(values_RC.dtype))

    def __mul__(self, weight: float) -> "Factors":
        return self if weight == 1.0 else Factors(self.left_Rk * weight, self.right_kC)


def _products(rows_kN: Tensor) -> Tensor:
    """Of every row with every other, in float64; some columns at a time, which stay in a core's cache."""
    found = torch.zeros(len(rows_kN), len(rows_kN), dtype=torch.float64)
    for start in range(0, rows_kN.shape[1], _COLUMNS):
        wide = rows_kN[:, start : start + _COLUMNS].double()
        found.addmm_(wide, wide.T)
    return found


@dataclass(frozen=True, slots=True)
class Rescaled:
    """DoRA: adds left · right, then gives each output's weights the length `magnitude`. Outputs are rows of the stored
    matrix, or its columns. `weight` is how much of the difference between the two matrices is added.
    """

    factors: Factors
    magnitude: Tensor
    by_column: bool
    weight: float = 1.0

    @property
    def whole(self) -> bool:
        return self.by_column

    @property
    def square(self) -> None:
        return None

    def apply(self, values_RC: Tensor, start: int) -> None:
        changed = values_RC.clone()
        self.factors.apply(changed, start)
        lengths = torch.linalg.vector_norm(changed, dim=0 if self.by_column else 1)
        magnitude = self.magnitude if self.by_column else self.magnitude[start : start + len(values_RC)]
        # what has no length has no direction either, and stays zero
        ratio = torch.where(lengths > 0, magnitude.to(lengths.dtype) / lengths, 0.0)
        changed *= ratio if self.by_column else ratio[:, None]
        if self.weight == 1.0:
            values_RC.copy_(changed)
        else:
            values_RC.lerp_(changed, self.weight)


@dataclass(frozen=True, slots=True)
class Difference:
    """Adds a matrix that is there in full."""

    values_RC: Tensor

    @property
    def whole(self) -> bool:
        return False

    @property
    def square(self) -> float:
        return float(self.values_RC.double().square().sum())

    def apply(self, values_RC: Tensor, start: int) -> None:
        values_RC += self.values_RC[start : start + len(values_RC)]


@dataclass(frozen=True, slots=True)
class Together:
    """Several, each of which sees the matrix as it was before."""

    changes: tuple[Change, ...]

    @property
    def whole(self) -> bool:
        return any(change.whole for change in self.changes)

    @property
    def square(self) -> None:
        return None

    def apply(self, values_RC: Tensor, start: int) -> None:
        before = values_RC.clone()
        for change in self.changes:
            values_RC += applied(change, before, start) - before


def applied(change: Change, values_RC: Tensor, start: int = 0) -> Tensor:
    """The rows as they are afterwards, as a copy."""
    found = values_RC.clone()
    change.apply(found, start)
    return found


def summed(changes: Sequence[Change]) -> Change:
    """All of them as one; factors lie side by side then, so that one product adds all."""
    factors = [change for change in changes if isinstance(change, Factors)]
    if len(changes) == 1:
        return changes[0]
    if len(factors) == len(changes):
        return Factors(
            torch.cat([one.left_Rk for one in factors], dim=1), torch.cat([one.right_kC for one in factors], dim=0)
        )
    return Together(tuple(changes))
