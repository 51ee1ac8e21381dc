"""Distances between distributions in cells, against scipy's in 64 bits; and what joining tokens does to them."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from entrenar_core.verification.asking import Told
from entrenar_core.verification.comparing import Cells, cells_of, cosines, distances, joined, told_cells

Floats = NDArray[np.float64]
LEAST = 1e-6


def log_p(positions: int, vocabulary: int, seed: int, width: float = 2.0) -> Floats:
    logits = np.random.default_rng(seed).normal(size=(positions, vocabulary)) * width
    return np.asarray(scipy.special.log_softmax(logits, -1))


def told_of(log_p_PV: Floats, labels_P: NDArray[np.int64], count: int) -> Told:
    """What a server would say of a distribution: so many of the likeliest, and the token that follows."""
    order_PV = np.argsort(-log_p_PV, -1, kind="stable")[:, :count]
    label_P = np.take_along_axis(log_p_PV, labels_P[:, None], -1)[:, 0]
    return Told(order_PV, np.take_along_axis(log_p_PV, order_PV, -1), label_P, count >= log_p_PV.shape[1])


def labels(positions: int, vocabulary: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed + 500).integers(0, vocabulary, positions)


def true_kl(original_PV: Floats, model_PV: Floats) -> Floats:
    return np.asarray(scipy.special.rel_entr(np.exp(original_PV), np.exp(model_PV)).sum(-1))


@given(positions=st.integers(1, 4), vocabulary=st.integers(2, 30), seed=st.integers(0, 99))
def test_with_every_token_told_all_distances_are_those_of_the_whole_distributions(
    positions: int, vocabulary: int, seed: int
) -> None:
    original, model = log_p(positions, vocabulary, seed), log_p(positions, vocabulary, seed + 1)
    labels_P = labels(positions, vocabulary, seed)
    told = told_of(model, labels_P, vocabulary)
    found = distances(cells_of(original, told, labels_P), told_cells(told, labels_P))
    kl_P = true_kl(original, model)
    rows = np.arange(positions)
    drop_P = original[rows, labels_P] - model[rows, labels_P]
    assert found.kl_mean == pytest.approx(kl_P.mean(), rel=1e-9, abs=1e-12)
    assert found.kl_max == pytest.approx(kl_P.max(), rel=1e-9, abs=1e-12)
    assert found.agreement == (original.argmax(-1) == model.argmax(-1)).mean()
    assert found.loss == pytest.approx(drop_P.mean(), abs=1e-9)
    top_PT = np.argsort(-original, -1)[:, :10]
    differences = np.abs(original - model)
    among = np.take_along_axis(differences, top_PT, -1).ravel()
    every = np.concatenate([among, np.abs(drop_P)])
    assert found.difference_max == pytest.approx(every.max(), abs=1e-9)
    assert every.min() - 1e-9 <= found.difference_mean <= every.max() + 1e-9


@given(vocabulary=st.integers(3, 40), seed=st.integers(0, 99), data=st.data())
def test_told_in_part_kl_is_a_lower_bound_that_grows_with_what_is_told(
    vocabulary: int, seed: int, data: st.DataObject
) -> None:
    original, model = log_p(3, vocabulary, seed), log_p(3, vocabulary, seed + 1)
    labels_P = labels(3, vocabulary, seed)
    few = data.draw(st.integers(1, vocabulary - 1))
    more = data.draw(st.integers(few, vocabulary))
    bounds = []
    for count in (few, more):
        told = told_of(model, labels_P, count)
        bounds.append(distances(cells_of(original, told, labels_P), told_cells(told, labels_P)).kl_mean)
    assert 0 <= bounds[0] <= bounds[1] + 5 * LEAST
    assert bounds[1] <= true_kl(original, model).mean() + 5 * LEAST


@given(vocabulary=st.integers(2, 40), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_model_is_at_no_distance_from_itself(vocabulary: int, count: int, seed: int) -> None:
    same, labels_P = log_p(2, vocabulary, seed), labels(2, vocabulary, seed)
    told = told_of(same, labels_P, min(count, vocabulary))
    found = distances(cells_of(same, told, labels_P), told_cells(told, labels_P))
    assert found.kl_max <= 3 * LEAST
    assert found.difference_max <= 1e-12
    assert found.agreement == 1
    assert found.loss == pytest.approx(0, abs=1e-12)


def test_tokens_that_only_the_original_has_make_kl_large_and_finite() -> None:
    original = np.log(np.array([[0.5, 0.25, 0.25]]))
    model = np.log(np.array([[0.6, 0.4]]))
    labels_P = np.array([0])
    told = told_of(model, labels_P, 2)
    kl = distances(cells_of(original, told, labels_P), told_cells(told, labels_P)).kl_mean
    expected = 0.5 * np.log(0.5 / 0.6) + 0.25 * np.log(0.25 / 0.4) + 0.25 * np.log(0.25 / LEAST)
    assert kl == pytest.approx(expected, rel=1e-9)


def test_tokens_that_only_the_gguf_has_take_probability_away() -> None:
    original = np.log(np.array([[0.5, 0.5]]))
    model = np.log(np.array([[0.25, 0.25, 0.5]]))
    labels_P = np.array([1])
    told = told_of(model, labels_P, 3)
    found = distances(cells_of(original, told, labels_P), told_cells(told, labels_P))
    assert found.kl_mean == pytest.approx(np.log(2), rel=1e-9)
    assert found.loss == pytest.approx(np.log(2), rel=1e-9)


def test_what_32_bits_miss_of_a_sum_of_one_is_no_distance_where_every_token_is_told() -> None:
    same = log_p(2, 9, 4)
    labels_P = np.array([3, 5])
    told = told_of(same, labels_P, 9)
    off = Told(told.tokens_PK, told.log_p_PK - 1e-4, told.label_P - 1e-4, told.is_whole)
    found = distances(cells_of(same, told, labels_P), told_cells(off, labels_P))
    assert found.kl_max < 1e-12
    assert abs(found.loss) < 1e-12


def test_the_standard_error_of_the_loss_is_that_of_its_mean() -> None:
    original, model = log_p(50, 6, 1), log_p(50, 6, 2)
    labels_P = labels(50, 6, 0)
    told = told_of(model, labels_P, 6)
    found = distances(cells_of(original, told, labels_P), told_cells(told, labels_P))
    drop_P = (original - model)[np.arange(50), labels_P]
    assert found.loss_error == pytest.approx(drop_P.std(ddof=1) / 50**0.5)


def test_positions_of_several_rows_are_put_one_after_another() -> None:
    parts = [Cells(np.full((n, 3), float(n)), np.full(n, float(n)), np.full(n, n)) for n in (1, 2)]
    whole = joined(parts)
    assert whole.label_P.tolist() == [1, 2, 2]
    assert whole.top_P.tolist() == [1, 2, 2]
    assert whole.log_p_PC[:, 0].tolist() == [1, 2, 2]


def test_cosines_are_those_of_directions() -> None:
    original = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    model = np.array([[5.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    assert cosines(original, model).tolist() == pytest.approx([1.0, 0.5**0.5, 0.0])
