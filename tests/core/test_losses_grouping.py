"""Which examples meet in a group, how many groups there are, and vectors that stand for rows."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import (
    cka,
    count_groups,
    groups,
    hidden,
    in_batch_similarity,
    pooled,
    relations,
    rkd_distance,
    similarity_preserving,
)
from entrenar_core.losses.grouping import LEAST
from entrenar_core.losses.pooling import Pool, compared_vectors
from ragged import Side, padded, rows

POOLS: dict[Pool, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda row: row[0],
    "last": lambda row: row[-1],
    "mean": lambda row: row.mean(0),
}
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=20)
every_group_loss = pytest.mark.parametrize("name", LEAST)


def test_every_loss_of_groups_says_how_many_examples_it_needs() -> None:
    functions = {
        name
        for module in (hidden, relations)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and "group_size" in inspect.signature(function).parameters
    }
    assert functions == set(LEAST)


@given(lengths=LENGTHS, group_size=st.integers(1, 7), least=st.integers(1, 5), of_tokens=st.booleans())
def test_groups_are_consecutive_rows_with_tokens_and_are_counted_from_the_mask(
    lengths: list[int], group_size: int, least: int, of_tokens: bool
) -> None:
    group_size = max(group_size, 1 if of_tokens else least)
    students = [torch.full((length, 2), float(index)).numpy() for index, length in enumerate(lengths)]
    teachers = [torch.full((length, 3), -float(index)).numpy() for index, length in enumerate(lengths)]
    student_BTH, mask_BT = padded(students, side="left")
    teacher_BTK = padded(teachers, side="left").hidden_BTH
    compared = groups(
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=least,
        pool="tokens" if of_tokens else "mean",
    )
    there = [index for index, length in enumerate(lengths) if length]
    cut = [there[start : start + group_size] for start in range(0, len(there), group_size)]
    expected = [[index for index in group for _ in range(lengths[index] if of_tokens else 1)] for group in cut]
    expected = [group for group in expected if len(group) >= least]
    found = list(compared)
    assert [student[:, 0].tolist() for student, _ in found] == expected
    assert [(-teacher[:, 0]).tolist() for _, teacher in found] == expected
    assert count_groups(mask_BT, group_size, least, of_tokens) == len(expected)
    assert count_groups(mask_BT.int(), group_size, least, of_tokens=of_tokens) == len(expected)


@every_group_loss
@given(lengths=LENGTHS, group_size=st.integers(4, 7), pool=st.sampled_from(["first", "last", "mean", "tokens"]))
def test_the_count_of_a_loss_is_known_before_its_forward_pass(
    name: str, lengths: list[int], group_size: int, pool: str
) -> None:
    loss = getattr(hidden, name, None) or getattr(relations, name)
    student_BTH, mask_BT = padded(rows(lengths, 3))
    found = loss(student_BTH, student_BTH, mask_BT, group_size=group_size, pool=pool)
    assert found.count == count_groups(mask_BT, group_size, LEAST[name], pool == "tokens")


@pytest.mark.parametrize("loss", [cka, rkd_distance, relations.rkd_angle, similarity_preserving, in_batch_similarity])
def test_eight_rows_in_groups_of_four_are_two_batches_of_four_to_the_bit(loss: object) -> None:
    assert callable(loss)
    student, teacher = rows([3, 5, 1, 2, 4, 4, 2, 6], 5), rows([3, 5, 1, 2, 4, 4, 2, 6], 9, seed=1)

    def of(part: slice) -> tuple[torch.Tensor, int, torch.Tensor]:
        student_BTH, mask_BT = padded(student[part], side="left", dtype=torch.float32)
        teacher_BTK = padded(teacher[part], side="left", dtype=torch.float32).hidden_BTH
        found = loss(student_BTH.requires_grad_(), teacher_BTK, mask_BT, group_size=4)
        found.total.backward()
        assert student_BTH.grad is not None
        return found.total, found.count, student_BTH.grad[mask_BT]

    whole, one, two = of(slice(8)), of(slice(4)), of(slice(4, 8))
    assert torch.equal(one[0] + two[0], whole[0])
    assert one[1] + two[1] == whole[1] == 2
    assert torch.equal(torch.cat([one[2], two[2]]), whole[2])


def test_rows_without_tokens_move_no_border() -> None:
    student, teacher = rows([3, 1, 2, 4, 2], 5), rows([3, 1, 2, 4, 2], 6, seed=1)

    def of(*order: int | None) -> torch.Tensor:
        (student_BTH, mask_BT), (teacher_BTK, _) = (
            padded([nothing if i is None else model[i] for i in order])
            for model, (nothing,) in ((student, rows([0], 5)), (teacher, rows([0], 6)))
        )
        return rkd_distance(student_BTH, teacher_BTK, mask_BT, group_size=3).total

    assert torch.equal(of(None, 0, 1, None, 2, 3, None, None, 4), of(0, 1, 2, 3, 4))
    assert not torch.equal(of(1, 0, 3, 2, 4), of(0, 1, 2, 3, 4)), "who meets whom matters"


def test_a_last_group_that_is_too_small_is_neither_compared_nor_counted() -> None:
    student, teacher = rows([2] * 7, 5), rows([2] * 7, 6, seed=1)
    losses = []
    for count in (4, 7):
        student_BTH, mask_BT = padded(student[:count])
        student_BTH.requires_grad_()
        found = cka(student_BTH, padded(teacher[:count]).hidden_BTH, mask_BT, group_size=4)
        found.total.backward()
        losses.append((found.total.item(), found.count))
    assert losses[0] == losses[1]
    assert losses[1][1] == 1
    assert student_BTH.grad is not None
    assert not student_BTH.grad[4:].any()


def test_mixed_precisions_meet_in_the_finer_one() -> None:
    student_BTH, mask_BT = padded(rows([2] * 4, 5), dtype=torch.bfloat16)
    teacher_BTK = padded(rows([2] * 4, 6)).hidden_BTH
    ((student_NH, teacher_NK),) = groups(student_BTH, teacher_BTK, mask_BT, group_size=4, least=2)
    assert student_NH.dtype == teacher_NK.dtype == torch.float64


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("pool", POOLS)
@given(lengths=LENGTHS, extra=st.integers(0, 3))
def test_a_pooled_row_is_that_of_its_real_tokens(side: Side, pool: Pool, lengths: list[int], extra: int) -> None:
    batch = rows(lengths, 4)
    hidden_BTH, mask_BT = padded(batch, side=side, extra=extra)
    found = pooled(hidden_BTH, mask_BT, pool)
    assert found.shape == (len(lengths), 4)
    for row, vector in zip(batch, found.numpy(), strict=True):
        assert vector == pytest.approx(POOLS[pool](row) if len(row) else 0)
    kept = compared_vectors(hidden_BTH, mask_BT, pool)
    assert torch.equal(kept, found[torch.tensor(lengths) > 0])


def test_a_mask_with_holes_pools_what_is_real() -> None:
    hidden_BTH = torch.arange(7.0).reshape(1, 7, 1)
    mask_BT = torch.tensor([[0, 1, 0, 1, 0, 1, 0]])
    assert [pooled(hidden_BTH, mask_BT, pool).item() for pool in POOLS] == [1.0, 5.0, 3.0]


def test_half_precision_is_pooled_in_fp32() -> None:
    hidden_BTH = torch.full((1, 4096, 1), 1.0009765625, dtype=torch.float16)
    found = pooled(hidden_BTH, torch.ones(1, 4096), "mean")
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.0009765625, rel=1e-6)


def test_what_cannot_be_pooled_or_grouped_is_refused() -> None:
    hidden_BTH, mask_BT = torch.zeros(2, 3, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match="pool must be first, last or mean, got 'tokens'"):
        pooled(hidden_BTH, mask_BT, "tokens")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"of size \(2, 3, 4\) and a mask of size \(2, 4\)"):
        pooled(hidden_BTH, torch.ones(2, 4), "mean")
    with pytest.raises(ValueError, match=r"a mask of size \(3,\) is not one of rows"):
        count_groups(torch.ones(3), 4, 2)
    with pytest.raises(ValueError, match="group_size must be at least 4 for this loss, got 3"):
        count_groups(mask_BT, 3, 4)
    assert count_groups(mask_BT, 1, 3, of_tokens=True) == 2
