"""The leading left singular vectors of a large matrix, without decomposing all of it.

Golub and Kahan's bidiagonalisation with every new vector made orthogonal to all before, until the residuals of as many
as are asked for are small. Source: G. Golub, W. Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix,
1965; the residual is that of its Lanczos relation.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_RESIDUAL = 1e-3
"""Of a vector's own singular value: cosines are held against a threshold of a tenth or more."""
_NOTHING = 1e-5
"""A new direction shorter than this share of the largest singular value is float32's rounding."""


def leading_vectors(matrix_MN: "Tensor", count: int, seed: int = 0) -> "Tensor":
    """The left singular vectors of the `count` largest singular values, in columns, largest first; fewer of a matrix
    of lower rank.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    steps, every = min(matrix_MN.shape), 2 * count + 8
    right = torch.randn(matrix_MN.shape[1], generator=generator, dtype=matrix_MN.dtype)
    lefts: list[Tensor] = []
    rights = [right / right.norm()]
    diagonal: list[float] = []
    above: list[float] = []
    for step in range(1, steps + 1):
        left = _orthogonal(matrix_MN @ rights[-1], lefts)
        diagonal.append(float(left.norm()))
        if diagonal[-1] <= _NOTHING * max(diagonal):
            diagonal.pop()
            break
        lefts.append(left / diagonal[-1])
        right = _orthogonal(matrix_MN.T @ lefts[-1], rights)
        above.append(float(right.norm()))
        if step % every == 0 or step == steps or above[-1] <= _NOTHING * max(diagonal):
            inside, values = _small(diagonal, above)
            residuals = above[-1] * inside[-1, :count].abs()
            if above[-1] <= _NOTHING * max(diagonal) or bool((residuals <= _RESIDUAL * values[:count]).all()):
                break
        rights.append(right / above[-1])
    if not lefts:
        return matrix_MN.new_zeros(matrix_MN.shape[0], 0)
    inside, _ = _small(diagonal, above)
    return torch.stack(lefts, 1) @ inside[:, :count].to(matrix_MN.dtype)


def _orthogonal(vector: "Tensor", others: "list[Tensor]") -> "Tensor":
    """What of a vector is in none of the directions of others; twice, since once leaves rounding."""
    import torch

    if not others:
        return vector
    basis = torch.stack(others, 1)
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
    return vector


def _small(diagonal: list[float], above: list[float]) -> "tuple[Tensor, Tensor]":
    """The left singular vectors and the singular values of the bidiagonal matrix."""
    import torch

    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    size = len(diagonal)
    for place in range(size - 1):
        matrix[place, place + 1] = above[place]
    left, values, _ = torch.linalg.svd(matrix)
    return left, values
