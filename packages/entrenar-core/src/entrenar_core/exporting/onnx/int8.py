"""Matrices of a graph in eight bits, whose inputs are rounded to eight bits while it runs ("dynamic quantisation").

Each column of a matrix has a scale of its own and no offset; the numbers that it is multiplied with get one scale and
offset for all, whenever it runs. The nodes are those that onnxruntime joins into one kernel. Tables of embeddings have
a scale for each row, and where one is also the output layer, it stays one.

onnxruntime's own `quantize_dynamic` is not used since it leaves tables in 32 bits, which are half of a small model, and
also an output layer that shares one. The weights are what it makes of them, to the bit.

Source: ONNX's DynamicQuantizeLinear and MatMulInteger; onnxruntime.quantization of onnxruntime 1.31.

Shapes: I inputs, O outputs of a matrix; V rows of a table.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_LARGEST = 127
_FEWEST = 1024
"""Values of a matrix that is worth it."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """How many matrices of a graph were quantised, and how many were left as they are since they were to be `kept`."""

    matrices: int
    kept: int


def quantise(model: "ir.Model", keep: Collection[str] = ()) -> Quantised:
    """Quantises a graph in place; matrices with the names `keep`, as `tracing` gives them, stay in 32 bits."""
    import onnx_ir.passes.common as passes

    quantiser = _Quantiser(model.graph, frozenset(keep))
    for node in list(model.graph):
        quantiser.visit(node)
    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    return Quantised(quantiser.matrices, quantiser.kept)


@dataclass(slots=True)
class _Quantiser:
    graph: "ir.Graph"
    keep: frozenset[str]
    matrices: int = 0
    kept: int = 0
    inputs: dict[int, list[Any]] = field(default_factory=dict)  # by the value that was rounded
    weights: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)  # by value and axis of scales

    def visit(self, node: "ir.Node") -> None:
        if node.op_type == "Gather":
            self.table(node)
        elif node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 and node.inputs[1] is not None:
            self.matrix(node)

    def matrix(self, node: "ir.Node") -> None:
        """x · W [+ b] becomes the product of whole numbers, times the scales."""
        found = self.weight_of(node)
        if found is None:
            return
        value, turned = found
        self.matrices += 1
        if (value.name or "").removesuffix(".T") in self.keep:
            self.kept += 1
            return
        whole, scale = self.quantised(value, axis=0 if turned else 1)
        if turned:
            (whole,) = self.add(node, "Transpose", [whole], perm=[1, 0])
        rounded, step, zero = self.rounded(node, node.inputs[0])
        (product,) = self.add(node, "MatMulInteger", [rounded, whole, zero])
        (real,) = self.add(node, "Cast", [product], to=1)
        (scales,) = self.add(node, "Mul", [step, scale])
        (result,) = self.add(node, "Mul", [real, scales])
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            (result,) = self.add(node, "Add", [result, node.inputs[2]])
        self.replace(node, result)

    def weight_of(self, node: "ir.Node") -> "tuple[ir.Value, bool] | None":
        """The matrix that a node multiplies with, and whether it is (O, I) as torch has it, and not (I, O)."""
        value = node.inputs[1]
        assert value is not None, "seen by `visit`"
        turned = False
        if node.op_type == "Gemm":
            plain = {name: attribute.value for name, attribute in node.attributes.items()}
            if plain.get("alpha", 1.0) != 1.0 or plain.get("beta", 1.0) != 1.0 or plain.get("transA", 0):
                return None
            turned = bool(plain.get("transB", 0))
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
            value, turned = producer.inputs[0], not turned
        return (value, turned) if _is_matrix(value) else None

    def table(self, node: "ir.Node") -> None:
        """Rows of a table become rows of whole numbers, times the scale of each."""
        value, ids = node.inputs[0], node.inputs[1]
        axis = node.attributes.get("axis")
        if value is None or ids is None or (axis is not None and axis.value != 0) or not _is_matrix(value):
            return
        whole, scale = self.quantised(value, axis=0)
        (rows,) = self.add(node, "Gather", [whole, ids], axis=0)
        (scales,) = self.add(node, "Gather", [scale, ids], axis=0)
        (real,) = self.add(node, "Cast", [rows], to=1)
        (wide,) = self.add(node, "Unsqueeze", [scales, self.constant("last_axis", np.array([-1], np.int64))])
        (result,) = self.add(node, "Mul", [real, wide])
        self.replace(node, result)

    def quantised(self, value: "ir.Value", axis: int) -> tuple[Any, Any]:
        """A matrix as whole numbers, and the scales along an axis; made once."""
        if (id(value), axis) not in self.weights:
            assert value.const_value is not None, "seen by `_is_matrix`"
            whole, scale = to_int8(value.const_value.numpy(), axis)
            pair = self.constant(f"{value.name}_quantized", whole), self.constant(f"{value.name}_scale", scale)
            self.weights[id(value), axis] = pair
        return self.weights[id(value), axis]

    def rounded(self, before: "ir.Node", value: Any) -> list[Any]:
        """What a matrix is multiplied with as whole numbers, its scale and its offset; once for all that read it."""
        if id(value) not in self.inputs:
            self.inputs[id(value)] = self.add(before, "DynamicQuantizeLinear", [value], count=3)
        return self.inputs[id(value)]

    def constant(self, name: str, array: Array) -> "ir.Value":
        import onnx_ir as ir

        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)  # type: ignore[union-attr]
        self.graph.initializers[name] = value
        return value

    def add(self, before: "ir.Node", op: str, inputs: list[Any], *, count: int = 1, **attributes: Any) -> list[Any]:
        """Puts a node in front of another; returns its outputs."""
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes=attributes, num_outputs=count)
        self.graph.insert_before(before, node)
        return list(node.outputs)

    def replace(self, node: "ir.Node", result: Any) -> None:
        """Has all that read the output of a node read another value, under the same name; takes the node away."""
        old = node.outputs[0]
        result.name, old.name = old.name, f"{old.name}_unused"
        result.type, result.shape = old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def to_int8(matrix: Array, axis: int) -> tuple[Array, Array]:
    """A matrix as whole numbers from -127 to 127, and the scale of each of its rows (axis 0) or columns (axis 1)."""
    scale = np.abs(matrix).max(axis=1 - axis, keepdims=True).astype(np.float32) / np.float32(_LARGEST)
    scale[scale == 0] = 1
    whole = np.clip(np.rint(matrix / scale), -_LARGEST, _LARGEST).astype(np.int8)
    return whole, scale.reshape(-1)


def _is_matrix(value: "ir.Value") -> bool:
    import onnx_ir as ir

    const = value.const_value if value.is_initializer() else None
    return const is not None and const.dtype == ir.DataType.FLOAT and len(const.shape) == 2 and const.size >= _FEWEST
