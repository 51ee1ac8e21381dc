"""ONNX files around single tensors, written by the onnx package or byte by byte, and their headers."""

from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from entrenar_core.formats.onnx import read
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header


def model_of(*tensors: TensorProto, **settings: Any) -> ModelProto:
    """A model that is nothing but these initialisers."""
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors), **settings)


def header(content: bytes | ModelProto, path: Path) -> Header:
    """What is read of a file with this content, which is written to `path`."""
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with FileSource(path) as source:
        return read(source)


def varint(value: int) -> bytes:
    """A number as protobuf writes it, negative ones in two's complement of 64 bits."""
    value &= 2**64 - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def message(number: int, content: bytes) -> bytes:
    """A field of this number that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def wrapped(tensor: bytes) -> bytes:
    """A model around the message of one tensor."""
    return b"\x08\x08" + message(7, message(5, tensor))
