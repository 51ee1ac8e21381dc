"""What an ONNX file says of itself, against the onnx package; and files that someone broke."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.onnx import OnnxValue, read_graph
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from onnx_models import exported, save
from tiny_models import tiny_llama

Edit = Callable[[str], Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return exported(tiny_llama(folder / "llama"), folder / "onnx", past=True, external=True)


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def place_weights(folder: Path, location: str) -> Path:
    """The model in `folder`, one of whose weights lies elsewhere."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in graph.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    save(graph, folder / "model.onnx")
    return folder


def test_inputs_outputs_and_weights_are_those_that_onnx_reads(llama: Path) -> None:
    found, graph = read_graph(llama / "model.onnx"), onnx.load(llama / "model.onnx").graph
    assert [value.name for value in found.inputs] == [value.name for value in graph.input]
    assert found.inputs[0] == OnnxValue("input_ids", "int64", ("batch", "sequence"))
    assert found.inputs[2] == OnnxValue("past_key_values.0.key", "float", ("batch", 2, "past", 8))
    assert [(value.name, value.type) for value in found.outputs] == [("logits", "float")]
    weights = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    inside = sum(numpy.prod(tensor.dims) for tensor in weights)
    assert inside <= found.num_parameters <= inside + 100, "constants of nodes are weights too"
    assert found.external == ("model.onnx_data",)


def test_every_weight_of_an_exported_model_is_found(llama: Path) -> None:
    graph = onnx.load(llama / "model.onnx").graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    with open_model(PathReference(str(llama))) as model:
        assert values.keys() <= model.tensors.keys()
        assert not model.faults + model.files[0].header.oddities
        for name, expected in values.items():
            tensor = model.tensors[name]
            assert tensor.shape == expected.shape
            assert model.sources[tensor.file].read(tensor.offset, tensor.size_bytes) == expected.tobytes()


def test_weights_inside_nodes_functions_and_sparse_tensors_are_found(tmp_path: Path) -> None:
    def elsewhere(name: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 3])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        return tensor

    constant = helper.make_node("Constant", [], ["c"], value=elsewhere("in_node"))
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", 1, None)])
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "own", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=elsewhere("in_function"))],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    graph = helper.make_graph([choice], "g", [helper.make_tensor_value_info("x", 9, [])], [])
    graph.sparse_initializer.add(values=elsewhere("in_values"), indices=elsewhere("in_indices"))
    save(helper.make_model(graph, functions=[function]), tmp_path / "m.onnx")
    found = read_graph(tmp_path / "m.onnx")
    assert set(found.external) == {"in_node.bin", "in_function.bin", "in_values.bin", "in_indices.bin"}
    assert found.inputs == (OnnxValue("x", "bool", ()),)


def test_a_folder_a_file_and_the_customary_folder_are_one_model(llama: Path, tmp_path: Path) -> None:
    artifact = inspect_folder(llama / "model.onnx")
    assert (artifact.format, artifact.path) == (WeightFormat.ONNX, llama)
    assert [file.name for file in artifact.weight_files] == ["model.onnx", "model.onnx_data"]
    assert artifact.weight_bytes == sum(file.stat().st_size for file in artifact.weight_files)
    below = Path(shutil.copytree(llama, tmp_path / "below"))
    (below / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        (below / name).rename(below / "onnx" / name)
    for path in (below, below / "onnx" / "model.onnx"):
        found = inspect_folder(path)
        assert (found.path, found.architecture) == (below, artifact.architecture)
        assert [file.name for file in found.weight_files] == ["model.onnx", "model.onnx_data"]
    changed = artifact.fingerprint()
    assert inspect_folder(below).fingerprint() != changed, "other names"
    with (below / "onnx" / "model.onnx_data").open("r+b") as stream:
        before = inspect_folder(below).fingerprint()
        stream.write(b"\1\2\3\4")
        stream.flush()
        os.utime(below / "onnx" / "model.onnx_data", ns=(1, 1))
    assert inspect_folder(below).fingerprint() != before, "weights beside the graph are part of the model"


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "C:x", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_that_lie_outside_of_the_folder_are_refused(copy: Path, location: str) -> None:
    (copy.parent / "secret.bin").write_bytes(bytes(100_000))
    (copy / "a").mkdir()
    tag = copy / "*" / "_ORT_MEM_ADDR_" / "*"  # what onnxruntime takes for an address in memory
    tag.parent.mkdir(parents=True)
    tag.write_bytes(bytes(100_000))
    with pytest.raises(ModelError, match="no file of its folder") as refused:
        inspect_folder(place_weights(copy, location))
    assert "hostile" in str(refused.value.hint)


def test_a_link_out_of_the_folder_is_refused(copy: Path) -> None:
    (copy.parent / "secret.bin").write_bytes(bytes(100_000))
    (copy / "link.data").symlink_to(copy.parent / "secret.bin")
    with pytest.raises(ModelError, match="leads out of its folder"):
        inspect_folder(place_weights(copy, "link.data"))


def test_weights_that_are_not_there_are_told(copy: Path) -> None:
    (copy / "model.onnx_data").unlink()
    with pytest.raises(ModelError, match=r"lacks model\.onnx_data, which model\.onnx lists"):
        inspect_folder(copy)


@pytest.mark.parametrize("content", [b"", b"x", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 40, b"\x0b" * 9, b"PK\3\4" * 50])
def test_what_is_no_onnx_is_refused(copy: Path, content: bytes) -> None:
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        inspect_folder(copy)


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def message(field: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([field << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content

    graph = b""
    for _ in range(100):  # a graph in an attribute of a node of a graph
        graph = message(1, message(5, message(6, graph)))
    (tmp_path / "m.onnx").write_bytes(message(7, graph))
    with pytest.raises(ModelError, match="nested"):
        read_graph(tmp_path / "m.onnx")


def test_a_file_with_any_bytes_changed_is_read_or_refused(copy: Path) -> None:
    whole, chance = (copy / "model.onnx").read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(min(len(changed), 4000))] = chance.randrange(256)
        (copy / "model.onnx").write_bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])])
        with suppress(ModelError):
            read_graph(copy / "model.onnx")
