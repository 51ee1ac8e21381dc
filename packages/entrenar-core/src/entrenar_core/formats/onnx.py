"""ONNX files: what a graph reads and gives, and which files beside it hold its weights. Nothing of it is run.

A file is a protobuf message. It is read field by field through a memory map, so that weights inside it are passed over,
and only what is asked here is looked at. Source: onnx.proto3 of the ONNX project, and protobuf's encoding.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from entrenar_core.errors import ModelError
from entrenar_core.formats import stays_below

_MAX_DEPTH = 32
_MAX_NAME_BYTES = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES = {
    1: "float",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "double",
    16: "bfloat16",
    21: "uint4",
    22: "int4",
}
_WEIGHTS = ("float", "float16", "bfloat16", "double", "int8", "uint8", "int4", "uint4")

Dimension = int | str
"""A size, or the name of one that is known when the graph runs; a size without a name is an empty one."""


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output. `type` is ONNX's name of its elements, or its number; `shape` is None where none is given."""

    name: str
    type: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """What a file says of itself. `external` are the files that hold weights, as the graph spells them."""

    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    external: tuple[str, ...]
    num_parameters: int


def read_graph(path: Path) -> OnnxGraph:
    """Reads inputs, outputs and the places of weights; takes time in proportion to the number of nodes.

    Raises:
        ModelError: the file cannot be read, or is no sound ONNX.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path).graph(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError) as error:  # of an empty file there is no map
        raise ModelError(f"{path} cannot be read: {error}", "fetch or export it again") from error


def external_files(path: Path, folder: Path) -> tuple[str, ...]:
    """The files with weights of the graph in `path`, relative to `folder`, in which it lies.

    Raises:
        ModelError: as `read_graph`; or a place leads out of the folder of the graph, or means no file.
    """
    above = path.relative_to(folder).parent
    names = read_graph(path).external
    for name in names:
        if not name or not stays_below(name):
            raise ModelError(
                f"{path} keeps weights in {name!r}, which is no file of its folder",
                "such a file is broken or hostile: fetch the model from where you trust it",
            )
    return tuple((above / name).as_posix() for name in names)


@dataclass(slots=True)
class _Reader:
    path: Path
    external: dict[str, None] = field(default_factory=dict)
    parameters: int = 0

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not a sound ONNX file: {what}", "fetch or export it again")

    def graph(self, data: memoryview) -> OnnxGraph:
        graphs = self.inside(data, 7)
        for function in self.inside(data, 25):
            for node in self.inside(function, 7):
                self.node(node, 0)
        if len(graphs) != 1:
            raise self.fail(f"{len(graphs)} graphs")
        names = self.nodes_and_weights(graphs[0], 0)
        inputs, outputs = (tuple(self.value(value) for value in self.inside(graphs[0], place)) for place in (11, 12))
        given = tuple(value for value in inputs if value.name not in names)  # older files list weights as inputs
        return OnnxGraph(given, outputs, tuple(self.external), self.parameters)

    def nodes_and_weights(self, graph: memoryview, depth: int) -> set[str]:
        """Looks through a graph, and those inside its nodes; gives the names of its own weights."""
        if depth > _MAX_DEPTH:
            raise self.fail(f"graphs nested more than {_MAX_DEPTH} deep")
        names = set()
        for number, value in self.fields(graph):
            if number == 1:
                self.node(self.bytes(value), depth)
            elif number == 5:
                names.add(self.tensor(self.bytes(value)))
            elif number == 15:
                self.sparse(self.bytes(value))
        return names

    def node(self, node: memoryview, depth: int) -> None:
        for attribute in self.inside(node, 5):
            self.attribute(attribute, depth)

    def attribute(self, attribute: memoryview, depth: int) -> None:
        for number, value in self.fields(attribute):
            if number in (5, 10):
                self.tensor(self.bytes(value))
            elif number in (6, 11):
                self.nodes_and_weights(self.bytes(value), depth + 1)
            elif number in (22, 23):
                self.sparse(self.bytes(value))

    def sparse(self, tensor: memoryview) -> None:
        for number, value in self.fields(tensor):
            if number in (1, 2):
                self.tensor(self.bytes(value))

    def tensor(self, tensor: memoryview) -> str:
        """Notes where a tensor lies and how many weights it has; gives its name."""
        name, shape, kind = "", [], ""
        for number, value in self.fields(tensor):
            if number == 1:
                shape += self.numbers(value)
            elif number == 2:
                kind = _TYPES.get(self.number(value), "")
            elif number == 8:
                name = self.text(value)
            elif number == 13:
                key, place = self.pair(self.bytes(value))
                if key == "location":
                    self.external[place] = None
        if kind in _WEIGHTS:
            self.parameters += math.prod(shape)
        return name

    def pair(self, entry: memoryview) -> tuple[str, str]:
        found = {number: self.text(value) for number, value in self.fields(entry) if number in (1, 2)}
        return found.get(1, ""), found.get(2, "")

    def value(self, value: memoryview) -> OnnxValue:
        name, kind, shape = "", "", None
        for number, part in self.fields(value):
            if number == 1:
                name = self.text(part)
            elif number == 2:
                for inner, tensor in self.fields(self.bytes(part)):
                    kind, shape = self.tensor_type(self.bytes(tensor)) if inner == 1 else ("no tensor", None)
        return OnnxValue(name, kind, shape)

    def tensor_type(self, tensor: memoryview) -> tuple[str, tuple[Dimension, ...] | None]:
        kind, shape = "", None
        for number, value in self.fields(tensor):
            if number == 1:
                kind = _TYPES.get(self.number(value), str(value))
            elif number == 2:
                shape = tuple(self.dimension(part) for part in self.inside(self.bytes(value), 1))
        return kind, shape

    def dimension(self, dimension: memoryview) -> Dimension:
        size: Dimension = ""
        for number, value in self.fields(dimension):
            if number in (1, 2):
                size = self.number(value) if number == 1 else self.text(value)
        return size

    def inside(self, data: memoryview, number: int) -> list[memoryview]:
        """The messages in a message that have this number."""
        return [self.bytes(value) for found, value in self.fields(data) if found == number]

    def fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """The fields of a message: its number, and its value or where it lies."""
        place = 0
        while place < len(data):
            key, place = self.varint(data, place)
            kind = key & 7
            if kind == _VARINT:
                value, place = self.varint(data, place)
                yield key >> 3, value
                continue
            if kind == _BYTES:
                size, place = self.varint(data, place)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise self.fail(f"a field of the unknown kind {kind}")
            if size > len(data) - place:
                raise self.fail(f"{size:,} bytes are announced, and {len(data) - place:,} are there")
            yield key >> 3, data[place : place + size]
            place += size

    def varint(self, data: memoryview, place: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= len(data):
                raise self.fail("it ends inside a number")
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise self.fail("a number of more than 64 bits")

    def bytes(self, value: int | memoryview) -> memoryview:
        if isinstance(value, int):
            raise self.fail("a number where a message should be")
        return value

    def number(self, value: int | memoryview) -> int:
        if not isinstance(value, int):
            raise self.fail("a message where a number should be")
        return value

    def numbers(self, value: int | memoryview) -> list[int]:
        """A repeated number comes one by one, or packed."""
        if isinstance(value, int):
            return [value]
        found, place = [], 0
        while place < len(value):
            number, place = self.varint(value, place)
            found.append(number)
        return found

    def text(self, value: int | memoryview) -> str:
        raw = self.bytes(value)
        if len(raw) > _MAX_NAME_BYTES:
            raise self.fail(f"a name of {len(raw):,} bytes")
        return bytes(raw).decode(errors="replace")
