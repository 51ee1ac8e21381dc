"""The singular values of an adapter's change s · B · A, and how much of its rank they say is used.

The change itself, as large as the base model's matrix, is never formed: with B = Q_B R_B and Aᵀ = Q_A R_A the singular
values of B · A are those of the small R_B R_Aᵀ. In float64, so that what is left of a direction that does nothing lies
far below what float32 keeps.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import exp, log, sqrt
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

NEGLIGIBLE = 2.0**-23
"""A direction whose singular value is below this share of the largest is unused: float32 does not keep so small a part
of a sum.
"""
_INDEPENDENT = 1e-4
"""Pivots of the Gram matrix's root within this share of each other: what is lost of them is a hundred-millionth."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, the largest first, of a matrix of rank `rank` at most.

    Figures of a spectrum of zeros are 0: it has no direction.
    """

    values: tuple[float, ...]

    @property
    def rank(self) -> int:
        """How many directions there could be."""
        return len(self.values)

    @property
    def frobenius(self) -> float:
        """√ Σ σ²: the length of the change."""
        return sqrt(sum(value * value for value in self._scaled)) * self.spectral

    @property
    def spectral(self) -> float:
        """The largest σ: by how much it lengthens a vector at most."""
        return self.values[0] if self.values else 0.0

    @property
    def effective_rank(self) -> float:
        """exp(−Σ p ln p) with p = σ / Σ σ (Roy & Vetterli 2007, "The effective rank: a measure of effective
        dimensionality").
        """
        total = sum(self._scaled)
        shares = [value / total for value in self._scaled if value > 0]
        return exp(-sum(share * log(share) for share in shares)) if shares else 0.0

    @property
    def stable_rank(self) -> float:
        """Σ σ² / max σ²."""
        return sum(value * value for value in self._scaled)

    @property
    def participation(self) -> float:
        """(Σ σ²)² / Σ σ⁴: over how many directions the energy is spread."""
        fourth = sum(value**4 for value in self._scaled)
        return sum(value * value for value in self._scaled) ** 2 / fourth if fourth else 0.0

    @property
    def unused(self) -> int:
        """How many directions do nothing: those below `NEGLIGIBLE` of the largest."""
        return self.rank - sum(value > NEGLIGIBLE for value in self._scaled)

    def keeping(self, energy: float) -> int:
        """How many of the largest directions keep this share of the energy at least; 0 where there is none."""
        squares = list(accumulate(value * value for value in self._scaled))
        if not squares:
            return 0
        return next((count for count, kept in enumerate(squares, 1) if kept >= energy * squares[-1]), len(squares))

    def kept(self, rank: int) -> float:
        """The share of the energy that the `rank` largest directions keep; 1 where there is none to keep."""
        squares = [value * value for value in self._scaled]
        return sum(squares[:rank]) / sum(squares) if squares else 1.0

    @property
    def _scaled(self) -> list[float]:
        """The values over the largest, so that no square of them overflows; none of a spectrum of zeros."""
        return [value / self.values[0] for value in self.values] if self.spectral > 0 else []


def spectrum_of(down: "NDArray[np.floating]", up: "NDArray[np.floating]", scale: float = 1.0) -> Spectrum:
    """The spectrum of scale · up · down.

    Args:
        down: A, (r, in).
        up: B, (out, r).
    """
    import torch

    product = _triangle(up) @ _triangle(down.T).T
    values: list[float] = (torch.linalg.svdvals(product) * abs(scale)).tolist()
    rank = down.shape[0]  # which may be larger than the matrix has rows or columns
    return Spectrum((*values[:rank], *[0.0] * (rank - len(values))))


def _triangle(matrix: "NDArray[np.floating]") -> "Tensor":
    """R of its QR decomposition, but for signs: by way of its Gram matrix, a third of the work, where its columns are
    far from depending on each other. Squaring loses half the digits of what is small, of which there is then nothing.

    Not by numpy: its threads get into each other's way where several modules are at work, and take many times as long.
    """
    import torch

    exact = torch.from_numpy(matrix).double()
    found, failed = torch.linalg.cholesky_ex(exact.T @ exact)
    pivots = found.diagonal()
    if not failed and pivots.min() > _INDEPENDENT * pivots.max():
        return cast("Tensor", found.T)
    _, triangle = torch.linalg.qr(exact, mode="r")
    return cast("Tensor", triangle)
