"""The tensors of ONNX files, in every form in which their values come, against the onnx package."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.onnx import OnnxGraph, OnnxValue, read_graph
from entrenar_core.formats.protobuf import varints
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header
from entrenar_core.references import HubReference, PathReference
from entrenar_core.stored_model import open_model
from hub_server import HubServer
from onnx_bytes import header, message, model_of, varint, wrapped

pytest_plugins = ["hub_fixtures"]

NAMES = {
    "FLOAT": "F32", "UINT8": "U8", "INT8": "I8", "UINT16": "U16", "INT16": "I16", "INT32": "I32", "INT64": "I64",
    "BOOL": "BOOL", "FLOAT16": "F16", "DOUBLE": "F64", "UINT32": "U32", "UINT64": "U64", "COMPLEX64": "C64",
    "COMPLEX128": "C128", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "F8_E4M3", "FLOAT8E4M3FNUZ": "F8_E4M3FNUZ",
    "FLOAT8E5M2": "F8_E5M2", "FLOAT8E5M2FNUZ": "F8_E5M2FNUZ", "UINT4": "U4", "INT4": "I4", "FLOAT4E2M1": "F4",
    "FLOAT8E8M0": "F8_E8M0", "FLOAT6E2M3": "F6_E2M3", "FLOAT6E3M2": "F6_E3M2",
}  # fmt: skip
LEFT_OUT = {"UNDEFINED", "STRING", "UINT2", "INT2"}
INLINE = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.COMPLEX64, TensorProto.COMPLEX128}


def tensor_of(kind: int, shape: tuple[int, ...], *, raw: bool, seed: int = 0, name: str = "w") -> TensorProto:
    """Any values of a type, packed as onnx does it."""
    chance = numpy.random.default_rng(seed)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    size = math.prod(shape)
    few = {TensorProto.BOOL: (0, 2), TensorProto.UINT4: (0, 16), TensorProto.INT4: (-8, 8)}
    if kind in few:
        values = chance.integers(*few[kind], size).astype(dtype)
    elif dtype.kind in "iu":
        limits = numpy.iinfo(dtype)
        values = chance.integers(limits.min, limits.max, size, dtype=dtype, endpoint=True)
    else:
        values = (3 * chance.normal(size=size)).astype(dtype)
    return helper.make_tensor(name, kind, shape, numpy_helper.from_array(values).raw_data if raw else values, raw=raw)


def bytes_of(found: Header, path: Path, name: str = "w") -> bytes:
    tensor = next(tensor for tensor in found.tensors if tensor.name == name)
    if tensor.inline:
        return found.inline[name]
    with FileSource(path.parent / tensor.file if tensor.file else path) as source:
        return source.read(tensor.offset, tensor.size_bytes)


def packed(tensor: TensorProto) -> bytes:
    """What its values are as raw bytes, by onnx."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def test_every_type_of_onnx_is_known() -> None:
    assert set(TensorProto.DataType.keys()) == NAMES.keys() | LEFT_OUT


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("kind", NAMES)
def test_values_are_those_that_onnx_reads(tmp_path: Path, kind: str, *, raw: bool) -> None:
    number = TensorProto.DataType.Value(kind)
    for shape in ((), (3,), (2, 5), (7, 3), (0, 4), (300, 11)):
        tensor = tensor_of(number, shape, raw=raw)
        found = header(model_of(tensor), tmp_path / "m.onnx")
        (stored,) = found.tensors
        assert (stored.name, stored.dtype, stored.shape, stored.file) == ("w", DTYPES[NAMES[kind]], shape, "")
        assert stored.inline == (not raw and number not in INLINE and 0 not in shape)
        assert bytes_of(found, tmp_path / "m.onnx") == packed(tensor)
        assert stored.size_bytes == len(packed(tensor))
        assert found.oddities == ()


@given(
    kind=st.sampled_from([number for name, number in TensorProto.DataType.items() if name in NAMES]),
    shape=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    raw=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_is_read(tmp_path_factory: pytest.TempPathFactory, **drawn: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    tensor = tensor_of(**drawn)  # type: ignore[arg-type]
    assert bytes_of(header(model_of(tensor), path), path) == packed(tensor)


def test_values_that_come_one_by_one_or_in_pieces_are_put_together(tmp_path: Path) -> None:
    floats = [message(4, numpy.array(part, "<f4").tobytes()) for part in ([1.0, -2.5], [3.0])]
    single = varint(4 << 3 | 5) + numpy.array([0.5], "<f4").tobytes()
    numbers = [-1, 2**31 - 1, -(2**31), 300, 0]
    few, rest = b"".join(map(varint, numbers[:2])), b"".join(varint(5 << 3) + varint(number) for number in numbers[2:])
    for kind, values, shape in (
        (TensorProto.FLOAT, b"".join([floats[0], single, floats[1]]), 4),
        (TensorProto.FLOAT, b"".join([message(4, b""), floats[0], message(5, b"")]), 2),
        (TensorProto.INT32, message(5, few) + rest, 5),
        (TensorProto.INT32, rest + message(5, few), 5),
    ):
        content = wrapped(bytes((1 << 3, shape, 2 << 3, kind)) + message(8, b"w") + values)
        expected = onnx.load_from_string(content).graph.initializer[0]
        assert bytes_of(header(content, tmp_path / "m.onnx"), tmp_path / "m.onnx") == packed(expected)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=50))
def test_varints_are_the_numbers_that_were_written(numbers: list[int]) -> None:
    blocks = [block.tolist() for block in varints(b"".join(map(varint, numbers)), ModelError)]
    assert [number for block in blocks for number in block] == numbers


def test_long_runs_of_varints_are_read_in_blocks(tmp_path: Path) -> None:
    values = numpy.random.default_rng(0).integers(-(2**62), 2**62, 400_000) >> numpy.arange(400_000) % 60
    tensor = helper.make_tensor("w", TensorProto.INT64, values.shape, values)
    found = header(model_of(tensor), tmp_path / "m.onnx")
    assert found.inline["w"] == values.astype("<i8").tobytes()
    assert len(found.inline["w"]) < 8 * (tmp_path / "m.onnx").stat().st_size


def test_weights_beside_a_graph_are_found_here_and_on_the_hub(tmp_path: Path, hub: HubServer) -> None:
    tensors = [tensor_of(TensorProto.FLOAT, (40, 500 + n), raw=True, seed=n, name=f"w{n}") for n in range(5)]
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx.save_model(
        model_of(*tensors), folder / "model.onnx", save_as_external_data=True, location="model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    hub.add("org/m", tmp_path)
    with open_model(PathReference(str(tmp_path))) as local, open_model(HubReference("org/m")) as remote:
        assert local.tensors == remote.tensors
        assert local.config == remote.config == {"model_type": "bert"}
        for tensor in tensors:
            stored = local.tensors[tensor.name]
            assert stored.file == "onnx/model.onnx_data"
            for model in (local, remote):
                assert model.sources[stored.file].read(stored.offset, stored.size_bytes) == tensor.raw_data
    assert hub.fetched() == {"onnx/model.onnx", "onnx/model.onnx_data", "config.json"}


def test_of_a_graph_on_the_hub_its_weights_are_passed_over(tmp_path: Path, hub: HubServer) -> None:
    tensors = [tensor_of(TensorProto.FLOAT, (500, 1000), raw=True, seed=n, name=f"w{n}") for n in range(4)]
    onnx.save(model_of(*tensors), tmp_path / "model.onnx")
    hub.add("org/m", tmp_path)
    with open_model(HubReference("org/m")) as remote, open_model(PathReference(str(tmp_path / "model.onnx"))) as local:
        assert remote.tensors == local.tensors
        assert remote.metadata == local.metadata
    assert 100_000 + 3 * 65_536 < hub.sent["model.onnx"] < 300_000 < (tmp_path / "model.onnx").stat().st_size / 20
    assert remote.files[0].header.header_bytes < 500


def test_absent_offsets_and_lengths_of_weights_elsewhere_follow_from_the_shape(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="./sub/w.bin")
    (stored,) = header(model_of(tensor), tmp_path / "m.onnx").tensors
    assert (stored.file, stored.offset, stored.size_bytes) == ("./sub/w.bin", 0, 24)


def weight(name: str, seed: int = 0) -> TensorProto:
    return tensor_of(TensorProto.FLOAT, (8, 8), raw=True, seed=seed, name=name)


def test_weights_in_branches_functions_and_constants_are_found_by_name(tmp_path: Path) -> None:
    output = [helper.make_tensor_value_info("y", 1, None)]

    def branch(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.GraphProto:
        return helper.make_graph(nodes, "b", [], output, initializer=tensors)

    scalar, steps = helper.make_tensor("s", 1, [1], [1.0]), helper.make_tensor("s", 7, [4], [1, 2, 3, 4])
    constants = [
        helper.make_node("Constant", [], [name], value=value)
        for name, value in (("/a/Constant_output_0", weight("", 6)), ("scalar", scalar), ("steps", steps))
    ]
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch(weight("w", 3)), else_branch=branch(weight("e", 4)))
    choice = helper.make_node(
        "If", ["x"], ["y"], then_branch=branch(weight("w", 1), weight("t", 2), nodes=(inner,)), else_branch=branch()
    )
    function = helper.make_function(
        "own", "F", [], ["c"], [helper.make_node("Constant", [], ["w"], value=weight("", 5))],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    graph = helper.make_graph([*constants, choice], "g", [], output, initializer=[weight("w")])
    found = header(helper.make_model(graph, functions=[function]), tmp_path / "m.onnx")
    expected = {
        "/a/Constant_output_0": 6, "w": 0, "If_3.then_branch.w": 1, "t": 2, "If_3.then_branch.If_0.then_branch.w": 3,
        "e": 4, "own.F.w": 5,
    }  # fmt: skip
    assert {tensor.name for tensor in found.tensors} == expected.keys()
    for name, seed in expected.items():
        assert bytes_of(found, tmp_path / "m.onnx", name) == weight("", seed).raw_data
    assert found.oddities == ()


def test_lists_of_tensors_and_what_functions_assume_are_found(tmp_path: Path) -> None:
    node = helper.make_node("Own" * 40, [], [], domain="own", tables=[weight("", 1), weight("", 2)])
    function = helper.make_function("own", "F", [], [], [], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("assumed", weight("", 3)))
    graph = helper.make_graph([node], "g", [], [])
    found = header(helper.make_model(graph, functions=[function]), tmp_path / "m.onnx")
    expected = {f"{'Own' * 20}_0.tables": 1, f"{'Own' * 20}_0.tables.1": 2, "own.F.assumed": 3}
    for name, seed in expected.items():
        assert bytes_of(found, tmp_path / "m.onnx", name) == weight("", seed).raw_data
    assert len(found.tensors) == 3


def test_what_a_model_says_of_itself_is_told(tmp_path: Path) -> None:
    model = model_of(
        weight("w"),
        producer_name="a", producer_version="1.2", domain="org", model_version=-3, doc_string="d" * 70_000,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 2)],
    )  # fmt: skip
    same = tensor_of(TensorProto.FLOAT, (1,), raw=True, name="x")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=same))  # called as the input is, as some are
    helper.set_model_props(model, {"classes": "cat,dog", "empty": ""})
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.UINT16, ["batch", -1, 5]))
    model.graph.input[0].type.denotation = "TENSOR"
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [8, 8]))  # as older files list their weights
    found = header(model, tmp_path / "m.onnx")
    assert found.metadata == {
        "ir_version": model.ir_version,
        "producer_name": "a",
        "producer_version": "1.2",
        "domain": "org",
        "model_version": -3,
        "doc_string": "d" * 65_536,
        "opset_import": {"ai.onnx": 18, "own": 2},
        "metadata_props": {"classes": "cat,dog", "empty": ""},
    }
    assert found.oddities == ("its doc_string has 70,000 bytes, of which 65,536 were read",)
    assert found.details == OnnxGraph((OnnxValue("x", "uint16", ("batch", "", 5)),), (), (), 65)
    assert found.details == read_graph(tmp_path / "m.onnx")
    assert found.header_bytes == (tmp_path / "m.onnx").stat().st_size - 256
    assert [tensor.name for tensor in found.tensors] == ["w"]


def test_what_is_no_tensor_of_ours_is_an_oddity(tmp_path: Path) -> None:
    def sparse(model: ModelProto) -> None:
        model.graph.sparse_initializer.add(values=weight("sp"), indices=helper.make_tensor("i", 7, [1], [0]))

    def training(model: ModelProto) -> None:
        model.training_info.add().initialization.initializer.append(weight("m"))

    changes: dict[str, Callable[[ModelProto], object]] = {
        "tensor s is of the type string": lambda model: model.graph.initializer.append(
            helper.make_tensor("s", TensorProto.STRING, [1], [b"a"])
        ),
        "tensor s is of the type int2": lambda model: model.graph.initializer.append(
            helper.make_tensor("s", TensorProto.INT2, [5], [1, 0, -1, -2, 1])
        ),
        "tensor sp is sparse": sparse,
        "it holds what it is trained by": training,
        "tensor a\x1b[2Jb has characters in its name": lambda model: model.graph.initializer.append(
            weight("a\x1b[2Jb")
        ),
        "tensor /a/../b has a name that leads out": lambda model: model.graph.initializer.append(weight("/a/../b")),
    }
    for complaint, change in changes.items():
        model = model_of(weight("w"))
        change(model)
        found = header(model, tmp_path / "m.onnx")
        assert len(found.oddities) == 1
        assert found.oddities[0].startswith(complaint)
        assert [tensor.name for tensor in found.tensors][:1] == ["w"]


def test_header_reading_imports_no_other_reader(tmp_path: Path) -> None:
    onnx.save(model_of(weight("w")), tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; from entrenar_core.formats.onnx import read\n"
        "from entrenar_core.formats.sources import FileSource\n"
        f"read(FileSource(Path({str(tmp_path / 'm.onnx')!r})))\n"
        "print(sorted({'onnx', 'google.protobuf', 'numpy', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
