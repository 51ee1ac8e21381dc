"""Differences of tensors against numpy in float64, for dtypes alike and unlike; what is the same to the bit."""

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
from entrenar_core.measuring import Difference, difference, differences, digest, same_bytes
from entrenar_core.measuring.differences import norm
from stored_tensors import Part, floats, model_of

Values = NDArray[Any]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "BLOCK_VALUES", 512)


def measured(folder: Path, a: Part, b: Part) -> Difference:
    told: list[int] = []
    with model_of(folder / "a", {"t": a}) as first, model_of(folder / "b", {"u": b}) as second:
        found = difference(first, first.tensors["t"], second, second.tensors["u"], progress=told.append)
    assert sum(told) == len(a.raw) + len(b.raw)
    return found


def check(found: Difference, a: Values, b: Values) -> None:
    """Holds every figure against float64."""
    shape = a.shape
    exact_a, exact_b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    both = np.isfinite(exact_a) & np.isfinite(exact_b)
    same = (exact_a == exact_b) | (np.isnan(exact_a) & np.isnan(exact_b))
    apart = np.where(both, exact_b - np.where(both, exact_a, 0), 0)
    exact_a, exact_b = np.where(both, exact_a, 0), np.where(both, exact_b, 0)
    assert found.values == a.size
    assert found.differing == (~same).sum()
    assert found.differing_ratio == (~same).mean()
    assert found.non_finite_differ == bool((~same & ~both).any())
    assert found.max_abs == pytest.approx(np.abs(apart).max(), rel=1e-6)
    if found.largest_at is None:
        assert not apart.any()
    else:
        assert abs(apart.reshape(shape)[found.largest_at]) == pytest.approx(found.max_abs, rel=1e-6)
    assert found.mean_abs == pytest.approx(np.abs(apart[both]).mean(), rel=1e-6)
    assert found.rms == pytest.approx(np.sqrt((apart[both] ** 2).mean()), rel=1e-6)
    norm_a, norm_b = np.linalg.norm(exact_a), np.linalg.norm(exact_b)
    assert found.distance == pytest.approx(np.linalg.norm(apart), rel=1e-6)
    assert found.norm == pytest.approx(norm_a, rel=1e-6)
    assert found.relative == (pytest.approx(np.linalg.norm(apart) / norm_a, rel=1e-6) if norm_a else None)
    if norm_a and norm_b:
        unit_a, unit_b = exact_a / norm_a, exact_b / norm_b
        expected = 0.5 * np.linalg.norm(unit_a - unit_b) ** 2  # 1 − cos, without cancellation
        assert found.cosine_distance == pytest.approx(expected, rel=1e-5, abs=1e-13)
        assert found.cosine == pytest.approx(unit_a @ unit_b, abs=1e-6)
    else:
        assert found.cosine is found.cosine_distance is None


def decoded(part: Part) -> Values:
    """What numpy and torch make of a part."""
    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[str(part.dtype)]
    return torch.frombuffer(bytearray(part.raw), dtype=kind).double().numpy().reshape(part.shape)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("first", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("second", ["F64", "F32", "BF16"])
def test_tensors_that_differ_everywhere(first: str, second: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 61, 50))
    a, b = floats(values[0], first), floats(values[1], second)
    check(measured(tmp_path, a, b), decoded(a), decoded(b))


@pytest.mark.usefixtures("small_blocks")
@given(
    places=st.sets(st.integers(0, 2999), max_size=4),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    kinds=st.sampled_from([("F32", "F32"), ("BF16", "BF16"), ("BF16", "F32"), ("F64", "F32")]),
    wild=st.lists(st.tuples(st.integers(0, 2999), st.sampled_from([np.nan, np.inf, -np.inf])), max_size=3),
    seed=st.integers(0, 99),
)
def test_tensors_that_differ_here_and_there(
    places: set[int],
    size: float,
    kinds: tuple[str, str],
    wild: list[tuple[int, float]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Of values so small or large that their squares leave float32, too; with values that are not finite."""
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((60, 50)) * size
    b = a.copy()
    b.flat[sorted(places)] += size * generator.standard_normal(len(places))
    for number, (place, value) in enumerate(wild):
        (a if number == 1 else b).flat[place] = value
        if number == 2:
            a.flat[place] = value
    first, second = floats(a, kinds[0]), floats(b, kinds[1])
    found = measured(tmp_path_factory.mktemp("x"), first, second)
    assert found.identical == (kinds[0] == kinds[1] and first.raw == second.raw)
    if not found.identical:
        check(found, decoded(first), decoded(second))


@pytest.mark.usefixtures("small_blocks")
def test_identical_tensors_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("entrenar_core.measuring.reading.decode", refuse)
    part = floats([1, np.nan, 3] * 500, "BF16")
    expected = Difference(1500, True, 0, False, 0.0, None, 0.0, 0.0, 0.0, None, 0.0)
    assert measured(tmp_path, part, part) == expected
    assert (expected.cosine, expected.relative) == (1, 0)


def test_equal_values_of_two_dtypes_are_not_identical(tmp_path: Path) -> None:
    values = np.arange(-50.0, 50).reshape(4, 25)
    found = measured(tmp_path, floats(values, "BF16"), floats(values, "F32"))
    assert (found.identical, found.differing, found.max_abs, found.largest_at) == (False, 0, 0, None)
    assert found.relative == found.cosine_distance == 0


def test_zero_and_minus_zero_are_one_value_of_two_bits(tmp_path: Path) -> None:
    found = measured(tmp_path, floats([0.0, 1.0]), floats([-0.0, 1.0]))
    assert (found.identical, found.differing) == (False, 0)


def test_from_zeros_nothing_is_relative(tmp_path: Path) -> None:
    found = measured(tmp_path, floats(np.zeros(9)), floats(np.ones(9)))
    assert (found.relative, found.cosine, found.rms) == (None, None, 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("share", [0, 1e-18, 1e-4, 0.3, 1e3])
def test_what_shrinks_or_grows_keeps_its_direction(share: float, tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 61, 50))
    first, second = floats(a), floats(share * (a + b))
    check(measured(tmp_path, first, second), decoded(first), decoded(second))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [511, 512, 513, 2000, 2001])
def test_the_largest_of_bf16_is_told_where_it_lies(size: int, tmp_path: Path) -> None:
    a = np.random.default_rng(0).standard_normal(size)
    for place in (0, 1, 255, 256, 257, 509, 510, size - 2, size - 1):
        b = a + 0.01
        b[place] = a[place] + 5
        first, second = floats(a, "BF16"), floats(b, "BF16")
        found = measured(tmp_path, first, second)
        assert found.largest_at == (place,)
        check(found, decoded(first), decoded(second))


@pytest.mark.parametrize("first", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("second", ["F32", "BF16"])
@pytest.mark.parametrize("odd", [None, np.nan, np.inf, 1e25])
def test_blocks_of_pieces(first: str, second: str, odd: float | None, tmp_path: Path) -> None:
    """Of whole pieces, of several blocks, and with a rest; and where float32 is not enough for a block."""
    rng = np.random.default_rng(0)
    for size in (1 << 16, 5 << 16, (5 << 16) + 77):
        a = rng.standard_normal(size)
        b = a + 0.01 * rng.standard_normal(size)
        b[size - 40_001] += 8
        if odd is not None:
            b[70_000 % size] = odd
        one, other = floats(a, first), floats(b, second)
        with np.errstate(invalid="ignore", over="ignore"):
            check(measured(tmp_path, one, other), decoded(one), decoded(other))


@pytest.mark.usefixtures("small_blocks")
def test_of_several_largest_differences_the_first_is_told(tmp_path: Path) -> None:
    a = np.random.default_rng(0).integers(0, 3, (90, 100)).astype(np.float32)
    b = a.copy()
    for row in (88, 70, 31, 50):
        b[row, 7] = a[row, 7] + 2
    b[5] += 1
    for _ in range(10):
        assert measured(tmp_path, floats(a), floats(b)).largest_at == (31, 7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_the_norm_of_one_tensor(dtype: str, size: float, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((50, 60)) * size
    values[3, 4] = np.inf
    part = floats(values, dtype)
    expected = decoded(part)[np.isfinite(values)]
    with model_of(tmp_path / "x", {"t": part}) as model:
        assert norm(model, model.tensors["t"]) == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    with model_of(tmp_path / "y", {"t": floats(np.ones((0, 3)))}) as model:
        assert norm(model, model.tensors["t"]) == 0


@pytest.mark.parametrize("step", [1e-3, 1e-6])
def test_a_cosine_near_one_keeps_its_digits(step: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal(100_000)
    b = a + step * generator.standard_normal(len(a))
    found = measured(tmp_path, floats(a, "F64"), floats(b, "F64"))
    assert found.cosine_distance == pytest.approx(step**2 / 2, rel=0.05)


def test_a_quantised_tensor_is_held_against_what_it_was(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_0)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_0)
    found = measured(tmp_path, floats(weights), Part("Q4_0", (6, 64), raw.tobytes()))
    check(found, weights, values)
    assert 0.05 < (found.relative or 0) < 0.12


def test_large_integers_are_told_apart(tmp_path: Path) -> None:
    ints = [np.array([[1, 2, 3], [4, 5, 2**60]]), np.array([[1, 2, 4], [4, 5, 2**60 + 1024]])]
    found = measured(tmp_path, *(Part("I64", (2, 3), one.tobytes()) for one in ints))
    assert (found.differing, found.max_abs, found.largest_at) == (2, 1024, (1, 2))


def test_scales_in_front_and_blocks_that_are_not_full(tmp_path: Path) -> None:
    levels = np.array([1, -2, 3], np.int8)
    a, b = (np.float32(scale).tobytes() + levels.tobytes() for scale in (0.5, 0.25))
    with model_of(tmp_path / "x", {"a": Part("APR_Q8", (3,), a), "b": Part("APR_Q8", (3,), b)}) as model:
        one, other = model.tensors.values()
        assert not same_bytes(model, one, model, other)
        check(difference(model, one, model, other), levels * 0.5, levels * 0.25)
    blocks = [Part("APR_Q4", (5,), np.float16(1).tobytes() + bytes([0x89] * 3 + [rest] * 13)) for rest in (0, 255)]
    found = measured(tmp_path, *blocks)
    assert (found.identical, found.differing) == (False, 0)


def test_complex_numbers_are_compared_by_their_parts(tmp_path: Path) -> None:
    parts = [Part("C64", (2,), np.array(one, "<c8").tobytes()) for one in ([1, 2 + 3j], [1, 2 + 5j])]
    found = measured(tmp_path, *parts)
    assert (found.differing, found.max_abs, found.largest_at) == (1, 2, (1,))
    with pytest.raises(ModelError, match="complex"):
        measured(tmp_path, parts[0], floats([1, 2]))


@pytest.mark.filterwarnings("error")
def test_values_whose_squares_are_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensor t has values so large"):
        measured(tmp_path, floats([1e200, 1.0], "F64"), floats([1.0, -1.7e308], "F64"))


def test_tensors_of_two_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"t has the shape \[2, 3\], and u \[3, 2\]"):
        measured(tmp_path, floats(np.ones((2, 3))), floats(np.ones((3, 2))))


def test_empty_tensors_are_identical(tmp_path: Path) -> None:
    found = measured(tmp_path, floats(np.ones((0, 3))), floats(np.ones((0, 3))))
    assert (found.values, found.identical, found.differing_ratio) == (0, True, 0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [0, 5, 1000, 2_000_000])
def test_what_was_renamed_is_found_by_its_content(size: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(size).astype("<f4")
    changed = values.copy()
    changed[size // 2 :][:1] += 1
    parts = {
        "a": floats(values),
        "b": floats(changed),
        "c": floats(values),
        "d": Part("U32", (size,), values.tobytes()),
    }
    with model_of(tmp_path / "x", parts) as model:
        a, b, c, d = model.tensors.values()
        assert digest(model, a) == digest(model, c)
        assert same_bytes(model, a, model, c)
        assert same_bytes(model, a, model, b) == (size == 0)
        assert not same_bytes(model, a, model, d)
        if 0 < size < 10_000:
            assert digest(model, a) != digest(model, b)


def test_digests_of_large_tensors_look_at_both_ends(tmp_path: Path) -> None:
    raw = bytearray(2**20)
    parts = {"plain": Part("U8", (2**20,), bytes(raw))}
    for place in (0, 4095, 2**20 - 4096, 2**20 - 1):
        raw[place] = 1
        parts[str(place)] = Part("U8", (2**20,), bytes(raw))
        raw[place] = 0
    with model_of(tmp_path / "x", parts) as model:
        assert len({digest(model, tensor) for tensor in model.tensors.values()}) == len(parts)


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    with model_of(tmp_path / "x", {"t": floats(np.ones(2**20))}) as model:
        tensor = model.tensors["t"]
        (tmp_path / "x").write_bytes(bytes(2**20))
        for measure in (difference, same_bytes):
            with pytest.raises(ModelError, match="ends"):
                measure(model, tensor, model, tensor)
        with pytest.raises(ModelError, match="ends"):
            digest(model, tensor)
