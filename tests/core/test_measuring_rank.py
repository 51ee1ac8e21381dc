"""Effective and stable rank against numpy's singular values, on spectra that are known."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from entrenar_core.errors import ModelError
from entrenar_core.measuring import EffectiveRank, effective_rank, matrices
from stored_tensors import Part, floats, model_of

Matrix = NDArray[np.float64]
SIDE = 80  # OpenBLAS starts no threads for products of matrices as small as these
DECAYS: Mapping[str, Matrix] = {
    "flat": np.ones(SIDE),
    "linear": np.linspace(1, 0.01, SIDE),
    "square root": 1 / np.sqrt(np.arange(1, SIDE + 1)),
    "a few and noise": np.concatenate([np.full(5, 100.0), np.ones(SIDE - 5)]),
    "of rank one": np.array([3.0]),
    "of rank seven": np.linspace(1, 2, 7),
}


def entropy_rank(values: Matrix) -> float:
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def matrix_of(values: Matrix, rows: int = SIDE, columns: int = SIDE, seed: int = 0) -> Matrix:
    """A random matrix with these singular values."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((size, len(values))))[0] for size in (rows, columns))
    found: Matrix = (left * values) @ right.T
    return found


def measured(path: Path, part: Part, **how: int) -> EffectiveRank:
    told: list[int] = []
    with model_of(path, {"t": part}) as model:
        tensor = model.tensors["t"]
        found = effective_rank(model, tensor, progress=told.append, **how)
        assert sum(told) == tensor.size_bytes
    return found


@pytest.fixture(params=["in memory", "read again"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_BLOCK_VALUES", 2048)
    if request.param == "read again":
        monkeypatch.setattr(matrices, "KEPT_BYTES", 0)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (3 * SIDE, SIDE), (SIDE, 2 * SIDE)])
def test_computed_ranks_are_those_of_the_singular_values(decay: str, shape: tuple[int, int], tmp_path: Path) -> None:
    values = DECAYS[decay]
    found = measured(tmp_path / "x", floats(matrix_of(values, *shape), "F64"))
    assert (found.rows, found.columns, found.standard_error) == (*shape, None)
    assert found.entropy_rank == pytest.approx(entropy_rank(values), rel=1e-4)
    assert found.stable_rank == pytest.approx((values**2).sum() / values.max() ** 2, rel=1e-5)
    assert found.largest_singular_value == pytest.approx(values.max(), rel=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 2 * SIDE)])
def test_estimates_lie_within_their_error(decay: str, shape: tuple[int, int], tmp_path: Path) -> None:
    values = DECAYS[decay]
    found = measured(tmp_path / "x", floats(matrix_of(values, *shape)), exact_side=10)
    assert found.standard_error is not None
    slack = 1e-3 * entropy_rank(values)  # float32
    assert abs(found.entropy_rank - entropy_rank(values)) <= 4 * found.standard_error + slack
    assert found.standard_error < 0.3 * entropy_rank(values)
    assert found.stable_rank == pytest.approx((values**2).sum() / values.max() ** 2, rel=1e-3)
    assert found.largest_singular_value == pytest.approx(values.max(), rel=1e-4)


@pytest.mark.usefixtures("kept")
def test_an_estimate_is_the_same_whether_the_matrix_is_kept(tmp_path: Path) -> None:
    tall = matrix_of(DECAYS["linear"], 2 * SIDE, SIDE)
    found = measured(tmp_path / "x", floats(tall), exact_side=10)
    assert found.entropy_rank == pytest.approx(entropy_rank(DECAYS["linear"]), rel=0.05)
    assert found == measured(tmp_path / "y", floats(tall), exact_side=10), "one seed, one estimate"
    assert found.entropy_rank != measured(tmp_path / "z", floats(tall), exact_side=10, seed=1).entropy_rank


def test_the_standard_error_is_what_seeds_spread(tmp_path: Path) -> None:
    values = DECAYS["square root"]
    part = floats(matrix_of(values))
    found = [measured(tmp_path / "x", part, exact_side=10, seed=seed) for seed in range(12)]
    spread = float(np.std([one.entropy_rank for one in found]))
    told = float(np.mean([one.standard_error or 0 for one in found]))
    assert 0.5 < spread / told < 1.8
    bias = float(np.mean([one.entropy_rank for one in found])) - entropy_rank(values)
    assert abs(bias) < 4 * told / np.sqrt(len(found))


def test_of_an_ill_conditioned_matrix_an_estimate_says_that_it_is_rough(tmp_path: Path) -> None:
    values = np.geomspace(1, 1e-8, 4 * SIDE)
    found = measured(tmp_path / "x", floats(matrix_of(values, 4 * SIDE, 4 * SIDE), "F64"), exact_side=10)
    assert found.standard_error is not None
    assert abs(found.entropy_rank - entropy_rank(values)) < 2 * found.standard_error


def test_where_an_estimate_is_rough_the_rank_is_computed_after_all(tmp_path: Path) -> None:
    part = floats(matrix_of(DECAYS["of rank one"]))
    found = {side: measured(tmp_path / "x", part, exact_side=side) for side in (SIDE // 2 - 1, SIDE // 2)}
    assert [one.standard_error is None for one in found.values()] == [False, True]
    assert found[SIDE // 2].entropy_rank == pytest.approx(1, rel=1e-4)
    fine = measured(tmp_path / "x", floats(matrix_of(DECAYS["flat"])), exact_side=SIDE // 2)
    assert fine.standard_error is not None, "it is good enough"


@pytest.mark.parametrize("how", [{}, {"exact_side": 10}])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
def test_the_scale_changes_no_rank(scale: float, how: dict[str, int], tmp_path: Path) -> None:
    values = DECAYS["linear"]
    found = measured(tmp_path / "x", floats(matrix_of(values) * scale), **how)
    plain = measured(tmp_path / "y", floats(matrix_of(values)), **how)
    assert found.entropy_rank == pytest.approx(plain.entropy_rank, rel=1e-4)
    assert found.largest_singular_value == pytest.approx(scale * values.max(), rel=1e-4)


def test_other_dtypes_and_dimensions(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(-8, 8, (6, 4, 3))
    values = np.linalg.svd(levels.reshape(6, 12).astype(float), compute_uv=False)
    parts = {
        "I8": Part("I8", levels.shape, levels.astype("i1").tobytes()),
        "I64": Part("I64", levels.shape, levels.astype("<i8").tobytes()),
        "BF16": floats(levels, "BF16"),
        "APR_Q8": Part("APR_Q8", levels.shape, np.float32(1).tobytes() + levels.astype("i1").tobytes()),
    }
    for name, part in parts.items():
        found = measured(tmp_path / name, part)
        assert (found.rows, found.columns) == (6, 12)
        assert found.entropy_rank == pytest.approx(entropy_rank(values), rel=1e-6)


def test_blocks_that_cross_rows_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_BLOCK_VALUES", 16)
    levels = np.random.default_rng(0).integers(-8, 8, 150)
    nibbles = np.append(levels + 8, np.zeros(10, int)).reshape(5, 16, 2)
    raw = b"".join(np.float16(1).tobytes() + (row[:, 0] | row[:, 1] << 4).astype(np.uint8).tobytes() for row in nibbles)
    values = np.linalg.svd(levels.reshape(15, 10).astype(float), compute_uv=False)
    found = measured(tmp_path / "x", Part("APR_Q4", (15, 10), raw))
    assert found.entropy_rank == pytest.approx(entropy_rank(values), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (0, 5), (4, 0)])
def test_zeros_have_no_rank(shape: tuple[int, int], tmp_path: Path) -> None:
    found = measured(tmp_path / "x", floats(np.zeros(shape)))
    assert found == EffectiveRank(*shape, 0.0, 0.0, 0.0, None)


def test_what_has_no_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"shape \[3\] and dtype F32 has no rank"):
        measured(tmp_path / "x", floats([1, 2, 3]))
    with pytest.raises(ModelError, match="C64 has no rank"):
        measured(tmp_path / "x", Part("C64", (1, 1), bytes(8)))
    with pytest.raises(ModelError, match="NaN or infinite"):
        measured(tmp_path / "x", floats([[1, np.nan], [2, 3]]))


def test_values_at_the_end_of_float64_have_a_rank(tmp_path: Path) -> None:
    found = measured(tmp_path / "x", floats(np.diag([1.7e308, 1.7e308]), "F64"))
    assert (found.entropy_rank, found.stable_rank) == (pytest.approx(2), pytest.approx(2))
    assert found.largest_singular_value == pytest.approx(1.7e308)
