"""A matrix, or a product of two, as the product of two of a smaller rank: the nearest there is, by its singular values.

A product is cut through the QR decompositions of its factors, at no cost. A large matrix of which few directions are
wanted is looked at through random ones: Halko, Martinsson & Tropp 2011, "Finding structure with randomness"
(arXiv:0909.4061), algorithms 4.4 and 5.1, with two power iterations and oversampling. What that leaves out is measured
and not estimated: the energy that is kept is that of the directions that were found, of the matrix as it is.

Shapes: R rows and C columns, k directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.adapters.changes import Factors

_EXACT_BELOW = 1024
"""The shorter side of matrices that are always decomposed whole: that takes some tenths of a second."""
_SHARE = 4
"""Of larger ones, all directions are computed where more than 1 / 4 of them are wanted."""
_POWER = 2
_LEAST_SPARE = 16
_FIRST = 64
_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Cut:
    """The directions that are kept, the largest first, as U · diag(s) · V. `square` is the sum of squares of the whole
    matrix, `exact` whether all its directions were computed.
    """

    u_Rk: Tensor
    s_k: Tensor
    v_kC: Tensor
    square: float
    exact: bool

    @property
    def rank(self) -> int:
        return len(self.s_k)

    @property
    def kept(self) -> float:
        """The share of the squares that is kept; 1 of a matrix of zeros."""
        return min(float(self.s_k.double().square().sum()) / self.square, 1.0) if self.square else 1.0

    @property
    def factors(self) -> Factors:
        """Both with the roots of the singular values, so that neither is much larger than the other."""
        root = self.s_k.sqrt()
        return Factors(self.u_Rk * root, root[:, None] * self.v_kC)

    def first(self, rank: int) -> "Cut":
        """The largest directions of these."""
        return Cut(self.u_Rk[:, :rank], self.s_k[:rank], self.v_kC[:rank], self.square, self.exact)


def cut_product(factors: Factors, rank: int) -> Cut:
    """The nearest matrix of a rank to left · right, exactly, without that matrix."""
    q_left, r_left = torch.linalg.qr(factors.left_Rk.double())
    q_right, r_right = torch.linalg.qr(factors.right_kC.double().T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    dtype = factors.left_Rk.dtype
    whole = Cut((q_left @ u).to(dtype), s.to(dtype), (v @ q_right.T).to(dtype), float(s.square().sum()), exact=True)
    return whole.first(rank)


def cut_matrix(matrix_RC: Tensor, *, rank: int | None = None, energy: float | None = None, seed: int = 0) -> Cut:
    """The nearest matrix of a rank, or of the least rank that keeps a share of the squares; at least of rank 1.

    Exact for matrices whose shorter side is at most 1,024, or where many directions are wanted; else through random
    directions, whose figures are those of what they found.

    Args:
        seed: of the random directions.
    """
    short = min(matrix_RC.shape)
    square = square_of(matrix_RC)
    if rank is not None:
        wanted = min(rank, short)
        if short <= _EXACT_BELOW or wanted * _SHARE > short:
            return _whole(matrix_RC, square).first(wanted)
        return _sketched(matrix_RC, wanted, square, seed)
    assert energy is not None, "either a rank or an energy"
    directions = _FIRST
    while short > _EXACT_BELOW and directions * _SHARE <= short and energy < 1.0:
        found = _sketched(matrix_RC, directions, square, seed)
        if found.kept >= energy:
            return found.first(least_rank(found, energy))
        directions *= 2
    found = _whole(matrix_RC, square)
    return found.first(least_rank(found, energy))


def least_rank(cut: Cut, energy: float) -> int:
    """How many directions keep a share of the squares; rounding of the last ones aside."""
    sums = cut.s_k.double().square().cumsum(0)
    wanted = energy * cut.square * (1 - 1e-9)
    enough = (sums >= wanted).nonzero()
    return int(enough[0]) + 1 if len(enough) else cut.rank


def square_of(matrix: Tensor) -> float:
    """The sum of the squares of its values, added up in float64 a few rows at a time."""
    flat = matrix.reshape(-1)
    total = 0.0
    for start in range(0, len(flat), _AT_ONCE):
        total += float(flat[start : start + _AT_ONCE].double().square().sum())
    return total


def _whole(matrix: Tensor, square: float) -> Cut:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return Cut(u, s, v, square, exact=True)


def _sketched(matrix: Tensor, rank: int, square: float, seed: int) -> Cut:
    """Products with random directions, made orthogonal between the powers, so that small values are not lost."""
    generator = torch.Generator().manual_seed(seed)
    columns = min(rank + max(_LEAST_SPARE, rank // 2), min(matrix.shape))
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], columns, generator=generator, dtype=matrix.dtype))[0]
    for _ in range(_POWER):
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Cut(basis @ u, s, v, square, exact=False).first(rank)
