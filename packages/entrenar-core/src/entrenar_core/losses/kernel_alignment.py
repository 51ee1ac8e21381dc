"""CKA: how alike two sets of vectors of the same examples are, whatever their widths, rotations and scales.

CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)), from the unbiased estimate HSIC₁ of Song et al. 2012, eq. 5, with a
linear kernel. Nguyen, Raghu & Kornblith 2021 use it on minibatches, where the biased one of Kornblith et al. 2019
calls any two wide layers alike: of random vectors it is near 1 when there are fewer examples than dimensions.

Shapes: N examples, H and K widths, S student's layers, T teacher's layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from entrenar_core.losses.geometry import inverse_root, product
from entrenar_core.losses.grouping import LEAST
from entrenar_core.losses.sums import at_least_fp32

_ROUNDING = 16  # what is within as many units of rounding of zero is zero


def linear_cka(one_NH: Tensor, other_NK: Tensor) -> Tensor:
    """The unbiased CKA of two sets of vectors, a scalar of at most 1, in fp32 or better; below zero by chance.

    With K̃ = X Xᵀ and L̃ = Y Yᵀ without their diagonals,
    HSIC₁ = [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1) / ((N−1)(N−2)) − 2 (1ᵀK̃L̃1) / (N−2)] / (N (N−3)).
    Zero, without a gradient, where it is undefined: all examples equal, or all but one.

    Raises:
        ValueError: fewer than 4 examples, or not as many of one as of the other.
    """
    _require_examples([one_NH, other_NK])
    dtype = torch.promote_types(one_NH.dtype, other_NK.dtype)
    one_NH, other_NK = (_spread(at_least_fp32(x.to(dtype))) for x in (one_NH, other_NK))
    if len(one_NH) <= max(one_NH.shape[1], other_NK.shape[1]):
        return (_unit_gram(one_NH) * _unit_gram(other_NK)).sum()
    # many tokens: the same from H × K products, without a matrix of all pairs of examples
    scales = [inverse_root(_hsic(x, x), _ROUNDING * torch.finfo(x.dtype).eps) for x in (one_NH, other_NK)]
    return _hsic(one_NH, other_NK) * scales[0] * scales[1]


def cka_matrix(student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor]) -> Tensor:
    """The CKA of every student's layer, (N, H), with every teacher's, (N, K), of the same N examples, as (S, T).

    For choosing which layers to pair (`pairs_by_cka`): without a gradient. Takes T · N² numbers of memory, so that
    some hundred examples are a good sample.

    Raises:
        ValueError: no layers, fewer than 4 examples, or not as many in each layer.
    """
    _require_examples([*student_layers, *teacher_layers])
    with torch.no_grad():
        teachers_TNN = torch.stack([_unit_gram(_spread(at_least_fp32(layer))) for layer in teacher_layers])
        students = (_unit_gram(_spread(at_least_fp32(layer))) for layer in student_layers)
        return torch.stack([(student_NN * teachers_TNN).sum((1, 2)) for student_NN in students])


def _require_examples(layers: Sequence[Tensor]) -> None:
    sizes = {len(layer) for layer in layers}
    if len(sizes) != 1:
        raise ValueError(f"CKA compares the same examples: there are {' and '.join(map(str, sorted(sizes))) or 'none'}")
    if min(sizes) < LEAST["cka"]:
        raise ValueError(f"CKA needs at least {LEAST['cka']} examples, got {min(sizes)}")


def _spread(vectors_NH: Tensor) -> Tensor:
    """Centred and of Frobenius norm 1; zeros where all are equal, up to rounding.

    The unbiased CKA is indifferent to both, and a large mean or a large scale would cost it its digits.
    """
    centred_NH = vectors_NH - vectors_NH.mean(0)
    rounding = (_ROUNDING * torch.finfo(vectors_NH.dtype).eps) ** 2
    return centred_NH * inverse_root(centred_NH.square().sum(), rounding * vectors_NH.detach().square().sum())


def _unit_gram(spread_NH: Tensor) -> Tensor:
    """The U-centred X Xᵀ, (N, N), of Frobenius norm 1: the sum of the products of two of them is their CKA.

    U-centring is that of Székely & Rizzo 2014, definition 2: the sum of products is N (N − 3) HSIC₁. That of one with
    itself is a sum of squares, whose square root has no sign to fear.
    """
    n = len(spread_NH)
    diagonal_NN = torch.eye(n, dtype=torch.bool, device=spread_NH.device)
    others_NN = product(spread_NH, spread_NH.T).masked_fill(diagonal_NN, 0.0)
    rows_N = others_NN.sum(1) / (n - 2)
    whole = rows_N.sum() / (n - 1)
    centred_NN = (others_NN - rows_N - rows_N.unsqueeze(-1) + whole).masked_fill(diagonal_NN, 0.0)
    rounding = (_ROUNDING * torch.finfo(spread_NH.dtype).eps) ** 2
    return centred_NN * inverse_root(centred_NN.square().sum(), rounding)


def _hsic(one_NH: Tensor, other_NK: Tensor) -> Tensor:
    """N (N − 3) HSIC₁ of centred vectors: ‖XᵀY‖² − N/(N−2) Σ ‖x‖²‖y‖² + Σ ‖x‖² Σ ‖y‖² / ((N−1)(N−2)).

    Of centred vectors the rows of X Xᵀ add up to zero, and so those of K̃ to −‖x‖².
    """
    n = len(one_NH)
    one_N, other_N = one_NH.square().sum(-1), other_NK.square().sum(-1)
    together = (one_N * other_N).sum() * (n / (n - 2))
    apart = one_N.sum() * other_N.sum() / ((n - 1) * (n - 2))
    return product(one_NH.T, other_NK).square().sum() - together + apart
