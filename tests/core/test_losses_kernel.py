"""Losses from hidden states and heads: what logits that are all there would give, without ever having them."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from entrenar_core.data.labels import IGNORED
from entrenar_core.losses import (
    DIVERGENCES,
    HardTerm,
    Head,
    HeadLoss,
    HeadRows,
    SoftTerm,
    head_loss,
    of_logits,
    top_k,
    where_uncertain,
)

N, H, K, V = 13, 6, 5, 17
KL = DIVERGENCES["forward_kl"].make()


class Case(NamedTuple):
    """Leaves that want gradients, and what a teacher and the data give."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor
    teacher_NK: Tensor
    teacher_VK: Tensor
    labels_N: Tensor
    weights_N: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden_NH, self.weight_VH, self.bias_V


def case(rows: int = N, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Case:
    """Heads of `V` tokens, padded to two other widths."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    labels_N = torch.randint(0, V, (rows,), generator=generator)
    labels_N[::3] = IGNORED
    leaves = (drawn(rows, H).requires_grad_(), drawn(V + 3, H).requires_grad_(), drawn(V + 3).requires_grad_())
    return Case(*leaves, drawn(rows, K), drawn(V + 1, K), labels_N, torch.rand(rows, generator=generator))


def tiled(
    case: Case,
    soft: Sequence[SoftTerm] = (),
    hard: HardTerm | None = None,
    *,
    tile_rows: int = 4,
    weighted: bool = False,
    vocabulary: int = V,
    **head: Any,
) -> HeadLoss:
    return head_loss(
        case.hidden_NH,
        Head(case.weight_VH, case.bias_V, **head),
        teacher=HeadRows(case.teacher_NK, Head(case.teacher_VK)),
        labels_N=case.labels_N,
        soft=soft,
        hard=hard,
        row_weights_N=case.weights_N if weighted else None,
        vocabulary=vocabulary,
        tile_bytes=2 * 4 * vocabulary * tile_rows,
    )


def whole(
    case: Case,
    soft: Sequence[SoftTerm] = (),
    hard: HardTerm | None = None,
    *,
    weighted: bool = False,
    vocabulary: int = V,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The same by autograd, from all logits at once, in float64."""
    hidden_NH, weight_VH, bias_V, teacher_NK, teacher_VK = (part.double() for part in case[:5])
    student_NV = F.linear(hidden_NH, weight_VH, bias_V) * scale
    if softcap is not None:
        student_NV = softcap * torch.tanh(student_NV / softcap)
    student_NV, teacher_NV = student_NV[:, :vocabulary], F.linear(teacher_NK, teacher_VK)[:, :vocabulary]
    weights_N = case.weights_N.double() if weighted else torch.ones(len(hidden_NH), dtype=torch.float64)
    total = student_NV.sum() * 0.0
    for term in soft:
        t = term.temperature
        values_N = of_logits(term.core, student_NV / t, teacher_NV / t)
        total = total + term.weight * t**term.power * (values_N * weights_N).sum()
    if hard is not None:
        values_N = F.cross_entropy(
            student_NV, case.labels_N, reduction="none", ignore_index=IGNORED, label_smoothing=hard.smoothing
        )
        total = total + hard.weight * (values_N * weights_N).sum()
    return total


def assert_same(case: Case, found: HeadLoss, expected: Tensor, *, accuracy: float = 1e-12) -> None:
    torch.testing.assert_close(found.total.double(), expected, rtol=accuracy, atol=accuracy)
    for actual, exact in zip(
        torch.autograd.grad(found.total * 3, case.leaves), torch.autograd.grad(expected * 3, case.leaves), strict=True
    ):
        assert actual.dtype == exact.dtype
        scale = exact.double().abs().max().item()
        assert (actual.double() - exact.double()).abs().max() <= accuracy * max(scale, 1e-9)


@pytest.mark.parametrize("head", [{}, {"softcap": 3.0}, {"scale": 0.5}, {"scale": 2.0, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_values_and_gradients_are_those_of_all_logits_at_once(name: str, head: dict[str, float]) -> None:
    row = DIVERGENCES[name]
    soft = [SoftTerm(row.make(), 2.0, 0.3, row.power), SoftTerm(KL, 1.0, 0.2)]
    for hard, weighted in itertools.product((None, HardTerm(0.7), HardTerm(0.7, 0.1)), (False, True)):
        drawn = case()
        assert_same(
            drawn,
            tiled(drawn, soft, hard, weighted=weighted, **head),
            whole(drawn, soft, hard, weighted=weighted, **head),
        )


@pytest.mark.parametrize("core", [top_k(KL, 4), top_k(KL, 4, tail=False), where_uncertain(KL, 2.0)])
def test_selections_are_divergences_like_others(core: Any) -> None:
    drawn = case()
    assert_same(drawn, tiled(drawn, [SoftTerm(core, 2.0, 1.0)]), whole(drawn, [SoftTerm(core, 2.0, 1.0)]))


@given(rows=st.integers(1, 20), tile_rows=st.integers(1, 25), seed=st.integers(0, 99))
def test_the_size_of_a_tile_reaches_neither_value_nor_gradient(rows: int, tile_rows: int, seed: int) -> None:
    drawn = case(rows, seed=seed)
    terms = [SoftTerm(KL, 2.0, 1 / rows)], HardTerm(1 / rows)
    assert_same(drawn, tiled(drawn, *terms, tile_rows=tile_rows), whole(drawn, *terms))


@pytest.mark.parametrize("head", [{}, {"scale": 2.0, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("vocabulary", [50_021, 150_001])
def test_rows_of_a_large_vocabulary_are_looked_at_a_few_at_a_time(vocabulary: int, head: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_NH, teacher_NK = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    weight_VH, teacher_VK = (torch.randn(vocabulary, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    leaves = (hidden_NH.requires_grad_(), weight_VH.requires_grad_())
    labels_N = torch.tensor([IGNORED, 0, 5, 5, vocabulary - 1, IGNORED, 1])
    drawn = Case(*leaves, torch.zeros(vocabulary, dtype=torch.float64), teacher_NK, teacher_VK, labels_N, torch.rand(7))
    jsd = DIVERGENCES["jsd"].make()
    terms = [SoftTerm(KL, 2.0, 0.3), SoftTerm(jsd, 1.0, 0.2)], HardTerm(0.5, 0.1)
    found = tiled(drawn, *terms, vocabulary=vocabulary, tile_rows=6, weighted=True, **head)
    assert_same(
        drawn._replace(bias_V=weight_VH), found, whole(drawn, *terms, vocabulary=vocabulary, weighted=True, **head)
    )


def test_the_sums_of_the_terms_come_without_their_weights() -> None:
    drawn = case()
    terms = [SoftTerm(KL, 2.0, 0.3), SoftTerm(DIVERGENCES["jsd"].make(), 1.0, 5.0)], HardTerm(0.7)
    found = tiled(drawn, *terms)
    alone = [whole(drawn, [SoftTerm(term.core, term.temperature, 1.0)]) for term in terms[0]]
    torch.testing.assert_close(torch.stack(found.soft), torch.stack(alone).detach())
    torch.testing.assert_close(found.hard, whole(drawn, hard=HardTerm(1.0)).detach())
    assert not any(part.requires_grad for part in (*found.soft, found.hard))


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_lower_precision_is_as_near_as_its_own_rounding(dtype: torch.dtype, accuracy: float) -> None:
    drawn = case(40, dtype, scale=0.7)
    terms = [SoftTerm(KL, 2.0, 0.5)], HardTerm(0.5)
    assert_same(drawn, tiled(drawn, *terms), whole(drawn, *terms), accuracy=accuracy)


@pytest.mark.parametrize("tokens", [2**12, 2**16, 3 * 2**14])
def test_under_a_loss_scaler_nothing_vanishes_in_16_bits(tokens: int) -> None:
    """Weights hold 1 / tokens of the step, and a scaler's factor comes only with `backward`."""
    drawn = case(64, torch.float16, scale=0.5)
    labels_N = drawn.labels_N.clamp_min(0)

    def scaled(weight: float, scale: float) -> list[Tensor]:
        found = head_loss(
            drawn.hidden_NH, Head(drawn.weight_VH, drawn.bias_V),
            teacher=HeadRows(drawn.teacher_NK, Head(drawn.teacher_VK)), labels_N=labels_N,
            soft=[SoftTerm(KL, 2.0, 0.5 * weight)], hard=HardTerm(0.5 * weight), vocabulary=V,
        )  # fmt: skip
        return list(torch.autograd.grad(found.total * scale, drawn.leaves))

    for found, expected in zip(scaled(1 / tokens, 2.0**16), scaled(1.0, 2.0**16 / tokens), strict=True):
        assert (found.float() - expected.float()).norm() <= 1e-3 * expected.float().norm()
        assert int((found == 0).sum()) == int((expected == 0).sum())


def test_hidden_states_and_head_may_differ_in_dtype() -> None:
    drawn = case(dtype=torch.float32)
    mixed = drawn._replace(
        hidden_NH=drawn.hidden_NH.detach().bfloat16().requires_grad_(), teacher_NK=drawn.teacher_NK.bfloat16()
    )
    assert_same(mixed, tiled(mixed, [SoftTerm(KL, 1.0, 1.0)]), whole(mixed, [SoftTerm(KL, 1.0, 1.0)]), accuracy=0.01)


def test_under_autocast_the_head_computes_in_half_and_the_gradients_keep_their_dtypes() -> None:
    drawn = case(40, torch.float32)
    terms = [SoftTerm(KL, 1.0, 1.0)], HardTerm(1.0)
    exact = whole(drawn, *terms)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled(drawn, *terms)
    assert found.total.dtype == torch.float32
    assert found.total != exact.float()
    assert_same(drawn, found, exact, accuracy=0.02)


def test_a_tied_weight_gets_the_gradients_of_both_its_uses() -> None:
    drawn, ids_N = case(), torch.arange(N) % V
    grads = []
    for compute in (lambda c: tiled(c, [SoftTerm(KL, 1.0, 1.0)]).total, lambda c: whole(c, [SoftTerm(KL, 1.0, 1.0)])):
        tied = drawn._replace(hidden_NH=F.embedding(ids_N, drawn.weight_VH) * 2)
        (grad,) = torch.autograd.grad(compute(tied), drawn.weight_VH)
        grads.append(grad)
    torch.testing.assert_close(*grads)


def test_padding_of_a_head_gets_no_gradient_and_no_probability() -> None:
    drawn = case()
    with torch.no_grad():
        drawn.weight_VH[V:] = 100.0
        drawn.teacher_VK[V:] = 100.0
    tiled(drawn, [SoftTerm(KL, 1.0, 1.0)], HardTerm(1.0)).total.backward()
    assert drawn.weight_VH.grad is not None
    assert drawn.weight_VH.grad[:V].any(-1).all()
    assert not drawn.weight_VH.grad[V:].any()


def test_what_is_frozen_gets_no_gradient_and_evaluation_gets_none_at_all() -> None:
    drawn = case()
    frozen = drawn._replace(weight_VH=drawn.weight_VH.detach(), bias_V=drawn.bias_V.detach())
    tiled(frozen, [SoftTerm(KL, 1.0, 1.0)]).total.backward()
    assert drawn.hidden_NH.grad is not None
    with torch.no_grad():
        found = tiled(drawn, [SoftTerm(KL, 1.0, 1.0)])
    assert not found.total.requires_grad
    torch.testing.assert_close(found.total, whole(drawn, [SoftTerm(KL, 1.0, 1.0)]).detach())


def test_an_evaluation_makes_no_gradients_only_to_forget_them() -> None:
    drawn = case()
    made: list[tuple[int, ...]] = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend([tuple(result.shape)] if isinstance(result, Tensor) else [])
            return result

    with torch.no_grad(), Shapes():
        tiled(drawn, [SoftTerm(KL, 1.0, 1.0)], HardTerm(1.0))
    assert made
    assert (V + 3, H) not in made, "a gradient of the weights"


def test_no_row_gives_zero_with_a_graph() -> None:
    drawn = case(0)
    found = tiled(drawn, [SoftTerm(KL, 2.0, 1.0)], HardTerm(1.0))
    found.total.backward()
    assert found.total.item() == 0
    assert drawn.weight_VH.grad is not None
    assert not drawn.weight_VH.grad.any()


def test_rows_without_a_label_count_for_the_teacher_alone() -> None:
    drawn = case()
    tiled(drawn, hard=HardTerm(1.0)).total.backward()
    assert drawn.hidden_NH.grad is not None
    assert drawn.hidden_NH.grad.any(-1).tolist() == (drawn.labels_N != IGNORED).tolist()


def test_gradients_can_be_asked_for_once() -> None:
    drawn = case()
    total = tiled(drawn, [SoftTerm(KL, 1.0, 1.0)]).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="asked for once"):
        total.backward()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest new tensor of two dimensions had."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == V:
            self.rows = max(self.rows, result.shape[0])
        return result


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_tensor_of_logits_has_more_rows_than_a_tile(name: str) -> None:
    drawn = case(60)
    with Largest() as seen:
        tiled(drawn, [SoftTerm(DIVERGENCES[name].make(), 2.0, 1.0)], HardTerm(1.0, 0.1), tile_rows=7).total.backward()
    assert seen.rows == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "needs a teacher"),
        ({"labels_N": None}, "needs labels"),
        ({"vocabulary": None}, "the heads have 20 and 18 tokens"),
        ({"vocabulary": V + 2}, "`vocabulary` is 19, and a head has 18 tokens"),
        ({"vocabulary": 0}, "`vocabulary` is 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    drawn = case()
    arguments: dict[str, Any] = {
        "teacher": HeadRows(drawn.teacher_NK, Head(drawn.teacher_VK)),
        "labels_N": drawn.labels_N,
        "soft": [SoftTerm(KL, 1.0, 1.0)],
        "hard": HardTerm(1.0),
        "vocabulary": V,
    }
    with pytest.raises(ValueError, match=message):
        head_loss(drawn.hidden_NH, Head(drawn.weight_VH, drawn.bias_V), **(arguments | changes))
