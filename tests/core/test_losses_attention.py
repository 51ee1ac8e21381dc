"""Attention losses against loops in float64, finite differences, and what padding, cuts and precision must keep."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import LossSum
from entrenar_core.losses.attention import (
    LearnedHeadWeights,
    allowed_keys,
    attention_kl,
    attention_mse,
    head_weights,
    log_probs,
    map_heads,
    scaled_products,
)
from ragged import masks

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
Loss = Callable[..., LossSum]
Pairs = list[tuple[int, list[int]]]
both = pytest.mark.parametrize("loss", [attention_kl, attention_mse])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).to(dtype)


def distribution(scores: list[float]) -> list[float]:
    exponents = [math.exp(score - max(scores)) for score in scores]
    return [exponent / sum(exponents) for exponent in exponents]


def focus(p: list[float], kind: str) -> float:
    n = len(p)
    if kind == "entropy":
        return 1 + sum(x * math.log(x) for x in p if x) / math.log(n)
    return float(np.var(p)) / ((1 - 1 / n) / n)  # the variance of a distribution on one key is (1 − 1/n) / n


def reference(
    loss: Loss, student: torch.Tensor, teacher: torch.Tensor, allowed: torch.Tensor, pairs: Pairs, kind: str = "uniform"
) -> tuple[float, int]:
    """Row by row, query by query, head by head, key by key."""
    total, count = 0.0, 0
    student_lists, teacher_lists, allowed_lists = student.tolist(), teacher.tolist(), allowed.tolist()
    for row in range(len(student)):
        values: list[list[float]] = []
        focuses: list[list[float]] = []
        for query in range(student.shape[2]):
            keys = [key for key in range(student.shape[3]) if allowed_lists[row][query][key]]
            if not keys:
                continue
            count += 1
            values.append([])
            focuses.append([])
            for own, theirs in pairs:
                s = [student_lists[row][own][query][key] for key in keys]
                t = [[teacher_lists[row][head][query][key] for key in keys] for head in theirs]
                p = [sum(column) / len(theirs) for column in zip(*map(distribution, t), strict=True)]
                if loss is attention_kl:
                    q = distribution(s)
                    values[-1].append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a))
                else:
                    means = [sum(column) / len(theirs) for column in zip(*t, strict=True)]
                    values[-1].append(sum((a - b) ** 2 for a, b in zip(s, means, strict=True)) / len(keys))
                focuses[-1].append(focus(p, kind) if kind != "uniform" and len(keys) > 1 else math.nan)
        if values:
            even = kind == "uniform" or bool(np.isnan(focuses).all())  # one key tells nothing about focus
            means = np.ones(len(pairs)) if even else np.nanmean(np.array(focuses), 0)
            total += float((np.array(values) @ (means / means.sum())).sum())
    return total, count


def grouped(heads: int, teacher_heads: int) -> Pairs:
    if teacher_heads % heads == 0:
        return [(h, [h * teacher_heads // heads + i for i in range(teacher_heads // heads)]) for h in range(heads)]
    return [(h, [int(h * teacher_heads / heads)]) for h in range(heads)]


@both
@given(
    heads=st.integers(1, 6),
    teacher_heads=st.integers(1, 6),
    kind=st.sampled_from(["uniform", "entropy", "variance"]),
    causal=st.booleans(),
    window=st.sampled_from([None, 2]),
    mask=masks(5),
    seed=st.integers(0, 99),
    dtype=DTYPES,
)
def test_agrees_with_loops_in_float64(
    loss: Loss,
    heads: int,
    teacher_heads: int,
    kind: Any,
    causal: bool,
    window: int | None,
    mask: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
) -> None:
    student = normal(len(mask), heads, 5, 5, seed=seed, dtype=dtype)
    teacher = normal(len(mask), teacher_heads, 5, 5, seed=seed + 1, dtype=dtype)
    allowed = allowed_keys(mask, causal, window)
    actual = loss(student, teacher, allowed, weights=kind)
    total, count = reference(loss, student, teacher, allowed, grouped(heads, teacher_heads), kind)
    assert actual.count == count == mask.sum()
    accuracy = 1e-9 if dtype == torch.float64 else 1e-4
    assert actual.total.item() == pytest.approx(total, rel=accuracy, abs=accuracy)


@both
@given(seed=st.integers(0, 99))
def test_any_keys_may_be_allowed_such_as_those_that_are_no_query_themselves(loss: Loss, seed: int) -> None:
    student, teacher, allowed = normal(3, 2, 5, 5, seed=seed), normal(3, 4, 5, 5, seed=seed + 1), normal(3, 5, 5) > 1
    allowed = allowed[:, torch.randperm(5, generator=torch.Generator().manual_seed(seed))]
    allowed[0, :4], allowed[0, 4], allowed[1, :, 2] = False, True, False
    actual = loss(student, teacher, allowed)
    total, count = reference(loss, student, teacher, allowed, grouped(2, 4))
    assert actual.count == count
    assert actual.total.item() == pytest.approx(total, rel=1e-9)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_32_bits(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher = normal(3, 4, 5, 5, dtype=dtype).requires_grad_(), normal(3, 2, 5, 5, seed=1, dtype=dtype)
    allowed = allowed_keys(MASK, causal=True)
    actual = loss(student, teacher, allowed)
    actual.total.backward()
    exact = student.detach().double().requires_grad_()
    expected = loss(exact, teacher.double(), allowed)
    expected.total.backward()
    assert actual.total.dtype == torch.float32
    assert actual.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    assert student.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(student.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@both
def test_autocast_changes_nothing(loss: Loss) -> None:
    student, teacher = (normal(3, 2, 5, 5, seed=seed, dtype=torch.float32) for seed in (0, 1))
    allowed, weights = allowed_keys(MASK, causal=True), LearnedHeadWeights(2)
    expected = loss(student, teacher, allowed, weights=weights()).total
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(student, teacher, allowed, weights=weights()).total
        entropy = loss(student, teacher, allowed, weights="entropy").total
    assert torch.equal(actual, expected)
    assert torch.equal(entropy, loss(student, teacher, allowed, weights="entropy").total)


@both
@pytest.mark.parametrize(
    ("heads", "teacher_heads", "how"), [(2, 4, "grouped"), (4, 2, "auto"), (2, 3, "auto"), (3, 2, [(0, 1), (0, 0)])]
)
def test_the_gradient_is_that_of_finite_differences(loss: Loss, heads: int, teacher_heads: int, how: Any) -> None:
    student, teacher = normal(2, heads, 4, 4).requires_grad_(), normal(2, teacher_heads, 4, 4, seed=1)
    allowed = allowed_keys(MASK[1:, 1:], causal=False)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, allowed, heads=how, weights="entropy").total, student)


@both
@given(seed=st.integers(0, 99), shift=st.floats(-20, 20))
def test_it_is_zero_where_student_and_teacher_agree(loss: Loss, seed: int, shift: float) -> None:
    teacher = normal(3, 4, 5, 5, seed=seed)
    student = (teacher + (shift if loss is attention_kl else 0)).requires_grad_()
    actual = loss(student, teacher, allowed_keys(MASK, causal=True))
    actual.total.backward()
    assert actual.total.abs() < 1e-11
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-11


def test_only_the_scores_see_a_constant_added_to_a_query() -> None:
    teacher, allowed = normal(3, 4, 5, 5), allowed_keys(MASK, causal=True)
    student = teacher + normal(3, 4, 5, 1, seed=1)
    assert attention_kl(student, teacher, allowed).total < 1e-12
    assert attention_mse(student, teacher, allowed).total > 1


def test_equal_heads_give_zero_whatever_their_number() -> None:
    one, allowed = normal(3, 1, 5, 5), allowed_keys(MASK, causal=False)
    for loss, heads, teacher_heads in itertools.product((attention_kl, attention_mse), (2, 3, 4), (1, 2, 3, 8)):
        found = loss(one.expand(-1, heads, -1, -1), one.expand(-1, teacher_heads, -1, -1), allowed)
        assert found.total.abs() < 1e-12


def test_teacher_heads_are_averaged_as_distributions_for_kl_and_as_scores_for_mse() -> None:
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    teacher = torch.stack([p.log(), q.log()])[None, :, None].expand(1, 2, 2, 2)
    even, allowed = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert attention_kl(even, teacher, allowed).total.abs() < 1e-6
    assert attention_kl(even, teacher[:, :1], allowed).total.item() == pytest.approx(2 * 0.368064, rel=1e-5)
    scores = torch.tensor([[1.0, 3.0], [3.0, 5.0]])[None, :, None].expand(1, 2, 2, 2)
    assert attention_mse(torch.tensor([2.0, 4.0]).expand(1, 1, 2, 2), scores, allowed).total == 0
    assert attention_mse(even, scores, allowed).total.item() == 2 * (4 + 16) / 2


def padded(scores: torch.Tensor, before: int, after: int, content: float) -> torch.Tensor:
    return torch.nn.functional.pad(scores, (before, after, before, after), value=content)


@both
@given(
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    content=st.sampled_from([0.0, 3e4, math.nan, math.inf, -math.inf]),
    causal=st.booleans(),
    kind=st.sampled_from(["uniform", "entropy"]),
)
def test_padding_changes_no_bit_of_loss_and_gradient(
    loss: Loss, before: int, after: int, content: float, causal: bool, kind: Any
) -> None:
    student, teacher = (normal(2, 4, 6, 6, seed=seed, dtype=torch.float32) for seed in (0, 1))
    student.requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.long)
    plain = loss(student, teacher, allowed_keys(mask, causal, 4), weights=kind)
    (expected,) = torch.autograd.grad(plain.total, student)
    wide = padded(student, before, after, content)
    allowed = allowed_keys(torch.nn.functional.pad(mask, (before, after)), causal, 4)
    actual = loss(wide, padded(teacher, before, after, content), allowed, weights=kind)
    whole, found = torch.autograd.grad(actual.total, [wide, student])
    assert actual.count == plain.count == 12
    assert torch.equal(actual.total, plain.total)
    assert torch.equal(found, expected)
    assert torch.equal(whole, padded(expected, before, after, 0.0)), "padding has a gradient"


@both
@given(cuts=st.lists(st.integers(0, 6), max_size=4), kind=st.sampled_from(["uniform", "entropy", "variance"]))
def test_cutting_a_ragged_batch_changes_neither_loss_nor_gradient(loss: Loss, cuts: list[int], kind: Any) -> None:
    student, teacher = (normal(6, 2, 5, 5, seed=seed, dtype=torch.float32) for seed in (0, 1))
    student.requires_grad_()
    allowed = allowed_keys(torch.arange(5) < torch.tensor([5, 1, 3, 0, 4, 2])[:, None], causal=True)
    whole = loss(student, teacher, allowed, weights=kind)
    bounds = [0, *sorted(cuts), 6]
    parts = [loss(student[a:b], teacher[a:b], allowed[a:b], weights=kind) for a, b in itertools.pairwise(bounds)]
    cut = sum(parts[1:], parts[0])
    assert cut.count == whole.count == 15
    (expected,) = torch.autograd.grad(whole.total / whole.count, student)
    (actual,) = torch.autograd.grad(cut.total / cut.count, student)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@both
@pytest.mark.parametrize("content", [1.0, math.nan])
@pytest.mark.parametrize("rows", [0, 2])
def test_no_real_token_gives_zero_with_a_graph(loss: Loss, content: float, rows: int) -> None:
    student = torch.full((rows, 2, 3, 3), content, dtype=torch.bfloat16).requires_grad_()
    actual = loss(student, student.detach(), allowed_keys(torch.zeros(rows, 3), causal=False))
    actual.total.backward()
    assert (actual.total.item(), actual.count) == (0, 0)
    assert actual.total.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


@both
def test_the_teacher_carries_no_gradient(loss: Loss) -> None:
    student, teacher = normal(3, 4, 5, 5).requires_grad_(), normal(3, 2, 5, 5, seed=1).requires_grad_()
    loss(student, teacher, allowed_keys(MASK, causal=True), weights="entropy").total.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_keys_that_the_teacher_rules_out_give_finite_values_and_gradients() -> None:
    student, teacher = normal(3, 2, 5, 5).requires_grad_(), normal(3, 4, 5, 5, seed=1)
    teacher[:, :, :, 2] = -math.inf
    allowed = allowed_keys(MASK, causal=False)
    actual = attention_kl(student, teacher, allowed, weights="entropy")
    actual.total.backward()
    expected, _ = reference(attention_kl, student, teacher, allowed, grouped(2, 4), "entropy")
    assert actual.total.item() == pytest.approx(expected)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_scores_beyond_the_exponential_do_not_overflow() -> None:
    student, teacher = (normal(3, 2, 5, 5, seed=seed, dtype=torch.float32) * 1e4 for seed in (0, 1))
    student.requires_grad_()
    actual = attention_kl(student, teacher, allowed_keys(MASK, causal=True))
    actual.total.backward()
    expected = attention_kl(student.detach().double(), teacher.double(), allowed_keys(MASK, causal=True))
    assert actual.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


# ── Which keys ──


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    left=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 7),
)
def test_allowed_keys_are_real_not_ahead_and_near(
    lengths: list[int], left: bool, causal: bool, window: int | None
) -> None:
    mask = torch.stack([torch.tensor(([0] * (6 - n) + [1] * n)[:: 1 if left else -1]) for n in lengths])
    allowed = allowed_keys(mask, causal, window)
    for row, query, key in itertools.product(range(len(lengths)), range(6), range(6)):
        real = bool(mask[row, query]) and bool(mask[row, key])
        seen = key in range(query + 1) if causal else True
        near = window is None or (key in range(query - window + 1, query + window))
        assert allowed[row, query, key].item() == (real and seen and near)
    assert torch.equal(allowed, allowed_keys(mask.bool(), causal, window))


def test_a_window_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be positive, got 0"):
        allowed_keys(MASK, causal=True, window=0)


# ── Heads ──


def test_heads_are_mapped_in_contiguous_groups_or_evenly() -> None:
    assert map_heads("grouped", 2, 6).teacher == ((0, 1, 2), (3, 4, 5))
    assert map_heads("grouped", 4, 2).teacher == ((0,), (0,), (1,), (1,))
    assert map_heads("auto", 3, 3).teacher == ((0,), (1,), (2,))
    assert map_heads("auto", 2, 6) == map_heads("grouped", 2, 6)
    assert map_heads("auto", 4, 6).teacher == ((0,), (1,), (3,), (4,))
    assert map_heads("auto", 5, 3).teacher == ((0,), (0,), (1,), (1,), (2,))
    assert map_heads([(1, 0), (1, 2)], 2, 3).student == (1, 1)
    assert map_heads([(1, 0), (1, 2)], 2, 3).teacher == ((0,), (2,))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("grouped", "3 teacher heads and 2 student heads do not divide"),
        ([], "at least one pair"),
        ([(0, 0), (2, 0)], r"no pair of heads \(2, 0\): the student's are 0 to 1, the teacher's 0 to 2"),
        ([(0, 3)], r"no pair of heads \(0, 3\)"),
        ([(-1, 0)], r"no pair of heads \(-1, 0\)"),
        ([(0, -1)], r"no pair of heads \(0, -1\)"),
        ("nearest", "got `nearest`"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(heads: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_heads(heads, 2, 3)


@both
def test_explicit_pairs_compare_just_those(loss: Loss) -> None:
    student, teacher, allowed = normal(3, 2, 5, 5), normal(3, 3, 5, 5, seed=1), allowed_keys(MASK, causal=False)
    found = loss(student, teacher, allowed, heads=[(1, 2), (0, 2), (1, 0)])
    expected, _ = reference(loss, student, teacher, allowed, [(1, [2]), (0, [2]), (1, [0])])
    assert found.total.item() == pytest.approx(expected)
    one = loss(student, teacher, allowed, heads=[[1, 0]]).total  # as a file has them
    assert torch.equal(one, loss(student[:, 1:], teacher[:, :1], allowed).total)


@given(seed=st.integers(0, 99), kind=st.sampled_from(["uniform", "entropy", "variance"]))
def test_weights_of_heads_are_of_each_row_alone_and_sum_to_one(seed: int, kind: Any) -> None:
    allowed = allowed_keys(torch.cat([MASK, torch.zeros(1, 5)]), causal=True)
    log_p = log_probs(normal(4, 3, 5, 5, seed=seed), allowed[:, None])
    weights = head_weights(log_p, allowed, kind)
    assert weights.shape == (4, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64))
    assert (weights >= 0).all()
    for row in range(4):
        torch.testing.assert_close(head_weights(log_p[row], allowed[row], kind), weights[row])
    torch.testing.assert_close(weights[3], torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["entropy", "variance"])
def test_a_head_that_looks_at_one_key_gets_all_the_weight_beside_one_that_looks_at_all(kind: Any) -> None:
    allowed = torch.ones(1, 4, 4, dtype=torch.bool)
    scores = torch.stack([torch.zeros(4, 4), torch.eye(4) * 1e4])[None]
    weights = head_weights(log_probs(scores, allowed[:, None]), allowed, kind)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]))
    even = head_weights(log_probs(scores * 0, allowed[:, None]), allowed, kind)
    torch.testing.assert_close(even, torch.tensor([[0.5, 0.5]]))


def test_weights_of_another_kind_or_number_are_refused() -> None:
    student, allowed = normal(3, 2, 5, 5), allowed_keys(MASK, causal=True)
    with pytest.raises(ValueError, match="got `loudest`"):
        attention_kl(student, student, allowed, weights="loudest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"2 pairs of heads, got weights \(3,\)"):
        attention_kl(student, student, allowed, weights=torch.ones(3) / 3)


@both
def test_given_weights_multiply_the_heads_and_have_a_gradient(loss: Loss) -> None:
    student, teacher, allowed = normal(3, 2, 5, 5), normal(3, 2, 5, 5, seed=1), allowed_keys(MASK, causal=True)
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64, requires_grad=True)
    total = loss(student, teacher, allowed, weights=weights).total
    alone = [loss(student, teacher, allowed, heads=[(h, h)]).total for h in (0, 1)]
    torch.testing.assert_close(total, 0.2 * alone[0] + 0.8 * alone[1])
    total.backward()
    torch.testing.assert_close(weights.grad, torch.stack(alone))


@pytest.mark.parametrize("floor", [0.5, 0.05, 1.0])
def test_learned_weights_drift_to_the_easy_head_and_stop_at_the_floor(floor: float) -> None:
    learned = LearnedHeadWeights(2, floor=floor)
    torch.testing.assert_close(learned(), torch.tensor([0.5, 0.5]))
    teacher, allowed = normal(3, 2, 5, 5, seed=1), allowed_keys(MASK, causal=True)
    student = teacher.clone()
    student[:, 1] += normal(3, 5, 5, seed=2)  # head 0 is matched, head 1 is not
    optimizer = torch.optim.SGD(learned.parameters(), lr=10.0)
    for _ in range(200):
        optimizer.zero_grad()
        attention_kl(student, teacher, allowed, weights=learned()).total.backward()
        optimizer.step()
    weights = learned().detach()
    torch.testing.assert_close(weights, torch.tensor([1 - floor / 2, floor / 2]), atol=0.01, rtol=0)
    assert weights.min() >= floor / 2


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.1, math.nan])
def test_learned_weights_without_a_floor_or_a_head_are_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor must be above 0 and at most 1"):
        LearnedHeadWeights(2, floor=floor)
    with pytest.raises(ValueError, match="num_heads must be positive"):
        LearnedHeadWeights(0)


# ── Shapes and products ──


@both
def test_scores_over_other_rows_or_positions_are_refused_with_their_shapes(loss: Loss) -> None:
    student, allowed = normal(3, 2, 5, 5), allowed_keys(MASK, causal=True)
    for teacher, keys in [
        (normal(3, 2, 4, 4), allowed),
        (normal(2, 2, 5, 5), allowed),
        (normal(3, 2, 5, 6), allowed),
        (student, allowed[:, :4]),
        (student, allowed[0]),
    ]:
        with pytest.raises(ValueError, match="over the same rows and positions"):
            loss(student, teacher, keys)


@pytest.mark.parametrize("autocast", [False, True])
def test_products_share_keys_in_groups_and_keep_32_bits(autocast: bool) -> None:
    queries, keys = normal(2, 6, 5, 3, dtype=torch.float32), normal(2, 2, 5, 3, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = scaled_products(queries, keys, 0.5)
    for head in range(6):
        expected = 0.5 * queries[:, head] @ keys[:, head // 3].transpose(1, 2)
        torch.testing.assert_close(scores[:, head], expected)
    assert scores.dtype == torch.float32
