"""ONNX files that are broken, or made to break their reader: an error in time, and never another."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

from entrenar_core.errors import ModelError
from entrenar_core.formats.onnx import read
from entrenar_core.formats.sources import FileSource
from onnx_bytes import header, message, model_of, wrapped

FLOATS = numpy.arange(6, dtype="<f4")
Change = Callable[[TensorProto], object]


def sound() -> TensorProto:
    return helper.make_tensor("w", TensorProto.FLOAT, [2, 3], FLOATS.tobytes(), raw=True)


def elsewhere(**entries: str) -> Change:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return change


def typed(kind: int, field: str, *values: int) -> Change:
    def change(tensor: TensorProto) -> None:
        tensor.CopyFrom(TensorProto(name="w", data_type=kind, dims=[len(values)]))
        getattr(tensor, field).extend(values)

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda w: setattr(w, "raw_data", w.raw_data[:-1]),
            r"of shape \[2, 3\] and dtype F32 takes 24 bytes, and has 23",
        ),
        (lambda w: setattr(w, "data_type", TensorProto.DOUBLE), "takes 48 bytes, and has 24"),
        (lambda w: setattr(w, "data_type", 99), "has the unknown type 99"),
        (lambda w: setattr(w, "data_type", 0), "has the unknown type 0"),
        (lambda w: w.ClearField("raw_data"), "takes 24 bytes, and has 0"),
        (lambda w: w.dims.append(-1), r"a tensor of the shape \[2, 3, -1\]"),
        (lambda w: w.dims.extend([1] * 70), "a tensor of the shape"),
        (lambda w: w.dims.extend([2**40, 2**40]), r"has the shape \[2, 3, 1099511627776, 1099511627776\]"),
        (lambda w: w.float_data.extend([1.0]), "says its values twice"),
        (lambda w: setattr(w, "data_location", TensorProto.EXTERNAL), "says its values twice"),
        (lambda w: setattr(w.segment, "begin", 1), "is a part of a larger one"),
        (elsewhere(), "keeps weights in '', which is no file of its folder"),
        (elsewhere(location="/etc/passwd"), "keeps weights in '/etc/passwd'"),
        (elsewhere(location="a/../../b"), "which is no file of its folder"),
        (elsewhere(location="w.bin", length="23"), r"takes 24 bytes, and 23 are in w\.bin"),
        (elsewhere(location="w.bin", offset="-8"), r"has the offset '-8' in w\.bin"),
        (elsewhere(location="w.bin", offset="٣"), "has the offset"),
        (elsewhere(location="w.bin", offset="1" * 20), "has the offset"),
        (elsewhere(location="w.bin", length="9" * 5000), "a name of 5,000 bytes"),
        (typed(TensorProto.FLOAT, "int32_data", 1), "is of the dtype F32, and has values of another"),
        (typed(TensorProto.INT64, "int32_data", 1), "is of the dtype I64, and has values of another"),
        (typed(TensorProto.INT32, "float_data", 1), "is of the dtype I32, and has values of another"),
        (typed(TensorProto.UINT8, "int32_data", 1, 256), "has values that are no U8"),
        (typed(TensorProto.INT8, "int32_data", -129), "has values that are no I8"),
        (typed(TensorProto.UINT32, "uint64_data", 2**32), "has values that are no U32"),
        (typed(TensorProto.UINT32, "uint64_data", 2**64 - 1), "has values that are no U32"),
        (typed(TensorProto.FLOAT6E2M3, "int32_data", 64), "has values that are no F6_E2M3"),
        (
            lambda w: w.CopyFrom(TensorProto(name="w", data_type=7, dims=[3], int64_data=[1])),
            "has 3 numbers, and 1 are",
        ),
        (typed(TensorProto.INT4, "int32_data", 1, 2), r"of shape \[2\] has 1 numbers, and more are there"),
    ],
)
def test_values_that_are_not_those_of_the_tensor_are_refused(tmp_path: Path, change: Change, complaint: str) -> None:
    tensor = sound()
    assert header(model_of(tensor), tmp_path / "m.onnx").tensors
    change(tensor)
    with pytest.raises(ModelError, match=complaint) as refused:
        header(model_of(tensor), tmp_path / "m.onnx")
    assert str(refused.value).startswith(str(tmp_path / "m.onnx"))
    assert refused.value.hint


def test_names_that_come_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the tensor w comes twice"):
        header(model_of(sound(), sound()), tmp_path / "m.onnx")
    branch = helper.make_graph(
        [], "b", [], [helper.make_tensor_value_info("y", 1, None)], initializer=[sound(), sound()]
    )
    graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=branch)], "g", [], [])
    with pytest.raises(ModelError, match="the tensor w comes twice"):
        header(helper.make_model(graph), tmp_path / "m.onnx")
    tensor = sound()
    elsewhere(location="a.bin")(tensor)
    tensor.external_data.add(key="location", value="b.bin")
    with pytest.raises(ModelError, match="two of 'location'"):
        header(model_of(tensor), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="raw values twice"):
        header(wrapped(message(9, b"a") + message(9, b"b")), tmp_path / "m.onnx")


ONE = bytes((1 << 3, 1, 2 << 3, TensorProto.INT64)) + message(8, b"w")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 graphs"),
        (bytes(1000), "a field without a number"),
        (b"\x08\x08", "0 graphs"),
        (b"\x08" + b"\xff" * 1_000_000, "a number of more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "a number of more than 64 bits"),
        (b"\x08\x08\x3a\xff\xff\xff\xff\x0f", "bytes are announced, and 0 are there"),
        (b"\x08\x08" + message(7, b"\x2a\x7f"), "127 bytes are announced, and 0 are there"),
        (b"\x08\x08" + message(7, b"\x2a\x7f") + message(6, bytes(200)), "127 bytes are announced, and 0 are there"),
        (b"\x08\x08" + message(7, b"\x2a\x80") + b"\x01", "it ends inside a number"),
        (b"\x08\x08\x3d\x00\x00", "4 bytes are announced, and 2 are there"),
        (b"\x08\x08\x3b", "a field of the unknown kind 3"),
        (b"\x08\x08\x38\x01", "a number where a message should be"),
        (b"\x0a\x01a", "a message where a number should be"),
        (b"\x08\x08" + message(7, b"") * 2, "2 graphs"),
        (wrapped(b"\x40\x01"), "a number where a text should be"),
        (wrapped(message(8, bytes(5000))), "a name of 5,000 bytes"),
        (wrapped(message(1, bytes(5000))), "more than 64 numbers"),
        (wrapped(message(1, b"\x01" * 600)), "a tensor of the shape"),
        (wrapped(b"\x48\x01"), "values of another kind"),
        (wrapped(b"\x20\x01"), "values of another kind"),
        (wrapped(ONE + message(7, b"\x01\xff")), "it ends inside a number"),
        (wrapped(ONE + message(7, b"\xff" * 9)), "it ends inside a number"),
        (wrapped(ONE + message(7, b"\xff" * 2_000_000 + b"\x01")), "it ends inside a number"),
        (wrapped(ONE + message(7, b"\x01" * 3 + b"\xff" * 20 + b"\x01")), "more than 64 bits"),
        (wrapped(ONE + message(7, b"\xff" * 9 + b"\x02")), "more than 64 bits"),
        (wrapped(ONE + message(7, b"\x01" * 5_000_000)), r"has 1 numbers, and more are there"),
        (wrapped(ONE + b"\x38\x01" * 50_000), "has 1 numbers, and more are there"),
        (b"\x08\x08" + b"\x3a\x00" * 100_000, "100000 graphs"),
    ],
)  # fmt: skip
def test_messages_that_break_off_or_never_end_are_refused_in_time(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    begun = time.process_time()
    with pytest.raises(ModelError, match=complaint):
        header(content, tmp_path / "m.onnx")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(("depth", "name"), [(40, b""), (2000, b""), (20, b"x" * 100)])
def test_graphs_nested_without_end_are_refused_in_time(tmp_path: Path, depth: int, name: bytes) -> None:
    graph = b""
    for _ in range(depth):  # a graph in an attribute of a node of a graph
        graph = message(1, message(4, name) + message(5, message(6, graph)))
    begun = time.process_time()
    with pytest.raises(ModelError, match="nested more than 32 deep"):
        header(message(7, graph), tmp_path / "m.onnx")
    assert time.process_time() - begun < 5


def test_a_file_with_any_bytes_changed_is_read_or_refused(tmp_path: Path) -> None:
    tensors = [
        sound(),
        helper.make_tensor("i", TensorProto.INT32, [4], [1, -2, 3, 1000]),
        helper.make_tensor("h", TensorProto.FLOAT16, [5], numpy.arange(5, dtype="f2")),
    ]
    outside = TensorProto(name="e")
    elsewhere(location="w.bin", offset="0", length="4")(outside)
    outside.data_type, outside.dims[:] = TensorProto.FLOAT, [1]
    node = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", 1, [3], [1.0, 2.0, 3.0]))
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, ["b", 2])], [], initializer=tensors)
    graph.initializer.append(outside)
    whole, chance = helper.make_model(graph).SerializeToString(), random.Random(0)
    read_whole, path = 0, tmp_path / "m.onnx"
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with suppress(ModelError):
            found = header(bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])]), path)
            read_whole += 1
            for tensor in found.tensors:
                assert tensor.size_bytes == tensor.dtype.size_bytes(tensor.shape) or tensor.dtype.block > 1
                assert tensor.file or tensor.end <= path.stat().st_size
                assert tensor.inline == (tensor.name in found.inline)
                assert not tensor.inline or len(found.inline[tensor.name]) == tensor.size_bytes
    assert 30 < read_whole < 500


def test_thousands_of_nodes_are_read_in_time(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", [f"/layer.{n}/x", f"w{n}"], [f"/layer.{n + 1}/x"], alpha=1.0, transB=1)
        for n in range(5000)
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], initializer=[sound()])), tmp_path / "m.onnx")
    begun = time.process_time()
    with FileSource(tmp_path / "m.onnx") as source:
        assert len(read(source).tensors) == 1
    assert time.process_time() - begun < 5
