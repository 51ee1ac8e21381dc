"""Losses between hidden states: what they are indifferent to, their limits, and CKA on many and on few examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hidden_references as references
from entrenar_core.losses import attention_maps, cka, cka_matrix, hidden_cosine, hidden_mse, linear_cka, patient
from entrenar_core.losses.geometry import unit
from ragged import Side, padded, rotation, rows

LENGTHS = [4, 2, 0, 5, 3, 1]
SEEDS = st.integers(0, 99)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_mse_is_a_mean_over_the_width_and_a_sum_over_tokens() -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 6))
    loss = hidden_mse(student_BTH + 0.5, student_BTH, mask_BT)
    assert loss.total.item() == pytest.approx(15 * 0.25)
    assert loss.count == 15


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-0.2, 2.0)])
def test_a_cosine_sees_directions_alone(factor: float, expected: float) -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 6))
    loss = hidden_cosine(student_BTH * factor, student_BTH, mask_BT)
    assert loss.total.item() == pytest.approx(15 * expected)


def test_a_cosine_near_one_keeps_its_digits_in_fp32() -> None:
    """1 − cos would be a multiple of 6e-8."""
    student_BTH, mask_BT = padded(rows([50], 64))
    teacher_BTH = student_BTH + 1e-5 * normal(1, 50, 64)
    exact = hidden_cosine(student_BTH, teacher_BTH, mask_BT).total.item()
    single = hidden_cosine(student_BTH.float(), teacher_BTH.float(), mask_BT).total.item()
    assert exact / 50 < 1e-9
    assert single == pytest.approx(exact, rel=0.02)


def test_a_token_of_zeros_has_no_direction_to_learn() -> None:
    student_BTH, mask_BT = torch.zeros(1, 2, 4).requires_grad_(), torch.ones(1, 2)
    loss = hidden_cosine(student_BTH, torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0] * 4]]), mask_BT)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0.5)
    assert student_BTH.grad is not None
    assert not student_BTH.grad.any()
    assert torch.equal(unit(torch.tensor([[3.0, 4.0], [1e-13, 0.0]])), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_patient_compares_the_first_real_token_on_whichever_side_the_padding_is(side: Side) -> None:
    student, teacher = rows(LENGTHS, 6), rows(LENGTHS, 6, seed=1)
    for student_row, teacher_row in zip(student, teacher, strict=True):
        teacher_row[:1] = 2 * student_row[:1]
    student_BTH, mask_BT = padded(student, side=side, extra=2)
    teacher_BTH = padded(teacher, side=side, extra=2).hidden_BTH
    assert patient(student_BTH, teacher_BTH, mask_BT).total.item() == pytest.approx(0, abs=1e-12)
    assert patient(student_BTH, teacher_BTH, mask_BT).count == 5
    assert patient(student_BTH, teacher_BTH, mask_BT, pool="last").total > 0.1


@given(seed=SEEDS, power=st.sampled_from([1, 2, 4.0]), scale=st.floats(0.1, 10))
def test_maps_of_activations_see_where_and_not_how_much(seed: int, power: float, scale: float) -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 6, seed))
    teacher_BTK = padded(rows(LENGTHS, 9, seed + 1)).hidden_BTH
    loss = attention_maps(student_BTH, teacher_BTK, mask_BT, power=power)
    assert attention_maps(teacher_BTK, student_BTH, mask_BT, power=power).total.item() == pytest.approx(
        loss.total.item()
    )
    scaled = attention_maps(student_BTH * scale, teacher_BTK, mask_BT, power=power)
    assert scaled.total.item() == pytest.approx(loss.total.item())
    turned = attention_maps(student_BTH @ rotation(6), teacher_BTK, mask_BT, power=2)
    assert turned.total.item() == pytest.approx(attention_maps(student_BTH, teacher_BTK, mask_BT).total.item())


@given(seed=SEEDS, examples=st.integers(4, 40), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_cka_is_symmetric_and_indifferent_to_rotation_scale_and_shift(
    seed: int, examples: int, scale: float, shift: float
) -> None:
    """Of 4 to 40 examples with 8 and 13 dimensions: with and without a matrix of all pairs."""
    one, other = normal(examples, 8, seed=seed), normal(examples, 13, seed=seed + 1)
    value = linear_cka(one, other).item()
    assert value <= 1 + 1e-9
    assert linear_cka(other, one).item() == pytest.approx(value)
    assert linear_cka(one @ rotation(8, seed) * scale + shift, other).item() == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert linear_cka(one, (one @ rotation(8, seed)) * -scale - shift).item() == pytest.approx(1)


@given(seed=SEEDS, examples=st.integers(4, 24), widths=st.tuples(st.integers(2, 12), st.integers(2, 12)))
def test_cka_is_that_of_the_definition(seed: int, examples: int, widths: tuple[int, int]) -> None:
    one, other = normal(examples, widths[0], seed=seed) + 1, normal(examples, widths[1], seed=seed + 1) - 2
    other[:, 0] += one[:, 0]
    expected = references.cka(one.numpy(), other.numpy())
    assert linear_cka(one, other).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert linear_cka(one.float(), other.float()).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert linear_cka(one.float(), other).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert cka_matrix([one], [other]).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_cka_of_unrelated_vectors_is_zero_on_average_however_few_they_are() -> None:
    """The biased estimate is near 1 for 8 examples of 256 dimensions, and would hide what a student lacks."""
    values = [linear_cka(normal(8, 256, seed=2 * i), normal(8, 200, seed=2 * i + 1)).item() for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    assert np.std(values) < 0.4

    def centred(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)

    one, other = centred(normal(8, 256)), centred(normal(8, 200, seed=1))
    norms = (one.T @ one).norm() * (other.T @ other).norm()
    assert (one.T @ other).square().sum() / norms > 0.9, "the biased one"


@pytest.mark.parametrize("examples", [6, 300])
def test_cka_keeps_its_digits_beside_a_large_mean(examples: int) -> None:
    """Hidden states of language models have dimensions that are a thousand times larger than others."""
    one, other = normal(examples, 32), normal(examples, 48, seed=1)
    other[:, :32] += one
    one[:, 3] += 300
    other[:, 7] -= 200
    exact = references.cka(one.numpy(), other.numpy())
    assert linear_cka(one.float(), other.float()).item() == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("examples", [5, 40])
def test_cka_without_a_difference_between_examples_is_zero(examples: int) -> None:
    for dtype in (torch.float32, torch.float64):
        equal = (normal(1, 8).to(dtype) * 100).expand(examples, 8).clone()
        outlier = equal.clone()
        outlier[2] += 1
        for degenerate in (equal, outlier, torch.zeros(examples, 8, dtype=dtype)):
            degenerate.requires_grad_()
            value = linear_cka(degenerate, normal(examples, 6, seed=1).to(dtype))
            (gradient,) = torch.autograd.grad(value, degenerate)
            assert value.item() == 0
            assert not gradient.any()


def test_a_gradient_of_cka_leads_to_the_teacher() -> None:
    teacher_BTK, mask_BT = padded(rows([3] * 16, 12, seed=1))
    student_BTH = padded(rows([3] * 16, 6)).hidden_BTH.requires_grad_()
    losses = []
    for _ in range(60):
        loss = cka(student_BTH, teacher_BTK, mask_BT, group_size=8)
        (gradient,) = torch.autograd.grad(loss.total, student_BTH)
        losses.append(loss.total.item() / loss.count)
        with torch.no_grad():
            student_BTH[mask_BT] -= 0.5 * gradient[mask_BT] / gradient.norm()
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


def test_a_matrix_of_cka_has_a_row_for_every_layer_of_the_student() -> None:
    students, teachers = [normal(20, 6, seed=s) for s in (0, 1)], [normal(20, 9, seed=s) for s in (2, 3, 4)]
    students[1][:, :3] = teachers[2][:, :3]
    found = cka_matrix([layer.requires_grad_() for layer in students], teachers)
    assert found.shape == (2, 3)
    assert not found.requires_grad
    for s, t in np.ndindex(2, 3):
        assert found[s, t].item() == pytest.approx(linear_cka(students[s], teachers[t]).item())
    assert found[1].argmax() == 2
    half = cka_matrix([layer.detach().half() for layer in students], [layer.bfloat16() for layer in teachers])
    torch.testing.assert_close(half.double(), found, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([normal(3, 5)], [normal(3, 5)], "at least 4 examples, got 3"),
        ([normal(5, 5)], [normal(6, 5)], "the same examples: there are 5 and 6"),
        ([], [], "there are none"),
    ],
)
def test_examples_that_cka_cannot_compare_are_refused(
    one: list[torch.Tensor], other: list[torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cka_matrix(one, other)
    if one:
        with pytest.raises(ValueError, match=message):
            linear_cka(one[0], other[0])


def test_settings_out_of_their_range_are_refused() -> None:
    student_BTH, mask_BT = padded(rows(LENGTHS, 6))
    with pytest.raises(ValueError, match=r"power must be at least 1, got 0.5"):
        attention_maps(student_BTH, student_BTH, mask_BT, power=0.5)
    with pytest.raises(ValueError, match="group_size must be at least 4 for this loss, got 3"):
        cka(student_BTH, student_BTH, mask_BT, group_size=3)
    with pytest.raises(ValueError, match="pool must be first, last or mean, got 'max'"):
        patient(student_BTH, student_BTH, mask_BT, pool="max")  # type: ignore[arg-type]
