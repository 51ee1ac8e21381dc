"""Several tensors on their way to blocks at once: gguf's bytes, whatever the order they are asked for in."""

import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from entrenar_core.conversion import convert
from entrenar_core.conversion.casting import Roundings
from entrenar_core.conversion.content import Change
from entrenar_core.conversion.converting import Quantizing
from entrenar_core.conversion.gguf_changes import Changed
from entrenar_core.conversion.quantising import Quantiser
from entrenar_core.errors import ModelError, OutputError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.writing import Outgoing
from entrenar_core.quantization.mixes import mix_named
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from exported_models import exported_model

Q8_0 = DTYPES["Q8_0"]
SHAPES = {"wide": (900, 1536), "small": (3, 64), "tall": (40_000, 32), "empty": (0, 32), "last": (700, 1024)}
"""Of five jobs, of one, of five again, of none, and of three."""


@pytest.fixture
def model(tmp_path: Path) -> Iterator[StoredModel]:
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()},
        tmp_path / "model.safetensors",
    )
    with open_model(parse_reference(str(tmp_path / "model.safetensors"))) as opened:
        yield opened


def outgoing(model: StoredModel, roundings: Roundings | None = None) -> list[Outgoing]:
    quantiser = Quantiser(Roundings() if roundings is None else roundings)
    return [quantiser.outgoing(model, model.tensors[name], Q8_0, name=name) for name in SHAPES]


def content(tensor: Outgoing) -> bytes:
    return b"".join(bytes(chunk) for chunk in tensor.chunks())


def expected(model: StoredModel, name: str) -> bytes:
    return blocks(model.array(name).astype(np.float32))


def blocks(values: "NDArray[np.float32]") -> bytes:
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0).tobytes() if values.size else b""


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 3, 0, 4, 2), (2, 2, 3, 0, 0, 1, 4)])
def test_tensors_are_those_of_gguf_in_any_order(order: tuple[int, ...], model: StoredModel) -> None:
    tensors = outgoing(model)
    for place in order:
        assert content(tensors[place]) == expected(model, tensors[place].name)


def test_a_tensor_whose_writing_broke_off_is_written_from_its_start_and_leaves_no_thread(model: StoredModel) -> None:
    before = threading.active_count()
    wide, *_ = tensors = outgoing(model)
    chunks = wide.chunks()
    assert isinstance(chunks, Generator)
    next(chunks)
    chunks.close()
    assert threading.active_count() == before
    for tensor in tensors:
        assert content(tensor) == expected(model, tensor.name)
    assert threading.active_count() == before


def test_what_breaks_off_between_two_tensors_leaves_no_thread(model: StoredModel) -> None:
    before = threading.active_count()
    quantiser = Quantiser(Roundings())
    first, *_ = [quantiser.outgoing(model, model.tensors[name], Q8_0, name=name) for name in SHAPES]
    content(first)
    assert threading.active_count() > before, "the next one is in work"
    quantiser.close()
    assert threading.active_count() == before


def test_a_failure_between_two_tensors_ends_the_conversion_and_its_threads(tmp_path: Path) -> None:
    folder = exported_model(tmp_path / "model", "llama", hidden_size=256, intermediate_size=256, head_dim=64)
    before = threading.active_count()

    def fail(_: int, __: int) -> None:
        if threading.active_count() > before:
            raise OSError(28, "No space left on device")

    with open_model(parse_reference(str(folder))) as stored, pytest.raises(OutputError, match="No space left"):
        convert(
            stored,
            WeightFormat.GGUF,
            tmp_path / "out.gguf",
            quantizing=Quantizing(mix_named("q8_0")),
            progress=fail,
        )
    assert threading.active_count() == before
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("scale", [1e-10, 1e-22, 1e-30])
def test_what_becomes_of_tiny_weights_is_told(scale: float, tmp_path: Path) -> None:
    """Their scales are halves, which hold nothing so small: all of them become zeros."""
    save_file(
        {"w": torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * scale}, tmp_path / "m.safetensors"
    )
    with open_model(parse_reference(str(tmp_path / "m.safetensors"))) as opened:
        roundings = Roundings()
        content(Quantiser(roundings).outgoing(opened, opened.tensors["w"], Q8_0, name="w"))
    assert roundings.all.relative_rms == pytest.approx(1.0)


def test_a_change_is_made_before_rows_are_cut(model: StoredModel) -> None:
    change = Change(lambda values: values.T, (32, 40_000))
    turned = Quantiser(Roundings()).outgoing(model, model.tensors["tall"], Q8_0, name="turned", change=change)
    assert turned.shape == (32, 40_000)
    assert content(turned) == blocks(model.array("tall").astype(np.float32).T)


@pytest.mark.parametrize("heads", [900, 90, 9, 3])
def test_rows_of_a_head_are_paired_though_several_jobs_read_them(heads: int, model: StoredModel) -> None:
    """Heads of one row to three hundred; the last are read as a whole."""
    half = 900 // heads // 2
    if not half:
        with pytest.raises(ModelError, match="heads of pairs"):
            Changed("pairs", heads).written("wide", (900, 1536))
        return
    change = Changed("pairs", heads).written("wide", (900, 1536))
    paired = Quantiser(Roundings()).outgoing(model, model.tensors["wide"], Q8_0, name="paired", change=change)
    values = model.array("wide").astype(np.float32)
    order = [head * 2 * half + part * half + place for head in range(heads) for place in range(half) for part in (0, 1)]
    assert content(paired) == blocks(values[order])


def test_what_is_not_finite_is_found_in_the_tensor_that_has_it(tmp_path: Path) -> None:
    """Though threads are already at work on it while the one before is written."""
    second = torch.ones(64, 64)
    second[63, 63] = torch.nan
    save_file({"first": torch.ones(64, 64), "second": second}, tmp_path / "m.safetensors")
    with open_model(parse_reference(str(tmp_path / "m.safetensors"))) as model:
        quantiser = Quantiser(Roundings())
        first, other = (quantiser.outgoing(model, model.tensors[name], Q8_0, name=name) for name in ("first", "second"))
        assert content(first) == blocks(np.ones((64, 64), np.float32))
        with pytest.raises(ModelError, match="second"):
            content(other)


def test_rounding_is_exact_of_few_rows_and_close_of_many(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = torch.randn(1500, 1024, generator=generator), torch.randn(12_000, 1024, generator=generator)
    many *= 1 + 3 * torch.rand(12_000, 1, generator=generator)  # so that rows differ in what they lose
    save_file({"few": few, "many": many}, tmp_path / "m.safetensors")
    with open_model(parse_reference(str(tmp_path / "m.safetensors"))) as model:
        for name, tensor, close in (("few", few, 1e-6), ("many", many, 0.01)):
            roundings = Roundings()
            quantiser = Quantiser(roundings)
            written = content(quantiser.outgoing(model, model.tensors[name], DTYPES["Q4_0"], name=name))
            rounding = roundings.tensors[name]
            exact = tensor.numpy().astype(np.float64)
            stored = np.frombuffer(written, np.uint8).reshape(len(exact), -1)
            error = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q4_0) - exact
            assert rounding.values == exact.size
            assert rounding.square == pytest.approx(float((exact**2).sum()), rel=close)
            assert rounding.relative_rms == pytest.approx(np.linalg.norm(error) / np.linalg.norm(exact), rel=close)
            assert rounding.largest_error <= np.abs(error).max() * (1 + 1e-6)
