"""Statistics of several tensors together against numpy over all of their values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from entrenar_core.measuring import TensorStatistics, statistics_of
from entrenar_core.measuring.merging import merged
from entrenar_core.measuring.results import OUTLIER_DEVIATIONS
from stored_tensors import floats, model_of

VALUES = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e30, -1e-30]),
)
PARTS = st.lists(st.lists(VALUES, min_size=1, max_size=20), min_size=1, max_size=6)


def measured(file: Path, arrays: Sequence[NDArray[Any]], dtype: str = "F32") -> list[TensorStatistics]:
    with model_of(file, {f"t{number}": floats(array, dtype) for number, array in enumerate(arrays)}) as model:
        return [statistics_of(model, tensor, threads=1) for tensor in model.tensors.values()]


def check(found: TensorStatistics, arrays: Sequence[NDArray[Any]]) -> None:
    """Holds every figure against float64."""
    values = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    finite = values[np.isfinite(values)]
    assert (found.count, found.nan, found.inf) == (len(values), np.isnan(values).sum(), np.isinf(values).sum())
    if not len(finite):
        assert found.finite is None
        return
    told, scale = found.finite, np.abs(finite).max() or 1.0
    assert told is not None
    assert (told.values, told.minimum, told.maximum) == (len(finite), finite.min(), finite.max())
    assert told.zeros == (finite == 0).sum()
    for figure, expected in (
        (told.mean, finite.mean()),
        (told.std, finite.std()),
        (told.abs_mean, np.abs(finite).mean()),
        (told.l2_norm, np.linalg.norm(finite)),
    ):
        assert figure == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale)


@given(parts=PARTS)
def test_agrees_with_numpy_over_all_values(tmp_path_factory: pytest.TempPathFactory, parts: list[list[float]]) -> None:
    arrays = [np.asarray(part, np.float32) for part in parts]
    found = measured(tmp_path_factory.mktemp("parts") / "x", arrays)
    check(merged(found), arrays)
    if len(found) == 1:
        assert merged(found) is found[0]


@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(1, 499), max_size=5, unique=True))
def test_cutting_a_tensor_changes_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: list[int]) -> None:
    whole = np.random.default_rng(seed).normal(3, 0.01, 500).astype(np.float32)
    folder = tmp_path_factory.mktemp("cuts")
    (expected,) = measured(folder / "whole", [whole])
    found = merged(measured(folder / "parts", np.split(whole, sorted(cuts))))
    assert found.finite is not None
    assert expected.finite is not None
    for name in ("mean", "std", "abs_mean", "l2_norm", "low", "high"):
        assert getattr(found.finite, name) == pytest.approx(getattr(expected.finite, name), rel=1e-12)


def test_outliers_are_those_of_each_tensor_and_bins_are_of_none(tmp_path: Path) -> None:
    small, large = np.zeros(100), np.zeros(100)
    small[0], large[::2], large[1::2] = 1.0, 1000.0, -1000.0  # of all values together, 1.0 is none
    found = merged(measured(tmp_path / "x", [small, large])).finite
    assert found is not None
    assert (found.outliers, found.histogram) == (1, ())
    both = np.concatenate([small, large])
    assert np.abs(both - both.mean()).max() < OUTLIER_DEVIATIONS * both.std()


def test_values_whose_squares_are_beyond_float64_do_not_overflow(tmp_path: Path) -> None:
    found = merged(measured(tmp_path / "x", [np.array([1.3e154]), np.array([-1.3e154])], "F64")).finite
    assert found is not None
    assert (found.mean, found.std) == (0.0, pytest.approx(1.3e154))
    assert found.l2_norm == pytest.approx(1.3e154 * 2**0.5)


def test_no_tensor_has_no_values() -> None:
    assert merged([]) == TensorStatistics(0, 0, 0, None)
