"""The writer of PyTorch files: torch loads what it wrote, to the bit, and every reader of zips finds it sound."""

import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.pytorch import BYTE_ORDER, PICKLE
from entrenar_core.formats.pytorch_values import TORCH_NAMES
from entrenar_core.formats.pytorch_writer import WRITES, ZipWriter, describe, write
from entrenar_core.formats.writing import Outgoing
from torch_files import header, raw, raw_in


def outgoing(name: str, values: torch.Tensor) -> Outgoing:
    """A tensor on its way, in uneven chunks."""
    (dtype,) = (DTYPES[ours] for ours, (theirs, _) in TORCH_NAMES.items() if getattr(torch, theirs) == values.dtype)
    data, shape = raw(values), tuple(values.shape)
    if dtype.block > 1:
        shape = (*shape[:-1], shape[-1] * dtype.block)
    return Outgoing(name, dtype, shape, lambda: [data[:5], memoryview(data)[5:]])


def written(path: Path, values: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    write(path, [outgoing(name, value) for name, value in values.items()], metadata or {})
    return path


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_every_dtype_to_the_bit(tmp_path: Path, name: str, mapped: bool) -> None:
    noise = torch.randint(0, 2 if name == "BOOL" else 256, (3, 64), dtype=torch.uint8)
    values = {"before": torch.ones(3), "values": noise.view(getattr(torch, TORCH_NAMES[name][0])), "one": noise[:1]}
    path = written(tmp_path / "written.pt", values)
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert list(loaded) == list(values)
    for key, value in values.items():
        assert (loaded[key].dtype, loaded[key].shape) == (value.dtype, value.shape)
        assert (loaded[key].is_contiguous(), loaded[key].requires_grad) == (True, False)
        assert raw(loaded[key]) == raw(value)
        assert loaded[key].data_ptr() % 64 == 0


@given(shapes=st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=5), text=st.text(max_size=8))
def test_any_shapes_and_names_come_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], text: str
) -> None:
    values = {f"{text}{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    path = written(tmp_path_factory.mktemp("shapes") / "written.pt", values)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert list(loaded) == list(values)
    assert all(torch.equal(loaded[name], value) for name, value in values.items())
    assert [value.stride() for value in loaded.values()] == [value.stride() for value in values.values()]
    found = header(path).tensors
    assert [(one.name, one.shape, one.strides) for one in found] == [
        (n, tuple(v.shape), None) for n, v in values.items()
    ]
    assert all(raw_in(path, one) == raw(values[one.name]) for one in found)


def test_the_zip_is_sound_for_others(tmp_path: Path) -> None:
    path = written(tmp_path / "written.pt", {"a": torch.randn(100), "empty": torch.ones(0, 3), "half": torch.ones(1)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "a checksum is wrong"
        names = [entry.filename for entry in archive.infolist()]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    stored = [f"archive/{name}" for name in (PICKLE, BYTE_ORDER, "data/0", "data/1", "data/2", "version")]
    assert names == stored
    again = written(tmp_path / "again.pt", {"a": torch.ones(4)}).read_bytes()
    assert written(tmp_path / "other.pt", {"a": torch.ones(4)}).read_bytes() == again


def test_a_model_loads_what_was_written(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    path = written(tmp_path / "written.pt", dict(model.state_dict()))
    other.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(model(torch.ones(5)), other(torch.ones(5)))


def test_metadata_are_strings_beside_the_tensors(tmp_path: Path) -> None:
    metadata = {"format": "pt", "who": "naïve 日本"}
    path = written(tmp_path / "written.pt", {"a": torch.ones(2)}, metadata)
    assert header(path).metadata == metadata
    loaded = torch.load(path, weights_only=True)
    assert {key: value for key, value in loaded.items() if isinstance(value, str)} == metadata


def test_what_a_state_dict_cannot_hold_is_refused(tmp_path: Path) -> None:
    one = outgoing("a", torch.ones(2))
    for tensors, metadata in (([one, one], {}), ([one], {"a": "b"})):
        with pytest.raises(ModelError, match="a comes 2 times"):
            write(tmp_path / "written.pt", tensors, metadata)
    with pytest.raises(ModelError, match=r"'\\ud800' is no text"):
        write(tmp_path / "written.pt", [], {"a": "\ud800"})
    pairs = Outgoing("odd", DTYPES["F4"], (2, 3), lambda: [bytes(3)])
    with pytest.raises(ModelError, match="odd of F4 has rows of 3"):
        write(tmp_path / "written.pt", [pairs], {})


def test_a_tensor_is_never_whole_in_memory(tmp_path: Path) -> None:
    chunk = bytes(500_000)

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield chunk

    tensor = Outgoing("a", DTYPES["U8"], (20_000_000,), chunks)
    tracemalloc.start()
    write(tmp_path / "written.pt", [tensor], {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert header(tmp_path / "written.pt").tensors[0].size_bytes == 20_000_000


def test_files_beyond_four_gigabytes_are_read_by_all(tmp_path: Path) -> None:
    """Written with holes: what matters is where things lie."""
    large, path = 2**32 + 10, tmp_path / "large.pt"
    pickled = describe(
        [
            Outgoing("large", DTYPES["U8"], (large,), list),
            Outgoing("larger", DTYPES["I16"], (2, large), list),
            Outgoing("small", DTYPES["I16"], (3,), list),
        ],
        {},
    )
    small = torch.tensor([7, 8, 9], dtype=torch.int16)
    with path.open("wb") as file:
        archive = ZipWriter(file)
        archive.put(PICKLE, [pickled], len(pickled))
        for name, size in (("data/0", large), ("data/1", 4 * large)):
            start = archive.open(name, size)
            file.seek(size, 1)
            archive.finish(name, size, start, 0)
        archive.put("data/2", [raw(small)], 6)
        archive.put("version", [b"3\n"], 2)
        archive.close()
    assert path.stat().st_blocks * 512 < 1_000_000, "the holes are filled, which takes the disk"
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["larger"].shape == (2, large)
    assert torch.equal(loaded["small"], small)
    found = {tensor.name: tensor for tensor in header(path).tensors}
    for name, value in loaded.items():
        assert found[name].offset - found["large"].offset == value.data_ptr() - loaded["large"].data_ptr()
    with zipfile.ZipFile(path) as archive_of_python:
        assert [entry.file_size for entry in archive_of_python.infolist()[1:]] == [large, 4 * large, 6, 2]
        assert archive_of_python.read("archive/data/2") == raw(small)
