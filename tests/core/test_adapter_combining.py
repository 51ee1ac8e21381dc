"""Several adapters as one change, against peft's own functions where they mean the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from peft.utils.merge_utils import ties as ties_of_peft
from transformers import AutoModelForCausalLM

from entrenar_core.adapters.changes import Factors
from entrenar_core.adapters.combining import Combination, dare, ties
from entrenar_core.adapters.factoring import cut_matrix, cut_product, least_rank
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.adapters.recombining import write_combined
from entrenar_core.errors import EntrenarError
from entrenar_core.references import PathReference
from lora_models import answers, load, merged, train
from tiny_models import tiny_llama


def matrices(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), count=st.integers(1, 4), density=st.floats(0.05, 1),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_ties_is_that_of_peft(rows: int, columns: int, count: int, density: float, seed: int) -> None:
    changes = matrices(count, rows, columns, seed=seed)
    weights = [0.5 + number for number in range(count)]
    wanted = ties_of_peft(changes, torch.tensor(weights), density)
    assert torch.allclose(ties(changes, weights, density), wanted, atol=1e-6)


def test_dare_keeps_a_share_and_the_expectation() -> None:
    (change,) = matrices(1, 100, 120)
    found = [dare([change], [0.5], 0.3, [seed]) for seed in range(20)]
    kept = [float((one != 0).double().mean()) for one in found]
    assert np.mean(kept) == pytest.approx(0.3, abs=0.004)
    assert torch.allclose(found[0][found[0] != 0], (change * 0.5 / 0.3)[found[0] != 0])
    mean = torch.stack(found).mean(0)
    assert float((mean * change).sum() / (change * change).sum()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(dare([change], [0.5], 0.3, [7]), found[7])


@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), inner=st.integers(1, 8), rank=st.integers(1, 10),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_a_product_is_cut_as_its_matrix_is(rows: int, columns: int, inner: int, rank: int, seed: int) -> None:
    left, right = matrices(1, rows, inner, seed=seed)[0], matrices(1, inner, columns, seed=seed + 1)[0]
    cut = cut_product(Factors(left, right), rank)
    u, s, v = np.linalg.svd((left.double() @ right.double()).numpy())
    kept = min(rank, len(s))
    wanted = (u[:, :kept] * s[:kept]) @ v[:kept]
    assert np.allclose(cut.factors.product.double().numpy(), wanted, atol=1e-4 * s[0])
    assert cut.kept == pytest.approx(float((s[:kept] ** 2).sum() / (s**2).sum()), abs=1e-5)


def test_random_directions_find_what_the_whole_decomposition_does() -> None:
    """A large matrix whose values fall slowly, as differences of trained models do."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(1300, 1100, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(1100, 1100, generator=generator))[0]
    values = 1.0 / torch.arange(1, 1101) ** 0.5
    matrix = (left * values) @ right
    cut = cut_matrix(matrix, rank=16)
    best = float((values[:16] ** 2).sum() / (values**2).sum())
    error = float((matrix - cut.factors.product).double().square().sum() / matrix.double().square().sum())
    assert not cut.exact
    assert cut.kept == pytest.approx(1 - error, abs=1e-5), "what is said to be kept is what is kept"
    assert best - cut.kept < 0.01 * best
    assert cut_matrix(matrix, energy=0.2).rank == pytest.approx(
        int((np.cumsum(values**2) < 0.2 * (values**2).sum()).sum()) + 1, abs=1
    )


def test_the_least_rank_keeps_the_share_and_one_less_does_not() -> None:
    cut = cut_matrix(matrices(1, 30, 20)[0], rank=20)
    for energy in (0.1, 0.5, 0.9, 0.999, 1.0):
        rank = least_rank(cut, energy)
        assert cut.first(rank).kept >= energy - 1e-6
        assert rank == 1 or cut.first(rank - 1).kept < energy


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    base = tiny_llama(folder / "base")
    one = train(base, folder / "one", seed=1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    two = train(base, folder / "two", seed=2, r=6, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return base, one, two


@pytest.mark.parametrize(("method", "rank"), [("cat", None), ("svd", 5)])
def test_a_combined_adapter_is_the_one_that_peft_makes(
    pair: tuple[Path, Path, Path], tmp_path: Path, method: Any, rank: int | None
) -> None:
    base, one, two = pair
    adapters = [(open_adapter(PathReference(str(path))), weight) for path, weight in ((one, 0.7), (two, 0.3))]
    report = write_combined(adapters, Combination(method, rank=rank), tmp_path / "both")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one, adapter_name="one")
    theirs.load_adapter(two, adapter_name="two")
    theirs.add_weighted_adapter(
        ["one", "two"], [0.7, 0.3], "both", combination_type=method, **({"svd_rank": rank} if rank else {})
    )
    theirs.set_adapter("both")
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "both")
    assert (answers(ours.double().eval()) - answers(theirs.double().eval())).abs().max() <= 1e-5
    assert report.ranks == ((10, 10) if rank is None else (5, 5))
    assert report.kept == pytest.approx(1.0) if rank is None else 0.5 < report.kept < 1


def test_ties_as_an_adapter_of_full_rank_is_ties_merged(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, one, two = pair
    how = Combination("ties", density=0.4, rank=32)
    adapters = [(open_adapter(PathReference(str(path))), 1.0) for path in (one, two)]
    report = write_combined(adapters, how, tmp_path / "both")
    merged(base, [one, two], tmp_path / "merged", (), Combination("ties", density=0.4))
    merged(base, [tmp_path / "both"], tmp_path / "again")
    assert report.kept == pytest.approx(1.0)
    assert (answers(load(tmp_path / "merged")) - answers(load(tmp_path / "again"))).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "svd", "density": 0.5}, "--density is for ties and dare"),
        ({"method": "ties"}, "needs to know how much it keeps"),
        ({"method": "dare", "density": 0.0}, "no share"),
        ({"method": "svd", "rank": 0}, "no rank"),
        ({"method": "slerp"}, "not known"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(EntrenarError, match=said):
        Combination(**settings)
