"""How a width becomes smaller: which coordinates stay, or by which matrix they are mixed.

A cut acts on every matrix that the width runs through. Let x be the teacher's vector of n numbers and D the (m × n)
matrix of the cut. What writes x writes D x instead, and what reads x reads U D x with D U = I, so that it sees x
without what was cut away. A selection has a row of the identity for each coordinate that stays, and U = Dᵀ.

Shapes: n numbers of the teacher, m of the student, O outputs and I inputs of a matrix.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Selection:
    """Keeps the coordinates `indices_m`, in their order; exact to the bit."""

    indices_m: Tensor

    def written(self, weights: Tensor) -> Tensor:
        """A matrix (n, I) that writes the width, or a bias (n,), for the student."""
        return weights.index_select(0, self.indices_m)

    def read(self, weights: Tensor) -> Tensor:
        """A matrix (O, n) that reads the width, for the student."""
        return weights.index_select(1, self.indices_m)


@dataclass(frozen=True, slots=True)
class Projection:
    """Mixes the coordinates by D, `down_mn`; `up_nm` is U, a right inverse of it."""

    down_mn: Tensor
    up_nm: Tensor

    def written(self, weights: Tensor) -> Tensor:
        """A matrix (n, I) that writes the width, or a bias (n,), for the student."""
        return self.down_mn.to(weights.dtype) @ weights

    def read(self, weights: Tensor) -> Tensor:
        """A matrix (O, n) that reads the width, for the student."""
        return weights @ self.up_nm.to(weights.dtype)


Cut = Selection | Projection


def first(kept: int) -> Selection:
    """The first coordinates."""
    return Selection(torch.arange(kept))


def largest(scores_n: Tensor, kept: int) -> Selection:
    """The coordinates of the largest scores, in their old order; of equal ones the first."""
    order = scores_n.argsort(descending=True, stable=True)
    return Selection(order[:kept].sort().values)


@cache
def interpolation(teacher: int, student: int) -> Projection:
    """Linear interpolation along the coordinates, ends on ends: row i reads at i (n − 1) / (m − 1).

    The rows of D sum to 1; U = Dᵀ (D Dᵀ)⁻¹ is the right inverse that adds least, the pseudo-inverse.
    """
    at_m = torch.linspace(0, teacher - 1, student, dtype=torch.float64)
    low_m = at_m.floor().long().clamp(max=max(teacher - 2, 0))
    part_m = at_m - low_m
    down_mn = torch.zeros(student, teacher, dtype=torch.float64)
    rows = torch.arange(student)
    down_mn[rows, low_m] = 1 - part_m
    down_mn[rows, (low_m + 1).clamp(max=teacher - 1)] += part_m
    return Projection(down_mn, torch.linalg.solve(down_mn @ down_mn.T, down_mn).T)


def principal(covariance_nn: Tensor, kept: int) -> Projection:
    """The directions in which the vectors of this second moment are largest: D Dᵀ = I, U = Dᵀ.

    Of the rows E of an embedding matrix with second moment Eᵀ E these are its first right singular vectors (Eckart &
    Young 1936), and E U is what the truncated SVD leaves of E, in fewer numbers. Each direction is signed so that its
    largest coordinate is positive.
    """
    up_nm = torch.linalg.eigh(covariance_nn.double()).eigenvectors.flip(1)[:, :kept]
    largest_m = up_nm.gather(0, up_nm.abs().argmax(0, keepdim=True))
    up_nm = up_nm * largest_m.sign()
    return Projection(up_nm.T.contiguous(), up_nm)


def each_times(cut: Cut, inner: int) -> Cut:
    """The cut of blocks, such as heads, as one of their coordinates, `inner` in each."""
    if isinstance(cut, Selection):
        return Selection((cut.indices_m[:, None] * inner + torch.arange(inner)).flatten())
    eye = torch.eye(inner, dtype=cut.down_mn.dtype)
    return Projection(torch.kron(cut.down_mn, eye), torch.kron(cut.up_nm, eye))
