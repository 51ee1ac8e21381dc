"""A teacher's rows say the same however they are given, and what is not all known is known without bias."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entrenar_core.losses import (
    DIVERGENCES,
    Core,
    Head,
    HeadRows,
    Logits,
    Mixture,
    SoftTerm,
    Targets,
    divergence_from,
    head_loss,
    of_logits,
    top_k,
    where_uncertain,
)
from entrenar_core.losses.sparse import SampledRows, TopKRows, interpolation

N, V, H, K = 7, 23, 5, 6
KL = DIVERGENCES["forward_kl"].make()
WHOLE = [name for name in DIVERGENCES if name not in ("bild", "cross_entropy_hard")]


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def rest_of(logits_NV: Tensor, k: int, betas: Sequence[float]) -> Tensor:
    """By scipy: log Σ p^β of all but the k likeliest."""
    ordered = np.sort(scipy.special.log_softmax(logits_NV.detach().numpy(), -1), -1)[:, ::-1]
    return torch.tensor(np.stack([scipy.special.logsumexp(beta * ordered[:, k:], -1) for beta in betas], -1))


def likeliest(logits_NV: Tensor, k: int = K, betas: Sequence[float] = (1.0, 0.5, 0.25)) -> TopKRows:
    log_p_NK, tokens_NK = logits_NV.log_softmax(-1).topk(k)
    return TopKRows(tokens_NK, log_p_NK, rest_of(logits_NV, k, betas), betas, logits_NV.shape[-1])


def value_and_gradient(of: Callable[[Tensor], Tensor], student_NV: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student_NV.clone().requires_grad_()
    values_N = of(leaf)
    (gradient,) = torch.autograd.grad(values_N.sum(), leaf)
    return values_N.detach(), gradient


def told(teacher: Targets, core: Core, student_NV: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    return value_and_gradient(partial(divergence_from, teacher, core, temperature=temperature), student_NV)


def expected(core: Core, student_NV: Tensor, logits_NV: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """From all logits."""
    return value_and_gradient(lambda s: of_logits(core, s / temperature, logits_NV / temperature), student_NV)


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(first, second, **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


# ── All of a distribution ──


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_logits_and_heads_say_what_logits_say(name: str, temperature: float) -> None:
    student, hidden, weight = drawn(N, V), drawn(N, H, seed=1), drawn(V + 2, H, seed=2)
    core = DIVERGENCES[name].make()
    logits = hidden @ weight[:V].T
    for teacher in (Logits(logits), HeadRows(hidden, Head(weight))):
        same(told(teacher, core, student, temperature), expected(core, student, logits, temperature))


def flat_gradient(total: Tensor, *leaves: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, leaves)])


def kernel(core: Core, teacher: Targets, temperature: float = 2.0, tile_rows: int = 3) -> tuple[Tensor, Tensor]:
    hidden, weight = drawn(N, H, seed=3).requires_grad_(), drawn(V, H, seed=4).requires_grad_()
    found = head_loss(
        hidden, Head(weight), teacher=teacher, soft=[SoftTerm(core, temperature, 0.3)], tile_bytes=8 * V * tile_rows
    )
    return found.total.detach(), torch.cat(
        [part.flatten() for part in torch.autograd.grad(found.total, (hidden, weight))]
    )


def whole(core: Core, teacher: Targets, temperature: float = 2.0) -> tuple[Tensor, Tensor]:
    hidden, weight = drawn(N, H, seed=3).requires_grad_(), drawn(V, H, seed=4).requires_grad_()
    total = 0.3 * temperature**2 * divergence_from(teacher, core, hidden @ weight.T, temperature).sum()
    return total.detach(), flat_gradient(total, hidden, weight)


@pytest.mark.parametrize("tile_rows", [1, 3, 50])
@pytest.mark.parametrize("kind", ["logits", "head", "mixture", "likeliest", "drawn"])
def test_the_kernel_reads_every_kind_in_tiles(kind: str, tile_rows: int) -> None:
    logits = drawn(N, V, seed=9)
    kinds: dict[str, Targets] = {
        "logits": Logits(logits),
        "head": HeadRows(drawn(N, H, seed=5), Head(drawn(V, H, seed=6))),
        "mixture": Mixture([Logits(logits), Logits(drawn(N, V, seed=8))], torch.tensor([0.3, 0.7])),
        "likeliest": likeliest(logits),
        "drawn": draws(logits, 9, temperature=2.0),
    }
    same(kernel(KL, kinds[kind], tile_rows=tile_rows), whole(KL, kinds[kind]))


# ── Several teachers ──


def test_a_mixture_averages_probabilities_at_the_temperature() -> None:
    student, first, second = drawn(N, V), drawn(N, V, seed=1), drawn(N, V, seed=2)
    teacher = Mixture([Logits(first), Logits(second)], torch.tensor([0.25, 0.75], dtype=torch.float64))
    for temperature in (1.0, 3.0):
        p, q = (scipy.special.softmax(each.numpy() / temperature, -1) for each in (first, second))
        mixed = torch.tensor(np.log(0.25 * p + 0.75 * q)) * temperature
        same(told(teacher, KL, student, temperature), expected(KL, student, mixed, temperature))


def test_weights_may_differ_by_row() -> None:
    student, first, second = drawn(2, V), drawn(2, V, seed=1), drawn(2, V, seed=2)
    teacher = Mixture([Logits(first), Logits(second)], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(
        divergence_from(teacher, KL, student), of_logits(KL, student, torch.stack([first[0], second[1]]))
    )


@given(seed=st.integers(0, 1000), weight=st.floats(0, 1), temperature=st.floats(0.1, 10))
def test_two_equal_teachers_are_one(seed: int, weight: float, temperature: float) -> None:
    student, logits = drawn(3, V, seed=seed), drawn(3, V, seed=seed + 1)
    teacher = Mixture([Logits(logits)] * 2, torch.tensor([weight, 1 - weight], dtype=torch.float64))
    torch.testing.assert_close(
        divergence_from(teacher, KL, student, temperature), divergence_from(Logits(logits), KL, student, temperature)
    )


# ── The likeliest tokens ──


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", WHOLE)
def test_the_likeliest_tokens_with_their_tail_are_those_of_the_whole(name: str, temperature: float) -> None:
    student, logits = drawn(N, V), drawn(N, V, seed=1)
    core = DIVERGENCES[name].make()

    known = likeliest(logits)
    same(told(known, core, student, temperature), expected(top_k(core, K), student, logits, temperature))
    for k, tail in ((K, True), (K - 2, True), (1, True), (K, False), (3, False)):
        selected = top_k(core, k, tail=tail)
        same(told(known, selected, student, temperature), expected(selected, student, logits, temperature))
    more = top_k(core, K + 5)
    same(told(known, more, student, temperature), expected(top_k(core, K), student, logits, temperature))


def test_the_preferred_token_is_known() -> None:
    student, logits = drawn(N, V), drawn(N, V, seed=1)
    core = DIVERGENCES["cross_entropy_hard"].make()
    same(told(likeliest(logits), core, student, 2.0), expected(core, student, logits, 2.0))
    tiles = likeliest(logits).tiles(V)
    tiles.load(slice(2, 5))
    assert tiles.preferred().tolist() == logits[2:5].argmax(-1).tolist()


@given(seed=st.integers(0, 1000), temperature=st.floats(1, 4))
def test_between_its_temperatures_the_tail_is_interpolated(seed: int, temperature: float) -> None:
    """Five nodes from T = 1 to 4, as the cache of a schedule has."""
    middle, half = (1 + 0.25) / 2, (1 - 0.25) / 2
    betas = [middle + half * math.cos(math.pi * (2 * place + 1) / 10) for place in range(5)]
    logits = drawn(4, 200, seed=seed, scale=3.0)
    known = likeliest(logits, 20, betas)
    found = known.log_rest(slice(0, 4), temperature).squeeze(-1)
    torch.testing.assert_close(found, rest_of(logits, 20, [1 / temperature])[:, 0], rtol=0, atol=2e-3)


def test_all_tokens_leave_no_tail() -> None:
    student, logits = drawn(N, V), drawn(N, V, seed=1)
    log_p_NV, tokens_NV = logits.log_softmax(-1).sort(descending=True)
    teacher = TopKRows(tokens_NV, log_p_NV, torch.full((N, 1), -torch.inf, dtype=torch.float64), [1.0], V)
    torch.testing.assert_close(divergence_from(teacher, KL, student), of_logits(KL, student, logits))


# ── Draws ──


def entropy_of(logits_NV: Tensor, temperature: float) -> Tensor:
    p = scipy.special.softmax(logits_NV.numpy() / temperature, -1)
    return torch.tensor(scipy.special.entr(p).sum(-1))


def draws(logits_NV: Tensor, count: int, *, temperature: float = 1.0, seed: int = 0) -> SampledRows:
    p_NV = (logits_NV / temperature).softmax(-1)
    tokens_NK = torch.multinomial(p_NV, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    shares_NK = torch.full(tokens_NK.shape, 1 / count, dtype=torch.float64)
    entropy_N = entropy_of(logits_NV, temperature)
    return SampledRows(tokens_NK, shares_NK, entropy_N, logits_NV.argmax(-1), temperature, logits_NV.shape[-1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_of_draws_have_no_bias(temperature: float) -> None:
    """Many draws, as as many rows: their mean is within five standard errors of the whole."""
    count = 20_000
    student, logits = drawn(1, V).expand(count, V), drawn(1, V, seed=1).expand(count, V)
    teacher = draws(logits, 12, temperature=temperature)
    values, gradients = told(teacher, KL, student, temperature)
    value, gradient = expected(KL, student[:1], logits[:1], temperature)
    assert abs(values.mean() - value[0]) <= 5 * values.std() / math.sqrt(count)
    errors_V = 5 * gradients.std(0) / math.sqrt(count) + 1e-12
    assert bool(((gradients.mean(0) - gradient[0]).abs() <= errors_V).all())


def test_shares_that_are_the_probabilities_are_the_whole() -> None:
    student, logits = drawn(N, V), drawn(N, V, seed=1)
    tokens_NV = torch.arange(V).expand(N, V)
    teacher = SampledRows(tokens_NV, logits.softmax(-1), entropy_of(logits, 1.0), logits.argmax(-1), 1.0, V)
    same(told(teacher, KL, student), expected(KL, student, logits))


def test_padding_of_draws_counts_for_nothing() -> None:
    student, logits = drawn(2, V), drawn(2, V, seed=1)
    student[0, 3] = -torch.inf
    tokens, shares = torch.tensor([[5, 3], [7, 8]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    teacher = SampledRows(tokens, shares, entropy_of(logits, 1.0), logits.argmax(-1), 1.0, V)
    found = divergence_from(teacher, KL, student)
    assert found.isfinite().all()
    assert found[0] == pytest.approx(float(-student.log_softmax(-1)[0, 5] - entropy_of(logits, 1.0)[0]))


# ── What is refused ──


@pytest.mark.parametrize(
    ("teacher", "core", "temperature", "message"),
    [
        (likeliest(drawn(N, V)), where_uncertain(KL, 1.0), 1.0, "the entropy of a teacher"),
        (draws(drawn(N, V), 5), DIVERGENCES["jsd"].make(), 1.0, "only a forward KL"),
        (draws(drawn(N, V), 5), top_k(KL, 3), 1.0, "only a forward KL"),
        (draws(drawn(N, V), 5), KL, 2.0, "drawn at temperature 1, not 2"),
        (likeliest(drawn(N, V + 1)), KL, 1.0, "`vocabulary` is 23"),
        (draws(drawn(N, V + 1), 5), KL, 1.0, "`vocabulary` is 23"),
        (Logits(drawn(N, V - 1)), KL, 1.0, "`vocabulary` is 23, and the teacher has 22"),
        (HeadRows(drawn(N, H), Head(drawn(V - 1, H))), KL, 1.0, "`vocabulary` is 23, and the teacher has 22"),
        (Logits(drawn(N + 1, V)), KL, 1.0, "7 rows of the student and 8 of the teacher"),
    ],
)
def test_what_a_teacher_cannot_say_is_refused(teacher: Any, core: Core, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence_from(teacher, core, drawn(N, V), temperature)


def test_interpolation_is_exact_for_polynomials_and_needs_nodes_that_differ() -> None:
    nodes = [0.1, 0.4, 0.9]
    for at in (0.1, 0.25, 0.9, 1.3):
        weights = interpolation(nodes, at)
        found = sum(weight * (2 - node + 3 * node**2) for weight, node in zip(weights, nodes, strict=True))
        assert found == pytest.approx(2 - at + 3 * at**2)
    assert interpolation([0.5], 0.7) == [1.0]
    for wrong in ([], [0.5, 0.5]):
        with pytest.raises(ValueError, match="must differ"):
            interpolation(wrong, 0.5)
