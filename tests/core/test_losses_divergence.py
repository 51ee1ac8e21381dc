"""Forward KL against float64 and finite differences, its identities, and the mistakes that others make."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import DIVERGENCES, LossSum, forward_kl, of_logits, soften, sum_over

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def reference(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    """T² Σ p log(p / q) in float64, by scipy."""
    p, q = (scipy.special.softmax(x.detach().double().numpy() / temperature, -1) for x in (teacher, student))
    return np.asarray(temperature**2 * scipy.special.rel_entr(p, q).sum(-1))


@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(1, 60),
    seed=st.integers(0, 99),
    dtype=DTYPES,
    temperature=st.floats(0.25, 8),
)
def test_the_value_is_that_of_float64_for_every_dtype(
    rows: int, vocabulary: int, seed: int, dtype: torch.dtype, temperature: float
) -> None:
    student, teacher = (logits(rows, vocabulary, seed=s).to(dtype) for s in (seed, seed + 1))
    value = soften(forward_kl, temperature)(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == (rows,)
    accuracy = 1e-9 if dtype == torch.float64 else 2e-4
    assert value.numpy() == pytest.approx(reference(student, teacher, temperature), rel=accuracy, abs=accuracy / 10)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 10.0])
def test_the_gradient_is_that_of_finite_differences(temperature: float) -> None:
    student, teacher = logits(2, 5).requires_grad_(), logits(2, 5, seed=1)
    soften(forward_kl, temperature)(student, teacher).sum().backward()

    def value(flat: np.ndarray) -> float:
        return float(reference(torch.from_numpy(flat.reshape(2, 5)), teacher, temperature).sum())

    expected = scipy.optimize.approx_fprime(student.detach().numpy().ravel(), value, 1e-7)
    assert student.grad is not None
    assert student.grad.numpy().ravel() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_temperature_squared_reaches_value_and_gradient(temperature: float) -> None:
    student, teacher = logits(3, 7).requires_grad_(), logits(3, 7, seed=1)
    soften(forward_kl, temperature)(student, teacher).sum().backward()
    p, q = (scipy.special.softmax(x.detach().numpy() / temperature, -1) for x in (teacher, student))
    assert student.grad is not None
    assert student.grad.numpy() == pytest.approx(temperature * (q - p), abs=1e-9)  # T² · (1/T) · (q − p)


def test_the_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    student, teacher = logits(3, 7).requires_grad_(), logits(3, 7, seed=1)
    sizes = []
    for temperature in (100.0, 1000.0):
        (gradient,) = torch.autograd.grad(soften(forward_kl, temperature)(student, teacher).sum(), student)
        sizes.append(gradient.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        soften(forward_kl, temperature)


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), vocabulary=st.integers(1, 40))
def test_it_is_zero_where_the_distributions_agree_unlike_a_cross_entropy(
    seed: int, shift: float, vocabulary: int
) -> None:
    student = (logits(4, vocabulary, seed=seed) + shift).requires_grad_()
    value = forward_kl(student, logits(4, vocabulary, seed=seed))
    value.sum().backward()
    assert student.grad is not None
    assert value.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


@given(seed=st.integers(0, 99), vocabulary=st.integers(2, 40))
def test_it_is_never_negative_and_indifferent_to_the_order_of_the_vocabulary(seed: int, vocabulary: int) -> None:
    student, teacher = logits(3, vocabulary, seed=seed).float(), logits(3, vocabulary, seed=seed + 1).float()
    value = forward_kl(student, teacher)
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    assert (value > -1e-6).all()
    torch.testing.assert_close(forward_kl(student[:, order], teacher[:, order]), value, rtol=1e-5, atol=1e-6)


def test_it_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    p = scipy.special.softmax(teacher.numpy(), -1)
    cross_entropy = -(p * scipy.special.log_softmax(student.numpy(), -1)).sum(-1)
    assert forward_kl(student, teacher).numpy() == pytest.approx(cross_entropy - scipy.special.entr(p).sum(-1))


def test_it_is_the_divergence_from_the_teacher_and_not_to_it() -> None:
    student, teacher = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    assert forward_kl(student, teacher).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert forward_kl(teacher, student).item() == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5))


@pytest.mark.parametrize("ruled_out", [[3], [0, 1, 2, 4]])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_tokens_that_the_teacher_rules_out_give_finite_values_and_gradients(
    ruled_out: list[int], temperature: float
) -> None:
    student, teacher = logits(2, 5).requires_grad_(), logits(2, 5, seed=1)
    teacher[:, ruled_out] = -math.inf
    value = soften(forward_kl, temperature)(student, teacher)
    value.sum().backward()
    assert value.detach().numpy() == pytest.approx(reference(student, teacher, temperature))
    p, q = (scipy.special.softmax(x.detach().numpy() / temperature, -1) for x in (teacher, student))
    assert student.grad is not None
    assert student.grad.numpy() == pytest.approx(temperature * (q - p))


def test_tokens_that_both_rule_out_give_no_nan() -> None:
    student, teacher = logits(2, 5), logits(2, 5, seed=1)
    student[:, 3] = teacher[:, 3] = -math.inf
    student.requires_grad_()
    value = forward_kl(student, teacher)
    value.sum().backward()
    keep = [0, 1, 2, 4]
    assert value.detach().numpy() == pytest.approx(reference(student[:, keep], teacher[:, keep]))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_token_that_only_the_student_rules_out_is_infinitely_far() -> None:
    student, teacher = logits(1, 4), logits(1, 4, seed=1)
    student[:, 2] = -math.inf
    assert forward_kl(student, teacher).item() == math.inf


def test_huge_logits_do_not_overflow() -> None:
    student, teacher = logits(3, 6, scale=1e4).float().requires_grad_(), logits(3, 6, seed=1, scale=1e4).float()
    value = forward_kl(student, teacher)
    value.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    log_q, log_p = (scipy.special.log_softmax(x.detach().double().numpy(), -1) for x in (student, teacher))
    assert value.detach().numpy() == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bf16_logits_over_32k_tokens_give_the_kl_and_gradient_of_a_softmax_in_fp32(temperature: float) -> None:
    teacher = logits(8, 32_000, scale=2.0).bfloat16()
    student = (teacher.double() + logits(8, 32_000, seed=1, scale=0.1)).bfloat16().requires_grad_()
    divergence = soften(forward_kl, temperature)
    value = divergence(student, teacher)
    value.sum().backward()
    exact = student.detach().double().requires_grad_()
    expected = divergence(exact, teacher.double())
    expected.sum().backward()
    assert value.detach().numpy() == pytest.approx(reference(student, teacher, temperature), rel=1e-3)
    assert student.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=2**-7, atol=1e-9)  # rounded once, to bf16


def test_the_teacher_carries_no_gradient() -> None:
    student, teacher = logits(2, 5).requires_grad_(), logits(2, 5, seed=1).requires_grad_()
    sum_over(forward_kl, student, teacher).total.backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    "divergence", [partial(of_logits, row.make()) for row in DIVERGENCES.values()], ids=DIVERGENCES
)
def test_no_row_gives_zero_with_a_graph(divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    student = logits(4, 5).requires_grad_()
    loss = sum_over(soften(divergence, 2.0), student[:0], logits(0, 5))
    loss.total.backward()
    assert loss.total.item() == 0
    assert loss.count == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_a_sum_counts_rows_and_is_divided_by_nothing() -> None:
    student, teacher = logits(6, 9), logits(6, 9, seed=1)
    loss = sum_over(forward_kl, student, teacher)
    assert loss.count == 6
    assert loss.total.item() == pytest.approx(reference(student, teacher).sum())


@pytest.mark.parametrize(
    "divergence", [partial(of_logits, row.make()) for row in DIVERGENCES.values()], ids=DIVERGENCES
)
@given(cuts=st.lists(st.integers(0, 12), max_size=6), temperature=st.sampled_from([1.0, 2.0]))
def test_cutting_a_batch_changes_neither_loss_nor_gradient(
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], cuts: list[int], temperature: float
) -> None:
    student, teacher = logits(12, 9).float().requires_grad_(), logits(12, 9, seed=1).float()
    softened = soften(divergence, temperature)
    whole = sum_over(softened, student, teacher)
    (expected,) = torch.autograd.grad(whole.total / whole.count, student)
    bounds = [0, *sorted(cuts), 12]
    parts = [sum_over(softened, student[start:end], teacher[start:end]) for start, end in itertools.pairwise(bounds)]
    cut = sum(parts[1:], parts[0])
    assert cut.count == whole.count == 12
    torch.testing.assert_close(cut.total, whole.total, rtol=1e-6, atol=0)
    (actual,) = torch.autograd.grad(cut.total / cut.count, student)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_sums_of_two_batches_add_up() -> None:
    both = LossSum(torch.tensor(2.0), 3) + LossSum(torch.tensor(0.5), 1)
    assert both.total.item() == 2.5
    assert both.count == 4


@pytest.mark.parametrize(
    "divergence", [partial(of_logits, row.make()) for row in DIVERGENCES.values()], ids=DIVERGENCES
)
def test_vocabularies_of_different_sizes_are_refused_and_never_padded(
    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(ValueError, match="size"):
        divergence(logits(2, 5), logits(2, 7))
