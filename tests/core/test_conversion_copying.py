"""Bytes that stay as they are: copied by the system, in pieces, by several threads; else read and written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.conversion import convert
from entrenar_core.errors import EntrenarError
from entrenar_core.formats import WeightFormat, filling, safetensors_writer
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model

SystemCopy = Callable[[int, int, int, int, int], int]
needs_system = pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system copies no ranges by itself")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{number}": torch.randn(37, 11 + number, generator=generator) for number in range(6)}
    tensors |= {"ids": torch.arange(90), "half": torch.randn(70, generator=generator).half(), "none": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def copied(source: Path) -> tuple[Path, list[int]]:
    told: list[int] = []
    with open_model(parse_reference(str(source))) as model:
        output = source.with_name("out.safetensors")
        convert(model, WeightFormat.SAFETENSORS, output, force=True, progress=lambda done, _: told.append(done))
    return output, told


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that the system is asked to copy."""
    real: SystemCopy = os.copy_file_range
    asked: list[int] = []

    def copy(source: int, target: int, count: int, offset: int, at: int) -> int:
        asked.append(count)
        return real(source, target, count, offset, at)

    monkeypatch.setattr(os, "copy_file_range", copy)
    return asked


@needs_system
def test_what_lies_together_is_copied_together(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = watched(monkeypatch)
    output, told = copied(source)
    size = sum(tensor.nbytes for tensor in load_file(source).values())
    assert asked == told == [size]
    assert output.read_bytes()[-size:] == source.read_bytes()[-size:]


@needs_system
@pytest.mark.parametrize("piece_bytes", [1, 64, 1000, 4096])
def test_pieces_make_the_whole(source: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(filling, "PIPE_BYTES", 32)
    output, told = copied(source)
    expected, found = load_file(source), load_file(output)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert len(told) > 3
    assert sum(told) == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.parametrize("note", ["", "x" * 100, "x" * 4096])
def test_much_data_lies_in_its_pages_as_before(note: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer, "_MUCH_BYTES", 1)
    save_file(load_file(source), source, metadata={"format": "pt", "note": note})
    output, _ = copied(source)
    starts = [8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (source, output)]
    assert starts[0] % 4096 == starts[1] % 4096
    expected, found = load_file(source), load_file(output)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_system_cannot_they_are_read_and_written(
    source: Path, reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: int) -> int:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "copy_file_range", refuses, raising=False)
    output, told = copied(source)
    expected, found = load_file(source), load_file(output)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert sum(told) == sum(tensor.nbytes for tensor in expected.values())


@needs_system
@pytest.mark.parametrize("kept_bytes", [0, 500, 5_000])
def test_a_source_that_becomes_shorter_leaves_nothing(
    source: Path, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it ends at the end of a piece."""
    monkeypatch.setattr(filling, "_PIECE_BYTES", 500)
    start = source.stat().st_size - sum(tensor.nbytes for tensor in load_file(source).values())
    with open_model(parse_reference(str(source))) as model:
        with source.open("r+b") as file:
            file.truncate(start + kept_bytes)
        with pytest.raises(EntrenarError):
            convert(model, WeightFormat.SAFETENSORS, source.with_name("out.safetensors"))
    assert [file.name for file in source.parent.iterdir()] == ["in.safetensors"]
