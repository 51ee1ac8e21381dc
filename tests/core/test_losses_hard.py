"""Cross-entropy against float64 and finite differences; rows without a label count for nothing."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import cross_entropy, hard_sum
from entrenar_core.losses.hard import IGNORED


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def labels(rows: int, classes: int, seed: int) -> torch.Tensor:
    """About a third of the rows have none."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, classes, rows)
    return torch.from_numpy(np.where(random.random(rows) < 1 / 3, IGNORED, drawn))


def reference(student: np.ndarray, labels_N: torch.Tensor) -> np.ndarray:
    log_p = scipy.special.log_softmax(student, -1)
    return np.array([0.0 if label == IGNORED else -log_p[row, label] for row, label in enumerate(labels_N.tolist())])


@given(
    rows=st.integers(1, 9),
    classes=st.integers(1, 40),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_value_is_that_of_float64_for_every_dtype(rows: int, classes: int, seed: int, dtype: torch.dtype) -> None:
    student, targets = logits(rows, classes, seed=seed).to(dtype), labels(rows, classes, seed)
    value, loss = cross_entropy(student, targets), hard_sum(student, targets)
    expected = reference(student.double().numpy(), targets)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert loss.total.item() == pytest.approx(expected.sum(), rel=1e-5, abs=1e-5)
    assert loss.count == sum(label != IGNORED for label in targets.tolist())


def test_the_gradient_is_that_of_finite_differences_and_zero_without_a_label() -> None:
    student, targets = logits(4, 5).requires_grad_(), torch.tensor([2, IGNORED, 0, 4])
    hard_sum(student, targets).total.backward()

    def value(flat: np.ndarray) -> float:
        return float(reference(flat.reshape(4, 5), targets).sum())

    expected = scipy.optimize.approx_fprime(student.detach().numpy().ravel(), value, 1e-7)
    assert student.grad is not None
    assert student.grad.numpy().ravel() == pytest.approx(expected, abs=1e-5)
    assert not student.grad[1].any()


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothing_gives_a_part_of_the_label_to_all_classes(smoothing: float) -> None:
    student, targets = logits(6, 5).requires_grad_(), torch.tensor([2, IGNORED, 0, 4, 4, IGNORED])
    hard_sum(student, targets, smoothing=smoothing).total.backward()
    has_label = (targets != IGNORED).numpy()
    wanted = (1 - smoothing) * np.eye(5)[targets.clamp(min=0)] + smoothing / 5

    def value(flat: np.ndarray) -> np.ndarray:
        return np.asarray(has_label * -(wanted * scipy.special.log_softmax(flat.reshape(6, 5), -1)).sum(-1))

    flat = student.detach().numpy().ravel()
    assert cross_entropy(student, targets, smoothing=smoothing).detach().numpy() == pytest.approx(value(flat))
    expected = scipy.optimize.approx_fprime(flat, lambda x: float(value(x).sum()), 1e-7)
    assert student.grad is not None
    assert student.grad.numpy().ravel() == pytest.approx(expected, abs=1e-5)


def test_bf16_logits_over_32k_tokens_give_the_gradient_of_a_softmax_in_fp32() -> None:
    student, targets = logits(4, 32_000).bfloat16().requires_grad_(), torch.tensor([5, 31_999, IGNORED, 0])
    loss = hard_sum(student, targets)
    loss.total.backward()
    exact = student.detach().double().numpy()
    gradient = scipy.special.softmax(exact, -1)
    gradient[[0, 1, 3], [5, 31_999, 0]] -= 1
    gradient[2] = 0
    assert loss.total.item() == pytest.approx(reference(exact, targets).sum(), rel=1e-5)
    assert student.grad is not None
    torch.testing.assert_close(student.grad.double(), torch.from_numpy(gradient), rtol=2**-7, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_label_gives_zero_with_a_graph(rows: int) -> None:
    student = logits(3, 5).requires_grad_()
    loss = hard_sum(student[:rows], torch.full((rows,), IGNORED))
    loss.total.backward()
    assert loss.total.item() == 0
    assert loss.count == 0
    assert student.grad is not None
    assert not student.grad.any()


@given(cuts=st.lists(st.integers(0, 12), max_size=6), seed=st.integers(0, 99))
def test_cutting_a_batch_with_missing_labels_changes_neither_loss_nor_gradient(cuts: list[int], seed: int) -> None:
    student, targets = logits(12, 9, seed=seed).float().requires_grad_(), labels(12, 9, seed)
    targets[0] = 3
    whole = hard_sum(student, targets)
    (expected,) = torch.autograd.grad(whole.total / whole.count, student)
    bounds = [0, *sorted(cuts), 12]
    parts = [hard_sum(student[a:b], targets[a:b]) for a, b in itertools.pairwise(bounds)]
    cut = sum(parts[1:], parts[0])
    assert cut.count == whole.count
    (actual,) = torch.autograd.grad(cut.total / cut.count, student)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()
