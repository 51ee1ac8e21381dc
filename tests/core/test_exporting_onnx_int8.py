"""Matrices in eight bits are onnxruntime's own to the bit, and tables that are shared stay one."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from entrenar_core.exporting.onnx.int8 import quantise, to_int8

RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((48, 64), (64, 40)))
TABLE = RANDOM.normal(size=(90, 48)).astype(np.float32)


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: dict[str, int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def ran(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def in_int8(model: onnx.ModelProto, *keep: str) -> onnx.ModelProto:
    graph = onnx_ir.serde.deserialize_model(model)
    quantise(graph, keep)
    return onnx_ir.serde.serialize_model(graph)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), axis=st.integers(0, 1), seed=st.integers(0, 99))
def test_whole_numbers_are_within_half_a_step(rows: int, columns: int, axis: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    matrix[0] *= seed % 3  # a row of zeros, too
    whole, scale = to_int8(matrix, axis)
    steps = scale[:, None] if axis == 0 else scale[None]
    assert whole.dtype == np.int8
    assert whole.min() >= -127
    assert np.all(np.abs(whole * steps - matrix) <= steps * 0.5001)


def test_products_are_those_of_onnxruntimes_quantiser(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["y"])]
    model = graph_of(nodes, {"first": FIRST, "second": SECOND}, {"x": TensorProto.FLOAT})
    onnx.save(model, tmp_path / "plain.onnx")
    with caplog.at_level(logging.CRITICAL):
        quantize_dynamic(
            tmp_path / "plain.onnx", tmp_path / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8
        )
    theirs, ours = onnx.load(tmp_path / "theirs.onnx"), in_int8(model)
    stored = [{value.name: numpy_helper.to_array(value) for value in one.graph.initializer} for one in (theirs, ours)]
    for name in ("first_quantized", "second_quantized", "first_scale", "second_scale"):
        np.testing.assert_array_equal(stored[0][name], stored[1][name])
    x = np.random.default_rng(1).normal(size=(3, 7, 48)).astype(np.float32)
    np.testing.assert_allclose(ran(ours, x=x), ran(theirs, x=x), rtol=1e-5, atol=1e-4)
    assert np.abs(ran(ours, x=x) - ran(model, x=x)).max() < 0.03 * np.abs(ran(model, x=x)).max()


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_is_quantised_with_its_bias(turned: int) -> None:
    weights = {"w": FIRST.T.copy() if turned else FIRST, "b": RANDOM.normal(size=64).astype(np.float32) * 9}
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=turned)], weights, {"x": TensorProto.FLOAT}
    )
    found = in_int8(model)
    assert "Gemm" not in {node.op_type for node in found.graph.node}
    assert "w" not in {value.name for value in found.graph.initializer}
    x = np.random.default_rng(1).normal(size=(9, 48)).astype(np.float32)
    assert np.abs(ran(found, x=x) - ran(model, x=x)).max() < 0.02 * np.abs(ran(model, x=x)).max()


def test_a_table_that_is_also_the_output_layer_stays_one() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "head"], ["y"]),
    ]
    model = graph_of(nodes, {"table": TABLE}, {"ids": TensorProto.INT64})
    found = in_int8(model)
    stored = {value.name: numpy_helper.to_array(value) for value in found.graph.initializer}
    assert [value.shape for value in stored.values() if value.dtype == np.int8] == [TABLE.shape]
    assert "table" not in stored
    ids = np.array([[3, 5, 89], [0, 0, 7]])
    should = TABLE[ids] @ TABLE.T
    assert np.abs(ran(found, ids=ids) - should).max() < 0.02 * np.abs(should).max()


def test_what_is_to_be_kept_and_what_is_small_is_not_touched() -> None:
    small = torch.eye(40, 8).numpy()
    nodes = [
        helper.make_node("MatMul", ["x", "first.T"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["i"]),
        helper.make_node("MatMul", ["i", "small"], ["y"]),
    ]
    model = graph_of(nodes, {"first.T": FIRST, "second": SECOND, "small": small}, {"x": TensorProto.FLOAT})
    found = in_int8(model, "first")
    assert {"first.T", "small", "second_quantized"} <= {value.name for value in found.graph.initializer}
    assert [node.op_type for node in found.graph.node].count("MatMul") == 2
