"""Spectra of s · B · A against numpy's dense SVD in float64, the figures against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from entrenar_core.adapters.leading import leading_vectors
from entrenar_core.adapters.spectrum import NEGLIGIBLE, Spectrum, spectrum_of

Matrix = NDArray[np.float32]


def matrices(out: int, into: int, rank: int, seed: int) -> tuple[Matrix, Matrix]:
    random = np.random.default_rng(seed)
    down, up = random.standard_normal((rank, into)), random.standard_normal((out, rank))
    return down.astype(np.float32), up.astype(np.float32)


def dense(down: Matrix, up: Matrix, scale: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.svd(
        scale * up.astype(np.float64) @ down.astype(np.float64), compute_uv=False
    )
    return found


@given(
    out=st.integers(1, 40),
    into=st.integers(1, 40),
    rank=st.integers(1, 12),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_agrees_with_a_dense_svd(out: int, into: int, rank: int, scale: float, seed: int) -> None:
    down, up = matrices(out, into, rank, seed)
    found = spectrum_of(down, up, scale)
    expected = dense(down, up, scale)[:rank]
    assert found.rank == rank
    assert np.allclose(found.values[: len(expected)], expected, rtol=1e-9, atol=1e-12 * expected[0])
    assert set(found.values[len(expected) :]) <= {0.0}, "a rank above the sides of the matrix has no more directions"
    assert found.frobenius == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert found.spectral == pytest.approx(expected[0], rel=1e-9)


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_the_figures_are_those_of_their_definitions(values: list[float]) -> None:
    ordered = sorted(values, reverse=True)
    found, sigma = Spectrum(tuple(ordered)), np.array(ordered)
    shares = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert found.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-9)
    assert found.participation == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-9)
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    for wanted in (0.5, 0.9, 0.99):
        count = found.keeping(wanted)
        assert energy[count - 1] >= wanted - 1e-12
        assert count == 1 or energy[count - 2] < wanted + 1e-12


@pytest.mark.parametrize("count", [1, 5, 16])
def test_equal_values_use_the_whole_rank(count: int) -> None:
    found = Spectrum((3.0,) * count)
    figures = (found.effective_rank, found.stable_rank, found.participation)
    assert figures == pytest.approx((count, count, count))
    assert found.keeping(0.99) == count
    assert found.unused == 0


def test_nothing_has_no_directions_and_no_division_by_it() -> None:
    for found in (Spectrum((0.0, 0.0)), Spectrum(())):
        assert (found.effective_rank, found.stable_rank, found.participation, found.frobenius) == (0, 0, 0, 0)
        assert found.keeping(0.99) == 0
        assert found.unused == found.rank
        assert found.kept(1) == 1


def test_directions_that_depend_on_others_are_unused() -> None:
    down, up = matrices(50, 60, 8, seed=1)
    up[:, 5] = 0  # one that was never trained
    up[:, 6], down[6] = up[:, 2], 3 * down[2]  # one that repeats another
    found = spectrum_of(down, up)
    assert found.unused == 2
    assert np.allclose(found.values[:6], dense(down, up, 1.0)[:6], rtol=1e-9)


def test_a_weak_direction_is_still_measured_and_what_float32_drops_is_not_used() -> None:
    down, up = matrices(30, 30, 2, seed=2)
    orthogonal = [np.linalg.qr(part)[0] for part in (up, down.T)]
    for weak, unused in ((1e-5, 0), (NEGLIGIBLE / 10, 1)):
        spread = np.diag([1.0, weak])
        found = spectrum_of(orthogonal[1].T, orthogonal[0] @ spread)
        assert found.values[1] == pytest.approx(weak, rel=1e-4)
        assert found.unused == unused


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    down, up = matrices(20, 20, 3, seed=3)
    for factor in (1e18, 1e-18):
        found = spectrum_of(down * np.float32(factor), up * np.float32(factor))
        assert found.effective_rank == pytest.approx(spectrum_of(down, up).effective_rank, rel=1e-5)
        assert np.isfinite(found.frobenius)


def test_kept_is_the_share_of_the_energy() -> None:
    assert Spectrum((2.0, 1.0)).kept(1) == pytest.approx(0.8)
    assert Spectrum((2.0, 1.0)).kept(2) == 1


@pytest.mark.parametrize(("rows", "columns"), [(80, 120), (120, 80)])
def test_leading_vectors_are_those_of_a_dense_svd(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    matrix += 20 * torch.outer(torch.linspace(-1, 1, rows), torch.linspace(1, 2, columns)) / 10
    found = leading_vectors(matrix, 6)
    expected = torch.linalg.svd(matrix)[0][:, :6]
    assert (found.T @ expected).abs().diagonal().min() > 0.999
    assert torch.allclose(found.T @ found, torch.eye(6), atol=1e-4)


def test_leading_vectors_of_a_matrix_of_low_rank_are_as_many_as_it_has() -> None:
    factors = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    found = leading_vectors(factors[0].T @ factors[1], 8)
    assert found.shape == (40, 3)
    assert leading_vectors(torch.zeros(5, 6), 2).shape == (5, 0)
