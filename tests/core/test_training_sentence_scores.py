"""Scores of vectors against scipy, and against rankings that are written down by hand."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from entrenar_core.training import sentence_scores
from entrenar_core.training.sentence_scores import cosine_spread, mean_cosine, rank_correlation, retrieval


def vectors(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)))


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for b in others] for a in rows])


def test_the_mean_cosine_is_that_of_numpy() -> None:
    one, other = vectors(5, 3), vectors(5, 3, 1)
    expected = np.diag(cosines(one.numpy(), other.numpy())).mean()
    assert mean_cosine(one, other) == pytest.approx(expected, rel=1e-12)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_ranks_are_scipys_with_their_mean_where_values_are_equal(values: list[int]) -> None:
    found = sentence_scores._ranks(torch.tensor(values, dtype=torch.float64))
    assert found.tolist() == scipy.stats.rankdata(values).tolist()


@given(values=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_the_correlation_of_ranks_is_scipys(values: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor(side, dtype=torch.float64) for side in zip(*values, strict=True))
    found = sentence_scores._correlation(sentence_scores._ranks(one), sentence_scores._ranks(other))
    if len(set(one.tolist())) == 1 or len(set(other.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-12)


def test_distinct_cosines_have_exactly_scipys_correlation() -> None:
    one, other = vectors(40, 6), vectors(40, 5, 1)
    pairs = np.triu_indices(40, 1)
    expected = scipy.stats.spearmanr(*(cosines(model.numpy(), model.numpy())[pairs] for model in (one, other)))
    assert rank_correlation(one, other) == pytest.approx(expected.statistic, rel=1e-12)
    assert rank_correlation(one, one * 3) == pytest.approx(1.0)


def test_there_is_no_correlation_without_an_order() -> None:
    assert rank_correlation(vectors(2, 3), vectors(2, 3, 1)) is None
    assert rank_correlation(vectors(5, 3), torch.ones(5, 3)) is None


@given(rows=st.integers(3, 12), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_spread_of_cosines_is_numpys(rows: int, width: int, seed: int) -> None:
    found = vectors(rows, width, seed)
    among = cosines(found.numpy(), found.numpy())[np.triu_indices(rows, 1)]
    assert cosine_spread(found) == pytest.approx((among.mean(), among.std(ddof=1)), abs=1e-9)


def test_one_pair_has_no_spread_and_vectors_that_are_alike_have_none() -> None:
    assert cosine_spread(vectors(2, 3)) is None
    assert cosine_spread(vectors(1, 3)) is None
    assert cosine_spread(vectors(1, 3).expand(4, 3)) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_of_many_pairs_some_are_drawn_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = vectors(200, 4), vectors(200, 4) + vectors(200, 4, 1)
    exact = rank_correlation(one, other)
    monkeypatch.setattr(sentence_scores, "PAIRS", 5_000)
    drawn = rank_correlation(one, other)
    assert drawn == rank_correlation(one, other) != exact
    assert drawn == pytest.approx(exact, abs=0.05)
    first, second = sentence_scores._pairs(200)
    assert len(first) == 5_000
    assert (first != second).all()
    assert set(torch.cat([first, second]).tolist()) == set(range(200))


# ── Retrieval ──

ANGLES = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0])


def at(degrees: Tensor) -> Tensor:
    return torch.stack([torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()], 1).double()


def test_precisions_are_those_of_a_ranking_by_hand() -> None:
    """From 0°, candidates come in their order. Right are the 2nd and 5th, then all, then the last."""
    candidates = at(ANGLES + 1)
    query = at(torch.zeros(1))
    for labels, first, average in (
        ([0, 1, 0, 0, 1], 0.0, (1 / 2 + 2 / 5) / 2),
        ([1, 1, 1, 1, 1], 1.0, 1.0),
        ([0, 0, 0, 0, 1], 0.0, 1 / 5),
        ([1, 0, 1, 0, 0], 1.0, (1 + 2 / 3) / 2),
    ):
        found = retrieval(query, torch.tensor([1]), candidates, torch.tensor(labels))
        assert found == pytest.approx((first, average))


def test_a_query_does_not_find_itself() -> None:
    labels, all_rows = torch.tensor([0, 1, 1, 0, 1]), torch.arange(5)
    points = at(ANGLES + torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0]))  # no two distances from one are equal
    first, average = retrieval(points, labels, points, labels, all_rows)
    by_hand = []
    for query in range(5):
        order = sorted((row for row in range(5) if row != query), key=lambda row: -float(points[query] @ points[row]))
        right = [labels[row].item() == labels[query].item() for row in order]
        hits = [rank for rank, hit in enumerate(right, start=1) if hit]
        by_hand.append((right[0], sum(count / rank for count, rank in enumerate(hits, start=1)) / len(hits)))
    assert (first, average) == pytest.approx(tuple(np.mean(by_hand, axis=0)))


@given(rows=st.integers(2, 30), classes=st.integers(1, 4), seed=st.integers(0, 999))
def test_average_precision_agrees_with_loops(rows: int, classes: int, seed: int) -> None:
    queries, candidates = vectors(rows, 3, seed), vectors(rows, 3, seed + 1)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(classes, size=rows))
    similar = cosines(queries.numpy(), candidates.numpy())
    expected = []
    for query in range(rows):
        order = np.argsort(-similar[query])
        ranks = [rank for rank, row in enumerate(order, start=1) if labels[row] == labels[query]]
        expected.append(np.mean([(index + 1) / rank for index, rank in enumerate(ranks)]))
    assert retrieval(queries, labels, candidates, labels)[1] == pytest.approx(np.mean(expected), rel=1e-9)


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    same, numbers = torch.ones(10, 3), torch.arange(10)
    assert retrieval(same, numbers, same, numbers) == pytest.approx((0.0, 1 / 10))


def test_scores_do_not_depend_on_lengths_of_vectors_or_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, labels = vectors(50, 4), vectors(50, 4, 1), torch.arange(50) % 7
    whole = retrieval(one, labels, other, labels), rank_correlation(one, other)
    monkeypatch.setattr(sentence_scores, "_QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(sentence_scores, "_PAIRS_AT_ONCE", 11)
    longer = one * torch.arange(1, 51).unsqueeze(1)
    assert retrieval(longer, labels, other, labels) == pytest.approx(whole[0])
    assert rank_correlation(longer, other) == pytest.approx(whole[1])
