"""How many directions a stored matrix spreads over: its effective rank and its stable rank.

From all singular values, by way of the Gram matrix of the smaller side; or, of larger matrices, by `quadrature`, whose
time does not grow as the cube of a side.

Source: O. Roy, M. Vetterli, The Effective Rank: A Measure of Effective Dimensionality, 2007.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.matrices import StoredMatrix
from entrenar_core.measuring.quadrature import PROBES, STEPS, Bidiagonal, Floats, bidiagonalised
from entrenar_core.measuring.reading import content_of
from entrenar_core.measuring.results import EffectiveRank
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import Progress

EXACT_SIDE = 2048
"""Of the smaller side: 3 s on two cores, and a quarter of that to estimate; the time grows as its cube."""
ROUGH = 0.05
"""The relative standard error above which an estimate is not good enough, if it can be helped."""

_TRUNCATED = STEPS // 2  # what the second half of the steps changed is how far off they may still be


def effective_rank(
    model: StoredModel,
    tensor: StoredTensor,
    *,
    exact_side: int = EXACT_SIDE,
    seed: int = 42,
    progress: Progress | None = None,
) -> EffectiveRank:
    """Of a tensor as a matrix: its first dimension by all others.

    Computed where the smaller side is at most `exact_side`; else estimated, and computed after all where the estimate
    is rougher than `ROUGH` and the side at most twice as long. Computed, singular values below √(n ε) of the largest
    are zeros: 7e-7 of it for n = 2,048. Estimated, `standard_error` is that of the mean over the random vectors,
    together with what the second half of the steps changed; it is large where singular values fall by orders of
    magnitude.

    Memory, besides 256 MB for the matrix: 24 n² bytes of its smaller side n to compute, and far less to estimate.

    Args:
        seed: of the random vectors.
        progress: is told of as many bytes as the tensor has, over all steps.

    Raises:
        ModelError: the tensor is complex, has fewer than two dimensions, or values that are not finite; or it cannot be
            decoded, or its file ends before or cannot be read.
    """
    matrix = StoredMatrix(content_of(model, tensor))
    left = tensor.size_bytes

    def stepped() -> None:
        nonlocal left
        done = tensor.size_bytes // STEPS
        left -= done
        if progress is not None:
            progress(done)

    found = _rank(matrix, exact_side, np.random.default_rng(seed), stepped)
    if progress is not None:
        progress(left)
    return replace(found, rows=tensor.shape[0], columns=math.prod(tensor.shape[1:]))


def _rank(
    matrix: StoredMatrix, exact_side: int, generator: np.random.Generator, stepped: Callable[[], None]
) -> EffectiveRank:
    if not matrix.largest:
        return EffectiveRank(matrix.rows, matrix.columns, 0.0, 0.0, 0.0, None)
    if matrix.columns <= exact_side:
        return _computed(matrix)
    found, error = _estimated(matrix, generator, stepped)
    is_rough = error > ROUGH * found.entropy_rank and matrix.columns <= 2 * exact_side
    return _computed(matrix) if is_rough else found


def _computed(matrix: StoredMatrix) -> EffectiveRank:
    values = _singular_values(matrix)
    shares = values[values > 0] / values.sum()
    entropy = -float((shares * np.log(shares)).sum())
    largest = float(values[0])
    stable = float((values**2).sum()) / largest**2
    return EffectiveRank(matrix.rows, matrix.columns, math.exp(entropy), stable, largest * matrix.scale, None)


def _singular_values(matrix: StoredMatrix) -> Floats:
    """All of them, the largest first, from the eigenvalues of the Gram matrix of the columns."""
    gram, part = np.zeros((2, matrix.columns, matrix.columns))
    for block in matrix.blocks():
        exact = block.astype(np.float64)
        gram += np.matmul(exact.T, exact, out=part)
    eigenvalues = np.linalg.eigvalsh(gram)[::-1]
    negligible = eigenvalues[0] * matrix.columns * np.finfo(np.float64).eps
    values: Floats = np.sqrt(np.where(eigenvalues > negligible, eigenvalues, 0.0))
    return values


def _estimated(
    matrix: StoredMatrix, generator: np.random.Generator, stepped: Callable[[], None]
) -> tuple[EffectiveRank, float]:
    """The rank, and its standard error."""
    found = bidiagonalised(matrix, generator, stepped)
    rank, error = _entropy_rank(found, STEPS, matrix.columns)
    earlier, _ = _entropy_rank(found, _TRUNCATED, matrix.columns)
    error = math.hypot(error, rank - earlier)
    largest = float(found.singular_values(STEPS)[0].max())
    square = sum(float(np.square(block, dtype=np.float64).sum()) for block in matrix.blocks())
    stable = square / largest**2
    return EffectiveRank(matrix.rows, matrix.columns, rank, stable, largest * matrix.scale, error), error


def _entropy_rank(found: Bidiagonal, steps: int, columns: int) -> tuple[float, float]:
    """exp(ln S − T / S) for S = Σ σ and T = Σ σ ln σ, each from the mean of all probes, and its standard error."""
    values_PK, weights_PK = found.singular_values(steps)
    logs_PK = np.log(values_PK, out=np.zeros_like(values_PK), where=values_PK > 0)
    sums_P, products_P = (weights_PK * values_PK).sum(1), (weights_PK * values_PK * logs_PK).sum(1)
    total, product = float(sums_P.mean()), float(products_P.mean())
    rank = math.exp(math.log(columns * total) - product / total)
    # How the logarithm of the rank changes with what one probe says, to first order.
    changes_P = (sums_P - total) * (1 / total + product / total**2) - (products_P - product) / total
    return rank, rank * float(changes_P.std(ddof=1)) / math.sqrt(PROBES)
