"""Losses between vectors of sentences: their formulas in float64, their gradients, and what they are indifferent to."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entrenar_core.losses import embedding_cosine, embedding_mse
from entrenar_core.losses.sums import LossSum
from ragged import rotation

Loss = Callable[[Tensor, Tensor], LossSum]
LOSSES: list[Loss] = [embedding_cosine, embedding_mse]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def vectors(rows: int, width: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)) * scale)


def by_hand(loss: Loss, student: Tensor, teacher: Tensor) -> float:
    """Row by row and number by number."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        if loss is embedding_mse:
            total += math.fsum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        else:
            dot = math.fsum(a * b for a, b in zip(s, t, strict=True))
            total += 1 - dot / (math.hypot(*s) * math.hypot(*t))
    return total


@every_loss
@given(rows=st.integers(0, 9), width=st.integers(1, 8), seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_sum_and_count_are_those_of_the_formula(loss: Loss, rows: int, width: int, seed: int, scale: float) -> None:
    student, teacher = vectors(rows, width, seed, scale), vectors(rows, width, seed + 1)
    found = loss(student, teacher)
    assert found.count == rows
    assert found.total.dtype == torch.float64
    assert found.total.item() == pytest.approx(by_hand(loss, student, teacher), rel=1e-9, abs=1e-12)


@every_loss
def test_the_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    student, teacher = vectors(4, 5).requires_grad_(), vectors(4, 5, 1)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher).total, student)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_computed_in_fp32(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher = vectors(6, 7).to(dtype), vectors(6, 7, 1).to(dtype)
    found = loss(student, teacher).total
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(loss, student.double(), teacher.double()), rel=1e-5)


@every_loss
def test_the_teacher_gets_no_gradient_and_parts_add_up_to_the_whole(loss: Loss) -> None:
    student, teacher = vectors(6, 7).requires_grad_(), vectors(6, 7, 1).requires_grad_()
    whole = loss(student, teacher)
    parts = loss(student[:2], teacher[:2]) + loss(student[2:], teacher[2:])
    assert parts.count == whole.count == 6
    (expected,) = torch.autograd.grad(whole.total, student)
    (cut,) = torch.autograd.grad(parts.total, student)
    torch.testing.assert_close(cut, expected, rtol=1e-12, atol=0)
    loss(student, teacher).total.backward()
    assert teacher.grad is None


@every_loss
def test_no_row_gives_zero_with_a_graph(loss: Loss) -> None:
    student = vectors(3, 5).half().requires_grad_()
    found = loss(student[:0], vectors(0, 5))
    found.total.backward()
    assert (found.total.item(), found.count) == (0, 0)
    assert student.grad is not None
    assert not student.grad.any()


@every_loss
def test_it_is_zero_where_both_agree_and_finite_where_there_is_no_direction(loss: Loss) -> None:
    student = vectors(3, 5)
    assert loss(student, student).total.item() == pytest.approx(0, abs=1e-15)
    zeros = torch.zeros(3, 5, requires_grad=True)
    loss(zeros, student.float()).total.backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_the_cosine_is_indifferent_to_lengths_and_rotations() -> None:
    student, teacher = vectors(6, 5), vectors(6, 5, 1)
    turned = rotation(5)
    plain = embedding_cosine(student, teacher).total.item()
    assert embedding_cosine(student * 7, teacher * 0.1).total.item() == pytest.approx(plain, rel=1e-12)
    assert embedding_cosine(student @ turned, teacher @ turned).total.item() == pytest.approx(plain, rel=1e-12)
    assert embedding_cosine(student, -student).total.item() == pytest.approx(12.0)


def test_of_unit_vectors_the_squared_error_is_that_part_of_the_cosine() -> None:
    student, teacher = (torch.nn.functional.normalize(vectors(6, 5, seed), dim=-1) for seed in (0, 1))
    cosine = embedding_cosine(student, teacher).total.item()
    assert embedding_mse(student, teacher).total.item() == pytest.approx(2 / 5 * cosine, rel=1e-12)


@every_loss
def test_sizes_that_do_not_match_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"vectors of sizes \(3, 5\) and \(3, 4\) are not comparable"):
        loss(vectors(3, 5), vectors(3, 4))
    with pytest.raises(ValueError, match="not comparable"):
        loss(vectors(3, 5).unsqueeze(1), vectors(3, 5).unsqueeze(1))
