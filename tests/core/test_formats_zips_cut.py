"""What is said of a PyTorch file that was cut short, held against the whole file."""

import re
import zipfile
from pathlib import Path

import pytest
import torch

from entrenar_core.errors import ModelError
from entrenar_core.formats.pytorch import read
from entrenar_core.formats.sources import FileSource
from torch_files import LOCAL, pickled, storage, tensor, zipped

_TOLD = re.compile(r"at least ([\d,]+) bytes are missing(?:, and its entry (\S+) goes on to byte ([\d,]+))?")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.pt"
    torch.save({f"w{place}": torch.full((1000 + place,), float(place)) for place in range(20)}, path)
    return path


def complaint_of(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    with FileSource(path) as source, pytest.raises(ModelError) as refused:
        read(source)
    return refused.value.message


@pytest.mark.parametrize("place", range(20))
def test_the_entry_that_is_cut_is_named(place: int, whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    with zipfile.ZipFile(whole) as archive:
        sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
        info = archive.getinfo(f"whole/data/{place}")
    end = data.index(b"PK\x07\x08", info.header_offset)
    kept = end - info.file_size // 2
    told = _TOLD.search(complaint_of(data[:kept], tmp_path / "cut.pt"))
    assert told is not None
    missing, entry, until = told.groups()
    assert (entry, until) == (info.filename, f"{end:,}")
    later = sum(sizes[f"data/{after}"] for after in range(place + 1, 20))
    assert int(missing.replace(",", "")) == end - kept + later < len(data) - kept


def test_no_more_is_said_to_be_missing_than_is(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    said = 0
    for kept in range(400, len(data), 997):
        complaint = complaint_of(data[:kept], tmp_path / "cut.pt")
        assert "it has no end record; it may be cut short" in complaint
        if (told := _TOLD.search(complaint)) is not None:
            said += 1
            assert 0 < int(told[1].replace(",", "")) <= len(data) - kept
    assert said > 80


def test_a_cut_directory_is_told(whole: Path, tmp_path: Path) -> None:
    for left_out in (1, 10, 21, 60):
        complaint = complaint_of(whole.read_bytes()[:-left_out], tmp_path / "cut.pt")
        told = re.search(r"its entries are whole, and at least ([\d,]+) bytes of the directory .* missing", complaint)
        assert told is not None
        assert 0 < int(told[1].replace(",", "")) <= left_out


def test_sizes_before_the_data_are_taken(tmp_path: Path) -> None:
    """As Python's zipfile writes them."""
    data = zipped(pickled({"w": tensor(storage(length=1000), shape=(1000,))}), {"data/0": bytes(4000)})
    start = data.index(b"data/0") + len(b"data/0")
    assert "at least 3,000 bytes are missing, and its entry" in complaint_of(data[: start + 1000], tmp_path / "cut.pt")


@pytest.mark.parametrize("data", [LOCAL + bytes(26), LOCAL * 3000, LOCAL + b"\xff" * 5000, b"PK\x03\x04" + b"\7" * 30])
def test_what_is_no_zip_says_nothing_more(data: bytes, tmp_path: Path) -> None:
    assert complaint_of(data, tmp_path / "cut.pt").endswith("it may be cut short")
