"""Losses between how the student and how the teacher relate the examples of a group to each other.

What is compared are distances, angles and similarities, so the widths of the models may differ. Each loss gives a
mean over the pairs, triplets or rows of a group, sums it over groups and counts groups (grouping.py).

Shapes: B rows, T positions, H student's width, K teacher's width, N examples of a group, P pairs of them.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from entrenar_core.losses.divergence import forward_kl
from entrenar_core.losses.geometry import SHORTEST, product, unit
from entrenar_core.losses.grouping import LEAST, Comparison, sum_over_groups
from entrenar_core.losses.pooling import Vectors
from entrenar_core.losses.sums import LossSum


def rkd_distance(
    student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, group_size: int, pool: Vectors = "mean"
) -> LossSum:
    """Σ groups of the mean over pairs i ≠ j of Huber(d_ij/μ − d'_ij/μ'), with distances d, μ their mean, δ = 1.

    Indifferent to rotations, shifts and the scale of either. Two examples have one distance, which is its mean: their
    loss is zero.

    Source: Park et al. 2019 (RKD), eq. 5 to 8, as a mean over pairs where the paper has a sum.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, `pool` is unknown, or `group_size` is below 2
            (with pool `tokens`, below 1).
    """
    return sum_over_groups(
        lambda student_NH, teacher_NK: F.huber_loss(_relative_distances(student_NH), _relative_distances(teacher_NK)),
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=LEAST["rkd_distance"],
        pool=pool,
    )


def rkd_angle(
    student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, group_size: int, pool: Vectors = "mean"
) -> LossSum:
    """Σ groups of the mean over triplets of Huber(cos ∠ijk − cos ∠'ijk), δ = 1, with the vertex j.

    Indifferent to rotations, shifts and the scale of either. Where two examples are equal there is no direction from
    one to the other, and the cosine counts as 0. Takes N² (N + H) numbers of memory.

    Source: Park et al. 2019 (RKD), eq. 9 and 10, as a mean over triplets of different examples where the paper has a
    sum.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, `pool` is unknown, or `group_size` is below 3
            (with pool `tokens`, below 1).
    """
    return sum_over_groups(
        _angle_difference,
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=LEAST["rkd_angle"],
        pool=pool,
    )


def similarity_preserving(
    student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, group_size: int, pool: Vectors = "mean"
) -> LossSum:
    """Σ groups of ‖G − G'‖²_F / N², where G is X Xᵀ with rows of norm 1.

    Indifferent to rotations and the scale of either.

    Source: Tung & Mori 2019, eq. 1 to 4.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, `pool` is unknown, or `group_size` is below 2
            (with pool `tokens`, below 1).
    """
    return sum_over_groups(
        lambda student_NH, teacher_NK: (_similarities(student_NH) - _similarities(teacher_NK)).square().mean(),
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=LEAST["similarity_preserving"],
        pool=pool,
    )


def in_batch_similarity(
    student_BTH: Tensor,
    teacher_BTK: Tensor,
    mask_BT: Tensor,
    *,
    group_size: int,
    pool: Vectors = "mean",
    temperature: float = 0.05,
) -> LossSum:
    """Σ groups of the mean over examples of KL(p ‖ q), in nats: how likely each other example of the group is to be
    the one that is meant, by softmax of cosines / T. The teacher's are p, the student's q.

    Made for sentence encoders, of which only cosines are used. Indifferent to rotations and the length of each
    vector. There is no factor T²: it would keep gradients from shrinking as a T above 1 flattens logits of any size,
    whereas this T says how sharply cosines, which are at most 1, tell examples apart, and is far below 1.

    Source: Passalis & Tefas 2018 (PKT), with the softmax of Abbasi Koohpayegani et al. 2020 (CompRess).

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, `pool` is unknown, `temperature` is not
            positive, or `group_size` is below 3 (with pool `tokens`, below 1).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return sum_over_groups(
        _neighbour_divergence(temperature),
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=LEAST["in_batch_similarity"],
        pool=pool,
    )


def _relative_distances(vectors_NH: Tensor) -> Tensor:
    """Of all pairs, (P,), divided by their mean; zeros where all are equal."""
    distances_P = F.pdist(vectors_NH)  # whose gradient at a distance of 0 is 0
    mean = distances_P.mean()
    return distances_P / torch.where(mean > SHORTEST, mean, torch.inf)


def _angle_difference(student_NH: Tensor, teacher_NK: Tensor) -> Tensor:
    n = len(student_NH)
    difference_NNN = F.huber_loss(_cosines(student_NH), _cosines(teacher_NK), reduction="none")
    # a side with itself has no angle, and the zeros of a vertex with itself differ by nothing
    same_NN = torch.eye(n, dtype=torch.bool, device=student_NH.device)
    return difference_NNN.masked_fill(same_NN, 0.0).sum() / (n * (n - 1) * (n - 2))


def _cosines(vectors_NH: Tensor) -> Tensor:
    """At each vertex, (N, N, N), between the directions to any two examples."""
    directions_NNH = unit(vectors_NH - vectors_NH.unsqueeze(1))
    return product(directions_NNH, directions_NNH.mT)


def _similarities(vectors_NH: Tensor) -> Tensor:
    return unit(product(vectors_NH, vectors_NH.T))


def _neighbour_divergence(temperature: float) -> Comparison:
    def compare(student_NH: Tensor, teacher_NK: Tensor) -> Tensor:
        self_NN = torch.eye(len(student_NH), dtype=torch.bool, device=student_NH.device)
        student_NN, teacher_NN = (
            (product(unit_N, unit_N.T) / temperature).masked_fill(self_NN, -torch.inf)
            for unit_N in (unit(student_NH), unit(teacher_NK))
        )
        return forward_kl(student_NN, teacher_NN).mean()

    return compare
