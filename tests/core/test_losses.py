"""What every loss between hidden states promises: its formula in float64, its gradient, and what padding, precision,
empty batches, cuts and the teacher do to it, which is nothing."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hidden_references as references
from entrenar_core.losses import hidden, relations
from entrenar_core.losses.grouping import LEAST
from entrenar_core.losses.sums import LossSum
from ragged import Rows, padded, rows

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], LossSum]
LENGTHS = [5, 2, 0, 7, 1, 4, 3, 0, 6, 2]


class Case(NamedTuple):
    name: str
    loss: Loss
    reference: Callable[[Rows, Rows], tuple[float, int]]
    one_width: bool = False


def case(name: str, reference: Any, one_width: bool = False, **settings: Any) -> Case:
    function = getattr(hidden, name, None) or getattr(relations, name)
    label = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
    return Case(label, partial(function, **settings), reference, one_width)


def group_case(name: str, compare: Any, group_size: int = 4, pool: str = "mean", **settings: Any) -> Case:
    reference = references.over_groups(compare, LEAST[name], group_size, pool)
    return case(name, reference, group_size=group_size, pool=pool, **settings)


CASES = [
    case("hidden_mse", references.hidden_mse, one_width=True),
    case("hidden_cosine", references.hidden_cosine, one_width=True),
    *(case("patient", references.patient(pool), True, pool=pool) for pool in ("first", "last", "mean", "tokens")),
    *(case("attention_maps", references.attention_maps(power), power=power) for power in (1, 2, 3.5)),
    group_case("cka", references.cka_loss),
    group_case("cka", references.cka_loss, group_size=6, pool="first"),
    group_case("cka", references.cka_loss, group_size=2, pool="tokens"),
    group_case("cka", references.cka_loss, group_size=5, pool="tokens"),
    group_case("rkd_distance", references.rkd_distance),
    group_case("rkd_distance", references.rkd_distance, group_size=3, pool="last"),
    group_case("rkd_angle", references.rkd_angle),
    group_case("rkd_angle", references.rkd_angle, group_size=5, pool="first"),
    group_case("rkd_angle", references.rkd_angle, group_size=1, pool="tokens"),
    group_case("similarity_preserving", references.similarity_preserving),
    group_case("similarity_preserving", references.similarity_preserving, group_size=2, pool="tokens"),
    group_case("in_batch_similarity", references.in_batch_similarity(0.05)),
    group_case("in_batch_similarity", references.in_batch_similarity(2.0), group_size=6, pool="first", temperature=2.0),
]  # fmt: skip
every_loss = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def models(case: Case, lengths: list[int], seed: int = 0) -> tuple[Rows, Rows]:
    return rows(lengths, 5, seed), rows(lengths, 5 if case.one_width else 7, seed + 1)


def gradient(
    case: Case, student: Rows, teacher: Rows, autocast: bool = False, **padding: Any
) -> tuple[LossSum, torch.Tensor]:
    """The loss, and its gradient in the hidden states of the student."""
    student_BTH, mask_BT = padded(student, **padding)
    student_BTH.requires_grad_()
    teacher_BTK = padded(teacher, **padding).hidden_BTH
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = case.loss(student_BTH, teacher_BTK, mask_BT)
    loss.total.backward()
    assert student_BTH.grad is not None
    assert not student_BTH.grad[~mask_BT].any(), "padding has a gradient"
    return loss, student_BTH.grad[mask_BT]


@every_loss
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=13), seed=st.integers(0, 99), zero_one=st.booleans())
def test_sum_and_count_are_those_of_the_formula_in_float64(
    case: Case, lengths: list[int], seed: int, zero_one: bool
) -> None:
    student, teacher = models(case, lengths, seed)
    total, count = case.reference(student, teacher)
    student_BTH, mask_BT = padded(student)
    loss = case.loss(student_BTH, padded(teacher).hidden_BTH, mask_BT.long() if zero_one else mask_BT)
    assert loss.count == count
    assert loss.total.dtype == torch.float64
    assert loss.total.shape == ()
    assert loss.total.item() == pytest.approx(total, rel=1e-7, abs=1e-9)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_computed_in_fp32(case: Case, dtype: torch.dtype) -> None:
    """Against float64 of the same, already rounded, hidden states."""
    student, teacher = (
        [torch.from_numpy(row).to(dtype).double().numpy() for row in model] for model in models(case, LENGTHS)
    )
    loss, found = gradient(case, student, teacher, dtype=dtype)
    exact, expected = gradient(case, student, teacher)
    assert loss.total.dtype == torch.float32
    assert found.dtype == dtype
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=2e-5)
    torch.testing.assert_close(found.double(), expected, rtol=max(1e-3, torch.finfo(dtype).eps), atol=2e-5)


@every_loss
def test_autocast_does_not_round_it_to_half(case: Case) -> None:
    student, teacher = models(case, LENGTHS)
    plain, expected = gradient(case, student, teacher, dtype=torch.float32)
    loss, found = gradient(case, student, teacher, autocast=True, dtype=torch.float32)
    assert torch.equal(loss.total, plain.total)
    assert torch.equal(found, expected)


@every_loss
def test_the_gradient_is_that_of_finite_differences(case: Case) -> None:
    student, teacher = models(case, [2, 1, 0, 3, 2, 1])
    student_BTH, mask_BT = padded(student, filling=0.5)
    teacher_BTK = padded(teacher).hidden_BTH
    assert torch.autograd.gradcheck(
        lambda x: case.loss(x, teacher_BTK, mask_BT).total, student_BTH.requires_grad_(), atol=1e-6
    )


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_no_bit(case: Case, dtype: torch.dtype) -> None:
    student, teacher = models(case, LENGTHS)
    loss, found = gradient(case, student, teacher, filling=0.0, dtype=dtype)
    for side, extra, filling in [("left", 0, math.nan), ("both", 3, -math.inf), ("right", 9, 1e30), ("left", 4, 1.0)]:
        other, moved = gradient(case, student, teacher, side=side, extra=extra, filling=filling, dtype=dtype)
        assert torch.equal(other.total, loss.total)
        assert torch.equal(moved, found)
        assert other.count == loss.count


@every_loss
def test_an_empty_batch_gives_zero_with_a_graph(case: Case) -> None:
    for dtype in (torch.float32, torch.float16):
        student, teacher = models(case, [0, 0, 0, 0, 0])
        loss, _ = gradient(case, student, teacher, extra=3, dtype=dtype)
        assert loss == LossSum(torch.tensor(0.0), 0)
        assert loss.total.dtype == torch.float32


@every_loss
def test_the_teacher_gets_no_gradient(case: Case) -> None:
    student, teacher = models(case, LENGTHS)
    student_BTH, mask_BT = padded(student)
    teacher_BTK = padded(teacher).hidden_BTH.requires_grad_()
    case.loss(student_BTH.requires_grad_(), teacher_BTK, mask_BT).total.backward()
    assert teacher_BTK.grad is None


@every_loss
def test_it_is_zero_with_no_gradient_where_the_student_is_the_teacher(case: Case) -> None:
    student = rows(LENGTHS, 5)
    loss, found = gradient(case, student, student)
    assert loss.count > 0
    assert loss.total.item() == pytest.approx(0, abs=1e-12)
    assert found.abs().max() < 1e-7
    single, found = gradient(case, student, student, dtype=torch.float32)
    assert single.total.item() == pytest.approx(0, abs=1e-5)
    assert found.abs().max() < 1e-4


@every_loss
def test_no_gradient_is_infinite_where_there_is_no_direction(case: Case) -> None:
    """Rows of zeros, rows that are equal, and all but one that are."""
    equal, zeros = [np.ones((3, 5))] * 12, [np.zeros((3, 5))] * 12
    almost = [*equal[:11], np.full((3, 5), 2.0)]
    for dtype in (torch.float32, torch.float16):
        for student in (equal, zeros, almost, zeros[:6] + equal[:6]):
            for teacher in (student, rows([3] * 12, 5)):
                loss, found = gradient(case, student, teacher, dtype=dtype)
                assert loss.total.isfinite()
                assert found.isfinite().all()
                assert found.abs().max() < 1e3


@every_loss
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_small_and_large_hidden_states_lose_no_digits(case: Case, size: float) -> None:
    student, teacher = ([row * size for row in model] for model in models(case, LENGTHS))
    loss, found = gradient(case, student, teacher, dtype=torch.float32)
    exact, expected = gradient(case, student, teacher)
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=2e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@every_loss
def test_cutting_a_batch_between_groups_changes_neither_sum_nor_gradient(case: Case) -> None:
    """Two times 60 rows with tokens, which all group sizes of the cases divide, and empty ones between them."""
    student, teacher = models(case, [3, 5, 0, 2, 4] * 30)
    whole, expected = gradient(case, student, teacher, dtype=torch.float32)
    parts = [
        gradient(case, student[part], teacher[part], side="left", dtype=torch.float32)
        for part in (slice(75), slice(75, None))
    ]
    assert whole.count == parts[0][0].count + parts[1][0].count > 0
    torch.testing.assert_close(parts[0][0].total + parts[1][0].total, whole.total, rtol=1e-6, atol=0)
    cut = torch.cat([found for _, found in parts])
    assert (cut - expected).abs().max() <= 1e-6 * expected.abs().max()


@every_loss
def test_sizes_that_do_not_match_are_refused(case: Case) -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 5))
    with pytest.raises(ValueError, match=r"of size \(10, 7, 5\) and a mask of size \(10, 6\)"):
        case.loss(student_BTH, student_BTH, mask_BT[:, 1:])
    with pytest.raises(ValueError, match=r"of size \(9, 7, 5\) and a mask of size \(10, 7\)"):
        case.loss(student_BTH, student_BTH[1:], mask_BT)
    with pytest.raises(ValueError, match="a mask of size"):
        case.loss(student_BTH[0], student_BTH[0], mask_BT[0])
    if case.one_width:
        with pytest.raises(ValueError, match="widths 5 and 3: a projection must come before"):
            case.loss(student_BTH, student_BTH[..., :3], mask_BT)
