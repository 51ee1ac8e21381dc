"""Tensors of many blocks in other dtypes: torch's bits, and what rounding changed as float64 has it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.conversion import Conversion, convert
from entrenar_core.conversion.casting import BLOCK_VALUES, Rounding
from entrenar_core.conversion.content import Change, cast
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.safetensors_writer import write
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
VALUES = 5 * BLOCK_VALUES + 12_345


def converted(tensors: dict[str, torch.Tensor], folder: Path, dtype: str) -> Conversion:
    save_file(tensors, folder / "in.safetensors")
    with open_model(parse_reference(str(folder / "in.safetensors"))) as model:
        return convert(model, WeightFormat.SAFETENSORS, folder / "out.safetensors", dtype=dtype, force=True)


def weights(dtype: torch.dtype, *, scale: float = 0.02) -> torch.Tensor:
    return (torch.randn(VALUES, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_large_tensors_are_cast_as_by_torch_and_their_rounding_is_told(
    source: str, target: str, tmp_path: Path
) -> None:
    original = weights(TORCH[source])
    done = converted({"w": original}, tmp_path, target)
    expected = original.to(TORCH[target])
    assert load_file(tmp_path / "out.safetensors")["w"].equal(expected)
    if source == target:
        assert done.relative_rms is None
        return
    error = expected.double() - original.double()
    assert done.relative_rms == pytest.approx(float(error.norm() / original.double().norm()), rel=1e-4)
    assert done.largest_error == pytest.approx(float(error.abs().max()), rel=1e-6)


@pytest.mark.parametrize("target", ["F16", "BF16"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 3e3])
def test_values_of_every_size_are_rounded_as_by_torch(target: str, scale: float, tmp_path: Path) -> None:
    """Of zeros and of tiny numbers squares vanish in 32 bits, and many halves are subnormal."""
    original = weights(torch.float32, scale=scale)
    done = converted({"w": original}, tmp_path, target)
    expected = original.to(TORCH[target])
    assert load_file(tmp_path / "out.safetensors")["w"].view(torch.int16).equal(expected.view(torch.int16))
    error = expected.double() - original.double()
    moved = float(error.norm() / original.double().norm()) if scale else 0.0
    assert done.relative_rms == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_what_is_not_finite_stays_so_and_is_no_error(target: str, tmp_path: Path) -> None:
    original = weights(torch.float32)
    original[[5, 600_000]], original[700_000] = torch.nan, torch.inf
    done = converted({"w": original}, tmp_path, target)
    found = load_file(tmp_path / "out.safetensors")["w"]
    assert torch.isnan(found).nonzero().flatten().tolist() == [5, 600_000]
    assert torch.isinf(found).nonzero().flatten().tolist() == [700_000]
    finite = torch.isfinite(original)
    assert found[finite].equal(original.to(TORCH[target])[finite])
    error = (found.double() - original.double())[finite]
    assert done.relative_rms == pytest.approx(float(error.norm() / original[finite].double().norm()), rel=1e-4)


def test_every_value_that_becomes_infinite_is_counted(tmp_path: Path) -> None:
    original = weights(torch.float32)
    original[[3, 65_535, 65_536, 900_000]] = torch.tensor([65_520.0, -1e9, 65_519.0, 70_000.0])
    with pytest.raises(ModelError, match="3 values are beyond what F16 holds"):
        converted({"w": original}, tmp_path, "F16")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_large_tensor_whose_values_are_put_in_another_order(stored: torch.dtype, tmp_path: Path) -> None:
    original = torch.arange(1_500 * 1_100).remainder(2_039).reshape(1_500, 1_100).to(stored)
    save_file({"w": original}, tmp_path / "in.safetensors")
    rounding = Rounding()
    with open_model(parse_reference(str(tmp_path / "in.safetensors"))) as model:
        turned = Change(lambda values: values.T, (1_100, 1_500))
        tensor = cast(model, model.tensors["w"], DTYPES["F32"], rounding, change=turned)
        write(tmp_path / "out.safetensors", [tensor], {})
    assert load_file(tmp_path / "out.safetensors")["w"].equal(original.float().T)
    assert (rounding.values, rounding.square_error) == (original.numel(), 0.0)
    assert rounding.square == pytest.approx(float(original.double().square().sum()), rel=1e-6)


def test_a_source_that_is_cut_short_while_it_is_cast_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    save_file({"w": weights(torch.float32)}, source)
    with open_model(parse_reference(str(source))) as model:
        with source.open("r+b") as file:
            file.truncate(source.stat().st_size // 2)
        with pytest.raises(ModelError, match="too early"):
            convert(model, WeightFormat.SAFETENSORS, tmp_path / "out.safetensors", dtype="BF16")
    assert [file.name for file in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_code_of_16_bits_survives_json(dtype: str, tmp_path: Path) -> None:
    codes = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16).copy())
    save_file({"w": codes.view(TORCH[dtype])}, tmp_path / "in.safetensors")
    for source, kind, name in (
        ("in.safetensors", WeightFormat.APR_JSON, "w.apr.json"),
        ("w.apr.json", WeightFormat.SAFETENSORS, "back.safetensors"),
    ):
        with open_model(parse_reference(str(tmp_path / source))) as model:
            convert(model, kind, tmp_path / name)
    assert load_file(tmp_path / "back.safetensors")["w"].view(torch.int16).equal(codes)
