"""Rows are worked through in chunks, with their gradient: what comes out is what one row after the other gives."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from entrenar_core.losses import by_row
from entrenar_core.losses.by_row import sum_over_rows


def distance(student_HL: Tensor, teacher_HL: Tensor, allowed_LL: Tensor, scale: Tensor | None = None) -> Tensor:
    """Σ over allowed pairs of (s_i s_j − t_i t_j)², of all heads, times a scale."""
    products = [torch.einsum("hi,hj->hij", x, x) for x in (student_HL, teacher_HL)]
    value = (products[0] - products[1]).square().masked_fill(~allowed_LL, 0.0).sum()
    return value if scale is None else value * scale.square().sum()


def rows_of(*, gaps: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Eight rows of nine positions, of four lengths; with `gaps`, positions between others that nobody needs."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(8, 2, 9, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    lengths_B = torch.tensor([9, 4, 4, 0, 7, 4, 9, 1])
    real_BT = torch.arange(9) < lengths_B[:, None]
    if gaps:
        real_BT[:, 2] = False
        real_BT[4, 4:6] = False
    return student.requires_grad_(), teacher, real_BT[:, :, None] & real_BT[:, None, :]


def reference(student: Tensor, teacher: Tensor, allowed: Tensor, scale: Tensor | None = None) -> Tensor:
    parts = [distance(one, other, mask, scale) for one, other, mask in zip(student, teacher, allowed, strict=True)]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("most", [1, 2 * 4 * 4 * 2, 2**18], ids=["one row", "two rows", "all that are alike"])
@pytest.mark.parametrize("gaps", [False, True])
def test_value_and_gradients_are_those_of_single_rows(gaps: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_row, "_MOST", most)
    student, teacher, allowed = rows_of(gaps=gaps)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    found = sum_over_rows(distance, student, teacher, allowed, scale, position_dims=(-1,), heads=2)
    expected = reference(student, teacher, allowed, scale)
    torch.testing.assert_close(found.total, expected)
    assert found.count == int(allowed.any(-1).sum())
    gradients = torch.autograd.grad(3 * found.total, (student, scale))
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, (student, scale)))


def test_positions_that_nobody_needs_change_nothing_to_the_bit() -> None:
    student, teacher, allowed = rows_of(gaps=True, dtype=torch.float32)
    exact = sum_over_rows(distance, student, teacher, allowed, position_dims=(-1,), heads=2).total
    (gradient,) = torch.autograd.grad(exact, student)
    with torch.no_grad():
        unused = ~(allowed.any(-1) | allowed.any(-2))[:, None].expand_as(student)
        student[unused], teacher[unused] = torch.nan, torch.inf
    again = sum_over_rows(distance, student, teacher, allowed, position_dims=(-1,), heads=2).total
    assert torch.equal(again, exact)
    assert torch.equal(torch.autograd.grad(again, student)[0], gradient)


def test_nothing_at_all_is_zero_with_a_gradient() -> None:
    student, teacher, allowed = rows_of(gaps=False)
    found = sum_over_rows(distance, student, teacher, torch.zeros_like(allowed), position_dims=(-1,), heads=2)
    assert (found.total.item(), found.count) == (0.0, 0)
    assert not torch.autograd.grad(found.total, student)[0].any()


def test_without_a_gradient_only_the_value_is_computed() -> None:
    student, teacher, allowed = rows_of(gaps=True)
    with torch.no_grad():
        found = sum_over_rows(distance, student, teacher, allowed, position_dims=(-1,), heads=2)
    assert not found.total.requires_grad
    torch.testing.assert_close(found.total, reference(student, teacher, allowed).detach())


def test_small_gradients_of_half_precision_are_scaled_before_they_are_rounded() -> None:
    """As a loss is that is scaled up, so that its gradients do not vanish in 16 bits."""
    student, teacher, allowed = rows_of(gaps=False, dtype=torch.float16)
    small = torch.tensor([1e-5], requires_grad=False)
    found = sum_over_rows(distance, student, teacher, allowed, small, position_dims=(-1,), heads=2)
    (gradient,) = torch.autograd.grad(2.0**30 * found.total, student)
    doubled = student.detach().double().requires_grad_()
    expected = torch.autograd.grad(2.0**30 * reference(doubled, teacher.double(), allowed, small.double()), doubled)[0]
    torch.testing.assert_close(gradient, expected.half(), rtol=2e-3, atol=1e-6)


def test_rows_that_are_alike_come_together_and_no_more_than_stay_small() -> None:
    used = torch.arange(9) < torch.tensor([9, 4, 4, 0, 7, 4, 9, 1])[:, None]
    chunks = list(by_row._chunks(used, heads=2))
    assert [chunk.rows for chunk in chunks] == [[0, 6], [1, 2, 5], [4], [7]]
    long = torch.ones(5, 300, dtype=torch.bool)
    assert [chunk.rows for chunk in by_row._chunks(long, heads=12)] == [[0], [1], [2], [3], [4]]
    (first, *_), (second, *_) = pairwise([chunk.rows for chunk in by_row._chunks(long, heads=1)])
    assert (first, second) == ([0, 1], [2, 3])
