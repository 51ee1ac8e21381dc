"""Losses that compare the examples of a batch with each other: which examples meet, and how many groups there are.

Rows that have a real token are cut in consecutive groups of `group_size`, in the order of the batch; the last may be
smaller. A group with fewer examples than a loss needs is neither compared nor counted. Examples are rows, or the real
tokens of the rows of a group. So the loss of a batch depends on where groups begin, and on nothing else: batches that
are cut between groups have losses that add up.

Shapes: B rows, T positions, H student's width, K teacher's width, N examples of a group.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from entrenar_core.losses.pooling import Vectors, compared_vectors, real_lengths
from entrenar_core.losses.sums import LossSum, at_least_fp32
from entrenar_core.losses.table import LOSSES

LEAST: Mapping[str, int] = {name: row.least for name, row in LOSSES.items() if row.scope == "group"}
"""How many examples a group must have for a loss to compare them."""

Comparison = Callable[[Tensor, Tensor], Tensor]
"""From the examples of a group, (N, H) of the student and (N, K) of the teacher, to one value."""


def count_groups(mask_BT: Tensor, group_size: int, least: int, of_tokens: bool = False) -> int:
    """How many groups of a batch are compared, from its mask alone: the count of every loss of groups.

    Args:
        mask_BT: bool or 0/1, the real tokens.
        group_size: rows of a group.
        least: examples that a group must have, see `LEAST`.
        of_tokens: examples are real tokens, not rows.

    Raises:
        ValueError: no group of this size could ever be compared.
    """
    return sum(size >= least for size in _group_sizes(mask_BT, group_size, least, of_tokens))


def groups(
    student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, group_size: int, least: int, pool: Vectors = "mean"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples of each group that is compared, of the student, (N, H), and of the teacher, (N, K).

    Both in fp32 or better, of one dtype; the teacher's without a gradient.

    Raises:
        ValueError: a size does not match the mask's, `pool` is unknown, or `group_size` is too small for `least`.
    """
    sizes = _group_sizes(mask_BT, group_size, least, pool == "tokens")
    student_NH = compared_vectors(student_BTH, mask_BT, pool)
    teacher_NK = compared_vectors(teacher_BTK.detach(), mask_BT, pool)
    dtype = torch.promote_types(student_NH.dtype, teacher_NK.dtype)
    pairs = zip(torch.split(student_NH.to(dtype), sizes), torch.split(teacher_NK.to(dtype), sizes), strict=True)
    return ((student, teacher) for student, teacher in pairs if len(student) >= least)


def sum_over_groups(
    compare: Comparison,
    student_BTH: Tensor,
    teacher_BTK: Tensor,
    mask_BT: Tensor,
    *,
    group_size: int,
    least: int,
    pool: Vectors,
) -> LossSum:
    """Sums a comparison over the groups, and counts them. Without one the total is zero and still has a graph.

    Raises:
        ValueError: as `groups`.
    """
    total, count = at_least_fp32(student_BTH[:0]).sum(), 0
    for student_NH, teacher_NK in groups(
        student_BTH, teacher_BTK, mask_BT, group_size=group_size, least=least, pool=pool
    ):
        total, count = total + compare(student_NH, teacher_NK), count + 1
    return LossSum(total, count)


def _group_sizes(mask_BT: Tensor, group_size: int, least: int, of_tokens: bool) -> list[int]:
    """How many examples each group has, those that are too few included."""
    smallest = 1 if of_tokens else least
    if group_size < smallest:
        raise ValueError(f"group_size must be at least {smallest} for this loss, got {group_size}")
    lengths = [length for length in real_lengths(mask_BT).tolist() if length > 0]
    cut = [lengths[start : start + group_size] for start in range(0, len(lengths), group_size)]
    return [sum(group) if of_tokens else len(group) for group in cut]
