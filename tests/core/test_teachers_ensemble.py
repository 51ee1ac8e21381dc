"""Averages of teachers against sums of their probabilities, and weights against the best that a search finds."""

import math

import pytest
import torch
from torch import Tensor

from entrenar_core.losses.divergence import cross_entropy_hard_core, forward_kl_core, reverse_kl_core
from entrenar_core.losses.mixture import Mixture
from entrenar_core.losses.routed import Routed
from entrenar_core.losses.sparse import TopKRows
from entrenar_core.losses.targets import Logits, divergence_from
from entrenar_core.teachers.ensemble import mixture_weights

ROWS, TOKENS = 11, 7


def logits(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    return (p_NV * (p_NV.log() - q_NV.log())).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_by_confidence_teachers_count_by_their_entropy(temperature: float) -> None:
    first, second, student = logits(0) * 3, logits(1), logits(2)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mixture = Mixture([Logits(first), Logits(second)], weights, confidence=True)
    entropies = [-(z.softmax(-1) * z.log_softmax(-1)).sum(-1) for z in (first, second)]
    shares = torch.stack([w * (-h).exp() for w, h in zip(weights, entropies, strict=True)], -1)
    shares = shares / shares.sum(-1, keepdim=True)
    p = sum(
        share.unsqueeze(-1) * (z / temperature).softmax(-1)
        for share, z in zip(shares.unbind(-1), (first, second), strict=True)
    )
    assert isinstance(p, Tensor)
    expected = kl(p, (student / temperature).softmax(-1))
    torch.testing.assert_close(divergence_from(mixture, forward_kl_core, student, temperature), expected)
    assert float(shares[:, 0].mean()) > 0.25, "the surer one counts for more than its weight"
    torch.testing.assert_close(mixture.of(slice(2, 5)).softmax(-1), divide(mixture, first, second, shares)[2:5])


def divide(_: Mixture, first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    return shares[:, :1] * first.softmax(-1) + shares[:, 1:] * second.softmax(-1)


@pytest.mark.parametrize("core", [forward_kl_core, reverse_kl_core, cross_entropy_hard_core])
def test_each_row_is_taught_by_its_own_teacher(core: object) -> None:
    whose = torch.tensor([0, 1, 1, 2, 0, 0, 2, 1, 0, 1, 1])
    teachers = [logits(seed) for seed in range(3)]
    student = logits(9).requires_grad_()
    own = [Logits(teacher[whose == place]) for place, teacher in enumerate(teachers)]
    routed = Routed(own, whose)
    mixed = torch.stack([teachers[int(place)][row] for row, place in enumerate(whose)])
    of_routed = divergence_from(routed, core, student, 2.0)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(of_routed.sum(), student)
    of_mixed = divergence_from(Logits(mixed), core, student, 2.0)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(of_mixed.sum(), student)
    torch.testing.assert_close(of_routed, of_mixed)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(routed.of(slice(3, 9)), mixed[3:9])
    torch.testing.assert_close(routed.of(slice(1, 10, 3)), mixed[1:10:3])
    tiles = routed.tiles(TOKENS)
    for start in (0, 4, 8):
        tiles.load(slice(start, min(start + 4, ROWS)))
        assert tiles.preferred().tolist() == mixed[start : start + 4].argmax(-1).tolist()
        local = tiles.local(forward_kl_core, student.detach().log_softmax(-1)[start : start + 4][1:3], slice(1, 3), 1.0)
        expected_N = kl(mixed[start : start + 4][1:3].softmax(-1), student.detach().softmax(-1)[start : start + 4][1:3])
        torch.testing.assert_close(local.values_N, expected_N)


def test_a_route_may_lead_to_a_teacher_of_whom_few_tokens_are_known() -> None:
    whole, student = logits(0), logits(1)
    log_p = whole.log_softmax(-1)
    known, tokens = log_p.topk(TOKENS - 1)
    rest = log_p.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    whose = torch.arange(ROWS) % 2
    sparse = TopKRows(tokens[whose == 1], known[whose == 1], rest[whose == 1], (1.0,), TOKENS)
    routed = Routed([Logits(whole[whose == 0]), sparse], whose)
    assert not routed.whole
    found = divergence_from(routed, forward_kl_core, student)
    torch.testing.assert_close(found, kl(whole.softmax(-1), student.softmax(-1)), rtol=1e-6, atol=1e-6)


def test_learnt_weights_are_the_most_likely_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p_NM = torch.rand(400, 2, generator=generator).log() + torch.tensor([0.0, -0.3])
    found = mixture_weights(log_p_NM)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    p = log_p_NM.double().exp()
    likelihoods = torch.stack([(w * p[:, 0] + (1 - w) * p[:, 1]).log().mean() for w in grid])
    assert float(found[0]) == pytest.approx(float(grid[int(likelihoods.argmax())]), abs=1e-3)
    assert float(found.sum()) == pytest.approx(1)


def test_of_a_teacher_that_is_better_everywhere_all_weight_is_its_own() -> None:
    log_p_NM = torch.full((50, 3), math.log(0.1))
    log_p_NM[:, 1] = math.log(0.6)
    assert mixture_weights(log_p_NM)[1] > 0.999
