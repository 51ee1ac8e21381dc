"""What is kept of a teacher says what the teacher said: exactly, within the precision, or without bias."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from entrenar_core.losses import DIVERGENCES, Head, HeadRows, Logits, divergence_from, top_k
from entrenar_core.losses.sparse import SampledRows
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.kinds import Hidden, Kind, Precision, TaughtRow, TopK, Values, nodes_between
from entrenar_core.teachers.cache.precision import packed, unpacked, vector_bytes

N, V, H, K = 37, 300, 16, 20
KL = DIVERGENCES["forward_kl"].make()
HEAD = Head(torch.randn(V + 4, H, generator=torch.Generator().manual_seed(1)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.5


def taught(positions: int = N, seed: int = 0, dtype: torch.dtype = torch.float32) -> TaughtRow:
    labels_N = torch.arange(positions) * 7 % V
    labels_N[::5] = -100
    head = Head(HEAD.weight_VH.to(dtype))
    return TaughtRow(HeadRows(drawn(positions, H, seed=seed).to(dtype), head, V), labels_N, bytes([seed] * 16))


def distance(kind: Kind, row: TaughtRow, temperature: float = 1.0, core: Any = KL) -> Tensor:
    """Of a student from what is kept, less that from the teacher itself, (N,)."""
    student = drawn(len(row.said), V, seed=5)
    kept = divergence_from(kind.targets(kind.kept(row), "cpu"), KL, student, temperature)
    return kept - divergence_from(row.said, core, student, temperature)


def bytes_of(arrays: Any) -> int:
    return sum(values.nbytes for values in arrays.values())


# ── Hidden states ──


def test_hidden_states_in_their_own_precision_are_the_same_bits() -> None:
    row = taught()
    kind = Hidden("float32", H, HEAD, V)
    found = kind.targets(kind.kept(row), "cpu")
    assert torch.equal(found.of(slice(None)), row.said.of(slice(None)))
    half = taught(dtype=torch.bfloat16)
    kind = Hidden("bfloat16", H, Head(HEAD.weight_VH.bfloat16()), V)
    assert torch.equal(kind.targets(kind.kept(half), "cpu").of(slice(None)), half.said.of(slice(None)))


@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 2e-2)])
def test_hidden_states_in_fewer_bits_are_near(precision: Precision, error: float) -> None:
    row = taught()
    kind = Hidden(precision, H, HEAD, V)
    found = kind.targets(kind.kept(row), "cpu").hidden_NH.float()
    assert isinstance(row.said, HeadRows)
    relative = (found - row.said.hidden_NH).norm() / row.said.hidden_NH.norm()
    assert 0 < relative < error
    assert bytes_of(kind.kept(row)) == N * kind.bytes_per_position()


def test_every_precision_is_tried() -> None:
    assert set(get_args(Precision)) == {"float32", "float16", "bfloat16", "int8"}


def test_a_position_of_zeros_stays_one_in_8_bits() -> None:
    row = TaughtRow(HeadRows(torch.zeros(2, H), HEAD, V), torch.tensor([1, 2]), bytes(16))
    kind = Hidden("int8", H, HEAD, V)
    assert torch.equal(kind.targets(kind.kept(row), "cpu").hidden_NH, torch.zeros(2, H))


def test_logits_of_a_classifier_are_kept_whole() -> None:
    logits = drawn(3, 7)
    kind = Values(7)
    kept = kind.kept(TaughtRow(Logits(logits), torch.tensor([0, 1, 2]), bytes(16)))
    assert torch.equal(kind.targets(kept, "cpu").logits_NV, logits)
    assert bytes_of(kept) == 3 * kind.bytes_per_position()


# ── The likeliest tokens ──


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_likeliest_tokens_are_those_of_the_teacher(temperature: float) -> None:
    """16 bits tell a log-probability of −8 to 0.004."""
    kind = TopK(K, 1.0, 2.0, V)
    assert distance(kind, taught(), temperature, top_k(KL, K)).abs().max() < 2e-3
    assert bytes_of(kind.kept(taught())) == N * kind.bytes_per_position()


def test_what_others_have_together_is_kept_by_temperature() -> None:
    betas: Sequence[float] = nodes_between(1.0, 4.0)
    kept = TopK(K, 1.0, 4.0, V).kept(taught())
    p = np.sort(scipy.special.log_softmax(taught().said.of(slice(None)).double().numpy(), -1), -1)[:, ::-1]
    for place, beta in enumerate(betas):
        expected = scipy.special.logsumexp(beta * p[:, K:], -1)
        np.testing.assert_allclose(kept["rest"][:, place], expected, atol=1e-4)


def test_the_probability_of_a_label_is_kept_where_there_is_one() -> None:
    row = taught()
    expected = row.said.of(slice(None)).log_softmax(-1).gather(-1, row.labels_N.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    for kind in (TopK(K, 1.0, 1.0, V), Sampled(9, 2.0, 0, V)):
        label = torch.from_numpy(kind.kept(row)["label"])
        assert torch.equal(label.isnan(), row.labels_N < 0)
        torch.testing.assert_close(label[row.labels_N >= 0], expected[row.labels_N >= 0])


@pytest.mark.parametrize(("vocabulary", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_ids_take_the_room_that_they_need(vocabulary: int, width: int) -> None:
    logits = torch.zeros(1, vocabulary)
    logits[0, -1] = 5.0
    row = TaughtRow(Logits(logits), torch.tensor([3]), bytes(16))
    kept = TopK(1, 1.0, 1.0, vocabulary).kept(row)
    assert kept["tokens"].itemsize == width
    assert int(kept["tokens"][0, 0]) == vocabulary - 1
    assert int(TopK(1, 1.0, 1.0, vocabulary).targets(kept, "cpu").tokens_NK[0, 0]) == vocabulary - 1


def test_one_temperature_needs_one_node_and_several_lie_between_theirs() -> None:
    assert nodes_between(2.0, 2.0) == (0.5,)
    nodes = nodes_between(1.0, 4.0)
    assert len(set(nodes)) == 5
    assert all(0.25 < node < 1.0 for node in nodes)
    assert sum(nodes) == pytest.approx(5 * 0.625)


@pytest.mark.parametrize("highest", [4.0, 20.0, 1000.0])
def test_every_temperature_of_a_range_is_served(highest: float) -> None:
    kind = TopK(K, 1.0, highest, V)
    for temperature in (1.0, 1.7, 3.0, highest / 2, highest):
        if temperature <= highest:
            live = divergence_from(taught().said, top_k(KL, K), drawn(N, V, seed=5), temperature)
            assert (distance(kind, taught(), temperature, top_k(KL, K)).abs() <= 3e-3 + 3e-3 * live.abs()).all()


# ── Draws ──


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """Where a token is expected at least once, (count − expected)² / expected is 1 − p on average."""
    kind = Sampled(200, 2.0, 3, V)
    row = taught(400)
    found = kind.targets(kind.kept(row), "cpu")
    p_NV = (row.said.of(slice(None)) / 2).softmax(-1).double()
    counts_NV = torch.zeros(p_NV.shape, dtype=torch.float64).scatter_add_(
        -1, found.tokens_NK.long(), found.shares_NK.double() * 200
    )
    assert counts_NV.sum(-1).tolist() == pytest.approx([200.0] * 400)
    often_NV = 200 * p_NV >= 1
    away = ((counts_NV - 200 * p_NV).square() / (200 * p_NV) / (1 - p_NV))[often_NV]
    assert len(away) > 5_000
    assert abs(away.mean() - 1) <= 5 * away.std() / math.sqrt(len(away))
    torch.testing.assert_close(found.entropy_N, torch.special.entr(p_NV).sum(-1).float())
    assert found.preferred_N.tolist() == row.said.of(slice(None)).argmax(-1).tolist()


def test_draws_follow_from_the_row_and_the_seed() -> None:
    first = Sampled(12, 1.0, 0, V).kept(taught())
    again = Sampled(12, 1.0, 0, V).kept(taught())
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)
    other_seed = Sampled(12, 1.0, 1, V).kept(taught())
    assert not np.array_equal(first["tokens"], other_seed["tokens"])
    row = taught()
    other_key = Sampled(12, 1.0, 0, V).kept(TaughtRow(row.said, row.labels_N, bytes([9] * 16)))
    assert not np.array_equal(first["tokens"], other_key["tokens"])


def test_rows_of_draws_one_behind_the_other_are_the_rows() -> None:
    kind = Sampled(12, 1.0, 0, V)
    rows = [kind.kept(taught(positions, seed=positions)) for positions in (3, 1, 70)]
    together = kind.targets({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, "cpu")
    student = drawn(74, V, seed=8)
    alone = torch.cat([
        divergence_from(kind.targets(row, "cpu"), KL, part, 1.0)
        for row, part in zip(rows, student.split([3, 1, 70]), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(divergence_from(together, KL, student, 1.0), alone)
    assert all(
        bytes_of(row) <= positions * kind.bytes_per_position() for row, positions in zip(rows, (3, 1, 70), strict=True)
    )


def test_a_sure_teacher_is_one_draw() -> None:
    logits = torch.full((1, V), -50.0)
    logits[0, 17] = 50.0
    kind = Sampled(50, 1.0, 0, V)
    found = kind.targets(kind.kept(TaughtRow(Logits(logits), torch.tensor([17]), bytes(16))), "cpu")
    assert isinstance(found, SampledRows)
    assert (found.tokens_NK.tolist(), found.shares_NK.tolist()) == ([[17]], [[1.0]])


def test_a_channel_that_is_far_larger_than_others_does_not_drown_them_in_8_bits() -> None:
    """As in language models: 70 numbers, so that the last group is not full."""
    values_NK = torch.randn(20, 70, generator=torch.Generator().manual_seed(3))
    values_NK[:, 40] *= 300
    kept = packed("hidden", values_NK, "int8")
    again_NK = unpacked("hidden", kept, "int8", "cpu")
    assert again_NK.shape == values_NK.shape
    error_K = (again_NK - values_NK).square().mean(0).sqrt() / values_NK.square().mean(0).sqrt()
    assert float(error_K[:32].max()) < 0.015
    assert float(error_K[40]) < 0.01
    stored = sum(array.nbytes for array in kept.values()) / len(values_NK)
    assert stored == vector_bytes(70, "int8")
