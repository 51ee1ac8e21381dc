"""Sums of functions of singular values, estimated from random vectors without computing singular values.

From each random vector the matrix is bidiagonalised for some steps; the singular values of the small matrix that comes
out are, with weights, the nodes of a Gauss quadrature over those of the large one, and the mean over the vectors
estimates the sum. The vectors of a step are not kept to make those of later ones orthogonal to them: singular vectors
would need that, and quadrature does not.

Sources: G. Golub, W. Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix, 1965; S. Ubaru, J. Chen,
Y. Saad, Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, 2017; T. Chen, T. Trogdon, S. Ubaru, Analysis of
Stochastic Lanczos Quadrature for Spectrum Approximation, 2021.

Shapes: M rows, N columns, R rows of a block, P random vectors, K steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entrenar_core.measuring.matrices import Matrix, StoredMatrix

PROBES, STEPS = 32, 48

_BREAKDOWN = 1e-5  # of the largest norm so far: a direction shorter than that is one of float32's rounding

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bidiagonal:
    """Of every probe the upper bidiagonal matrix: `diagonal_PK`, and `above_PK` to the right of it."""

    diagonal_PK: Floats
    above_PK: Floats

    def singular_values(self, steps: int) -> tuple[Floats, Floats]:
        """Of the first steps, with the weights of the quadrature; both of shape (P, steps)."""
        place = np.arange(steps)
        matrices_PKK = np.zeros((len(self.diagonal_PK), steps, steps))
        matrices_PKK[:, place, place] = self.diagonal_PK[:, :steps]
        matrices_PKK[:, place[:-1], place[1:]] = self.above_PK[:, : steps - 1]
        _, values_PK, right_PKK = np.linalg.svd(matrices_PKK)
        return values_PK, np.square(right_PKK[:, :, 0])

    def norms(self, vectors_NP: Matrix) -> tuple[Floats, Matrix]:
        """Of the next vectors, and their inverses; both 0 where the space that a probe leads into is exhausted."""
        norms_P: Floats = np.sqrt(np.square(vectors_NP, dtype=np.float64).sum(0))
        largest = max(norms_P.max(), self.diagonal_PK.max(), self.above_PK.max())
        is_left = norms_P > _BREAKDOWN * largest
        inverse_P = np.divide(1, norms_P, out=np.zeros_like(norms_P), where=is_left)
        return np.where(is_left, norms_P, 0), inverse_P.astype(np.float32)


def bidiagonalised(matrix: StoredMatrix, generator: np.random.Generator, stepped: Callable[[], None]) -> Bidiagonal:
    """W V = U B and Wᵀ U ≈ V Bᵀ for every probe, the first column of V being it; W is read once for each step."""
    probes_NP = generator.standard_normal((matrix.columns, PROBES), np.float32)
    right_NP = probes_NP / np.linalg.norm(probes_NP, axis=0)
    left_MP = np.zeros((matrix.rows, PROBES), np.float32)
    found = Bidiagonal(np.zeros((PROBES, STEPS)), np.zeros((PROBES, STEPS)))
    above_P = np.zeros(PROBES)
    for step in range(STEPS):
        back_NP, first = np.zeros_like(right_NP), 0
        for block_RN in matrix.blocks():  # U is not of length 1 until the pass is over, which a division makes good
            left_RP = left_MP[first : first + len(block_RN)]
            left_RP[:] = block_RN @ right_NP - left_RP * above_P.astype(np.float32)
            back_NP += block_RN.T @ left_RP
            first += len(block_RN)
        diagonal_P, inverse_P = found.norms(left_MP)
        found.diagonal_PK[:, step] = diagonal_P
        left_MP *= inverse_P
        next_NP = back_NP * inverse_P - right_NP * diagonal_P.astype(np.float32)
        above_P, inverse_P = found.norms(next_NP)
        found.above_PK[:, step] = above_P
        right_NP = next_NP * inverse_P
        stepped()
    return found
