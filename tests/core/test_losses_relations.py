"""Relations between examples: what each loss is indifferent to, its symmetry, and its limits."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import LossSum, in_batch_similarity, rkd_angle, rkd_distance, similarity_preserving
from hidden_references import huber
from ragged import padded, rotation, rows

Loss = Callable[..., LossSum]
LOSSES: list[Loss] = [rkd_distance, rkd_angle, similarity_preserving, in_batch_similarity]
every_relation = pytest.mark.parametrize("loss", LOSSES)
LENGTHS = [4, 2, 0, 5, 3, 1, 2, 2]


def value(loss: Loss, student: torch.Tensor, teacher: torch.Tensor, **settings: Any) -> float:
    """Of rows of one token: (N, H) and (N, K), all in one group."""
    mask_BT = torch.ones(len(student), 1)
    found = loss(student.unsqueeze(1), teacher.unsqueeze(1), mask_BT, **{"group_size": len(student)} | settings)
    assert found.count == 1
    return found.total.item()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_relation
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_it_is_indifferent_to_rotation_and_scale_and_to_the_order_of_the_examples(
    loss: Loss, seed: int, scale: float
) -> None:
    student, teacher = normal(6, 5, seed=seed), normal(6, 8, seed=seed + 1)
    expected = value(loss, student, teacher)
    assert expected > 1e-4
    assert value(loss, student @ rotation(5, seed) * scale, teacher) == pytest.approx(expected)
    assert value(loss, student, teacher @ rotation(8, seed) / scale) == pytest.approx(expected)
    assert value(loss, student @ rotation(5, seed) * scale, student) == pytest.approx(0, abs=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert value(loss, student[order], teacher[order]) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_distances_and_angles_are_indifferent_to_a_shift(loss: Loss) -> None:
    student, teacher = normal(6, 5), normal(6, 8, seed=1)
    assert value(loss, student + 7, teacher) == pytest.approx(value(loss, student, teacher))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity_preserving])
def test_it_is_symmetric(loss: Loss) -> None:
    student, teacher = normal(6, 5), normal(6, 8, seed=1)
    assert value(loss, student, teacher) == pytest.approx(value(loss, teacher, student))


def test_large_differences_of_distance_count_linearly() -> None:
    """One pair of ten far apart: ψ is 100 / 10.9 there, 1 for the teacher; Huber, not squares."""
    teacher = torch.eye(5, dtype=torch.float64)
    student = torch.zeros(5, 1, dtype=torch.float64)
    student[0] = 1.0
    relative = [1 / 0.4] * 4 + [0.0] * 6
    expected = sum(abs(x - 1) - 0.5 if abs(x - 1) > 1 else (x - 1) ** 2 / 2 for x in relative) / 10
    assert value(rkd_distance, student, teacher) == pytest.approx(expected)


def test_an_angle_is_that_at_the_middle_example() -> None:
    """A right angle at one of three points against a line: cosines 0, 0.707, 0.707 and −1, 1, 1."""
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    expected = (0.5 + 2 * (1 - 0.5**0.5) ** 2 / 2) / 3
    assert value(rkd_angle, student, teacher) == pytest.approx(expected)


def test_where_examples_are_equal_in_one_model_their_angles_count_as_right_ones() -> None:
    """Each of the triplets of different examples counts; a side with itself, whose cosine would be 0 or 1, does not."""
    student, teacher = normal(5, 4), normal(5, 4, seed=1)
    student[3] = student[1]
    total = 0.0
    for i, j, k in itertools.permutations(range(5), 3):
        (one, other), (a, b) = ((x[i] - x[j], x[k] - x[j]) for x in (student, teacher))
        right = not one.any() or not other.any()
        cosine = 0.0 if right else (one @ other / one.norm() / other.norm()).item()
        total += huber(cosine - (a @ b / a.norm() / b.norm()).item())
    assert value(rkd_angle, student, teacher) == pytest.approx(total / 60)


def test_two_examples_have_one_distance_which_is_its_mean() -> None:
    assert value(rkd_distance, normal(2, 5), normal(2, 5, seed=1)) == 0


def test_equal_examples_in_one_model_alone_leave_a_finite_gradient_that_parts_them() -> None:
    student, teacher = normal(5, 4).requires_grad_(), normal(5, 4, seed=1)
    with torch.no_grad():
        student[3] = student[1]
    mask_BT = torch.ones(5, 1)
    for loss in LOSSES:
        total = loss(student.unsqueeze(1), teacher.unsqueeze(1), mask_BT, group_size=5).total
        (gradient,) = torch.autograd.grad(total, student)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_the_temperature_sharpens_similarities_and_scales_nothing(temperature: float) -> None:
    """A teacher whose neighbours are all alike: KL(uniform ‖ q) = log-mean-exp of s/T less its mean."""
    teacher, student = torch.eye(6, dtype=torch.float64), normal(6, 4)
    scores = torch.nn.functional.cosine_similarity(student.unsqueeze(0), student.unsqueeze(1), dim=-1) / temperature
    others = torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(scores)])
    expected = (others.exp().mean(1).log() - others.mean(1)).mean().item()
    found = value(in_batch_similarity, student, teacher, temperature=temperature)
    assert found == pytest.approx(expected)


def test_the_length_of_a_sentences_vector_says_nothing() -> None:
    student, teacher = normal(6, 4), normal(6, 5, seed=1)
    lengths = torch.linspace(0.1, 9, 6, dtype=torch.float64).unsqueeze(-1)
    expected = value(in_batch_similarity, student, teacher)
    assert value(in_batch_similarity, student * lengths, teacher) == pytest.approx(expected)


@every_relation
def test_a_gradient_leads_to_the_teachers_relations(loss: Loss) -> None:
    teacher_BTK, mask_BT = padded(rows(LENGTHS, 9, seed=1))
    student_BTH = padded(rows(LENGTHS, 8)).hidden_BTH.requires_grad_()
    values = []
    for step in range(80):
        found = loss(student_BTH, teacher_BTK, mask_BT, group_size=7)
        (gradient,) = torch.autograd.grad(found.total, student_BTH)
        values.append(found.total.item())
        with torch.no_grad():
            student_BTH[mask_BT] -= gradient[mask_BT] / gradient.norm() / (1 + step / 10)
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (rkd_distance, {"group_size": 1}, "group_size must be at least 2 for this loss, got 1"),
        (rkd_angle, {"group_size": 2}, "group_size must be at least 3"),
        (similarity_preserving, {"group_size": 1}, "group_size must be at least 2"),
        (in_batch_similarity, {"group_size": 2}, "group_size must be at least 3"),
        (rkd_angle, {"group_size": 0, "pool": "tokens"}, "group_size must be at least 1"),
        (rkd_angle, {"group_size": 4, "pool": "max"}, "pool must be first, last or mean, got 'max'"),
        (in_batch_similarity, {"group_size": 4, "temperature": 0.0}, "temperature must be positive, got 0"),
    ],
)
def test_settings_out_of_their_range_are_refused(loss: Loss, settings: dict[str, Any], message: str) -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 6))
    with pytest.raises(ValueError, match=message):
        partial(loss, **settings)(student_BTH, student_BTH, mask_BT)
