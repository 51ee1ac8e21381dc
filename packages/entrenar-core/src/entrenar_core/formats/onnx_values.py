"""The inputs and outputs of an ONNX graph.

Source: `ValueInfoProto` and `TypeProto` in onnx.proto3 of the ONNX project.
"""

from dataclasses import dataclass

from entrenar_core.formats.onnx_tensors import TYPES
from entrenar_core.formats.protobuf import Field, Messages

_DENOTATION = 6

Dimension = int | str
"""A size, or the name of one that is known when the graph runs; a size without a name is an empty one."""


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output. `type` is ONNX's name of its elements, or its number; `shape` is None where none is given."""

    name: str
    type: str
    shape: tuple[Dimension, ...] | None


def read_value(messages: Messages, value: Field) -> OnnxValue:
    """What a ValueInfoProto says.

    Raises:
        ModelError: it is no sound message.
    """
    name, kind, shape = "", "", None
    for part in messages.fields(value):
        if part.number == 1:
            name = messages.text(part)
        elif part.number == 2:
            for inner in messages.fields(part):
                if inner.number == 1:
                    kind, shape = _tensor_type(messages, inner)
                elif inner.number != _DENOTATION:
                    kind, shape = "no tensor", None
    return OnnxValue(name, kind, shape)


def _tensor_type(messages: Messages, message: Field) -> tuple[str, tuple[Dimension, ...] | None]:
    kind, shape = "", None
    for part in messages.fields(message):
        if part.number == 1:
            number = messages.number(part)
            kind = TYPES[number][0] if number in TYPES else str(number)
        elif part.number == 2:
            shape = tuple(_dimension(messages, inner) for inner in messages.fields(part) if inner.number == 1)
    return kind, shape


def _dimension(messages: Messages, message: Field) -> Dimension:
    size: Dimension = ""
    for part in messages.fields(message):
        if part.number == 1:
            number = messages.number(part)
            size = number if number >= 0 else ""  # as some exporters write that it is not known
        elif part.number == 2:
            size = messages.text(part)
    return size
