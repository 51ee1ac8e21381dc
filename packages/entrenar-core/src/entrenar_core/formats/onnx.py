"""ONNX files: their tensors, what a graph reads and gives, and which files beside it hold its weights. Nothing of it is
run.

A file is a protobuf message. It is walked field by field, so that weights inside it are passed over, and only what is
asked here is looked at. Source: onnx.proto3 of the ONNX project.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import odd_name
from entrenar_core.formats.onnx_tensors import (
    MAX_INLINE_BYTES,
    TYPES,
    Placing,
    TensorEntry,
    check_location,
    read_tensor,
)
from entrenar_core.formats.onnx_values import Dimension, OnnxValue, read_value
from entrenar_core.formats.protobuf import Field, Messages
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.formats.tensors import Header, StoredTensor

__all__ = ["Dimension", "OnnxGraph", "OnnxValue", "external_files", "read", "read_graph"]

_MAX_DEPTH, _MAX_PLACE, _MAX_STEP = 32, 1000, 60
_MAX_TEXT_BYTES = 65_536
_FEWEST_FLOATS, _FEWEST_OTHERS = 2, 64
_WEIGHTS = ("float", "float16", "bfloat16", "double", "int8", "uint8", "int4", "uint4")
_TENSORS, _GRAPHS = (5, 10), (6, 11)
_HOLDING = (*_TENSORS, *_GRAPHS, 22, 23)
_TOLD = {1: "ir_version", 2: "producer_name", 3: "producer_version", 4: "domain", 5: "model_version", 6: "doc_string"}


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """What a file says of itself. `external` are the files that hold weights, as the graph spells them."""

    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    external: tuple[str, ...]
    num_parameters: int


def read(source: Source) -> Header:
    """The initialisers of a file, those inside its nodes and functions included, and what it says of itself: `details`
    is an `OnnxGraph`.

    The tensors in nodes are among them, since some exporters write weights as Constants, which are called as their
    outputs; but not single floats, nor fewer than 64 integers, which are the scalars and shapes of the arithmetic.
    Names that two graphs of a file use are told apart by where they are, as in `If_3.then_branch.weight`. What the
    header holds itself takes at most eight bytes per byte of the file, and at most 32 MB.

    Raises:
        ModelError: the file is no sound ONNX, or the values of a tensor are not there, or not those of its shape.
    """
    reader = _Reader(source, keep=True)
    graph = reader.model()
    tensors, inline = reader.stored()
    inside = sum(tensor.size_bytes for tensor in tensors if not tensor.file and not tensor.inline)
    return Header(
        WeightFormat.ONNX,
        tensors,
        reader.metadata,
        source.size_bytes - inside,
        tuple(reader.oddities),
        inline,
        details=graph,
    )


def read_graph(path: Path) -> OnnxGraph:
    """Reads inputs, outputs and the places of weights; takes time in proportion to the number of nodes.

    Raises:
        NotFoundError: there is no such file.
        ModelError: the file cannot be read, or is no sound ONNX.
    """
    with FileSource(path) as source:
        return _Reader(source, keep=False).model()


def external_files(path: Path, folder: Path) -> tuple[str, ...]:
    """The files with weights of the graph in `path`, relative to `folder`, in which it lies.

    Raises:
        NotFoundError, ModelError: as `read_graph`; or a place leads out of the folder of the graph, or means no file.
    """
    above = path.relative_to(folder).parent
    names = read_graph(path).external
    for name in names:
        check_location(str(path), name)
    return tuple((above / name).as_posix() for name in names)


class _Reader:
    """Walks through a model; its tensors are gone by and counted, and those that are its own also listed if `keep`."""

    def __init__(self, source: Source, *, keep: bool) -> None:
        self.source, self.keep = source, keep
        self.messages = Messages(source, self.fail)
        self.fields, self.text = self.messages.fields, self.messages.text
        self.listed: dict[tuple[str, str], TensorEntry] = {}  # by graph and name
        self.weights: set[str] = set()
        self.external: dict[str, None] = {}
        self.parameters = 0
        self.inputs: list[OnnxValue] = []
        self.outputs: list[OnnxValue] = []
        self.metadata: dict[str, Any] = {}
        self.oddities: list[str] = []
        self.inline_left = MAX_INLINE_BYTES

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.source.name} is not a sound ONNX file: {what}", "fetch or export it again")

    def model(self) -> OnnxGraph:
        graphs = 0
        for part in self.fields():
            if part.number == 7:
                graphs += 1
                self.graph(part, "", 0)
            elif part.number == 25:
                self.function(part)
            elif part.number == 20:
                self.oddities.append("it holds what it is trained by, whose tensors are not among its own")
            else:
                self.tell(part)
        if graphs != 1:
            raise self.fail(f"{graphs} graphs")
        given = tuple(value for value in self.inputs if value.name not in self.weights)  # older files list them here
        return OnnxGraph(given, tuple(self.outputs), tuple(self.external), self.parameters)

    def tell(self, part: Field) -> None:
        """Notes what a model says of itself besides its graph."""
        if part.number in (1, 5):
            self.metadata[_TOLD[part.number]] = self.messages.number(part)
        elif part.number in _TOLD and part.start < part.end:
            self.metadata[_TOLD[part.number]] = self.passage(part, f"its {_TOLD[part.number]}")
        elif part.number == 8:
            told = {inner.number: inner for inner in self.fields(part)}
            domain = self.text(told[1]) if 1 in told else ""
            version = self.messages.number(told[2]) if 2 in told else 0
            self.metadata.setdefault("opset_import", {})[domain or "ai.onnx"] = version
        elif part.number == 14:
            pair = {inner.number: self.passage(inner, "an entry of its metadata") for inner in self.fields(part)}
            self.metadata.setdefault("metadata_props", {})[pair.get(1, "")] = pair.get(2, "")

    def passage(self, part: Field, what: str) -> str:
        """A text of any length, of which the start is kept."""
        size = part.end - part.start
        if size > _MAX_TEXT_BYTES:
            self.oddities.append(f"{what} has {size:,} bytes, of which {_MAX_TEXT_BYTES:,} were read")
        return self.text(part._replace(end=part.start + min(size, _MAX_TEXT_BYTES)), _MAX_TEXT_BYTES)

    def graph(self, message: Field, where: str, depth: int) -> None:
        """Looks through a graph, and those inside its nodes."""
        if depth > _MAX_DEPTH or len(where) > _MAX_PLACE:
            raise self.fail(f"graphs nested more than {_MAX_DEPTH} deep, or under long names")
        nodes = 0
        for part in self.fields(message):
            if part.number == 1:
                self.node(part, where, nodes, depth)
                nodes += 1
            elif part.number == 5:
                self.weight(part, where)
            elif part.number == 15:
                self.sparse(part, where)
            elif part.number in (11, 12) and not depth:
                (self.inputs if part.number == 11 else self.outputs).append(read_value(self.messages, part))

    def function(self, message: Field) -> None:
        named = {part.number: self.text(part) for part in self.fields(message) if part.number in (1, 10, 13)}
        where = ".".join(named[number][:_MAX_STEP] for number in (10, 1, 13) if named.get(number))
        nodes = 0
        for part in self.fields(message):
            if part.number == 7:
                self.node(part, where, nodes, 0)
                nodes += 1
            elif part.number == 11:  # what an attribute of a call is where it is not given
                self.attribute(part, where, where, None, 0)

    def node(self, message: Field, where: str, index: int, depth: int) -> None:
        output = kind = None
        attributes = []
        for part in self.fields(message):
            if part.number == 5:
                attributes.append(part)
            elif part.number == 4:
                kind = part
            elif part.number == 2 and output is None:
                output = part
        if attributes:
            called = self.text(kind) if kind else ""
            place = f"{where}{'.' if where else ''}{called[:_MAX_STEP]}_{index}"
            for attribute in attributes:
                self.attribute(attribute, where, place, output if called == "Constant" else None, depth)

    def attribute(self, message: Field, where: str, node: str, constant: Field | None, depth: int) -> None:
        """Looks for tensors and graphs in an attribute of a node of the graph `where`."""
        name, held = None, []
        for part in self.fields(message):
            if part.number == 1:
                name = part
            elif part.number in _HOLDING:
                held.append(part)
        for position, part in enumerate(held):
            place = f"{node}.{self.text(name)[:_MAX_STEP] if name else ''}" + (f".{position}" if position else "")
            if part.number in _TENSORS:
                self.constant(part, where, self.text(constant) if constant else place)
            elif part.number in _GRAPHS:
                self.graph(part, place, depth + 1)
            else:
                self.sparse(part, place)

    def tensor(self, message: Field, where: str) -> TensorEntry:
        entry = read_tensor(self.messages, message, where)
        if "location" in entry.elsewhere:
            self.external[entry.elsewhere["location"]] = None
        if TYPES.get(entry.type, ("",))[0] in _WEIGHTS:
            self.parameters += entry.size
        return entry

    def weight(self, message: Field, where: str) -> None:
        entry = self.tensor(message, where)
        if not where:
            self.weights.add(entry.name)
        self.note(entry)

    def constant(self, message: Field, where: str, name: str) -> None:
        entry = self.tensor(message, where)
        if entry.size >= (_FEWEST_FLOATS if entry.is_float else _FEWEST_OTHERS):
            entry.name = name
            self.note(entry)

    def note(self, entry: TensorEntry) -> None:
        if not self.keep:
            return
        if (entry.where, entry.name) in self.listed:
            raise self.fail(f"the tensor {entry.name} comes twice")
        self.listed[entry.where, entry.name] = entry

    def sparse(self, message: Field, where: str) -> None:
        parts = {part.number: self.tensor(part, where) for part in self.fields(message) if part.number in (1, 2)}
        name = parts[1].name if 1 in parts else ""
        if not where:
            self.weights.add(name)
        self.oddities.append(f"tensor {name} is sparse, and is not among its tensors")

    def stored(self) -> tuple[tuple[StoredTensor, ...], dict[str, bytes]]:
        """The tensors that a model is said to have, and the bytes of those that have no place in a file."""
        named = Counter(name for _, name in self.listed)
        found: dict[str, StoredTensor | None] = {}
        inline: dict[str, bytes] = {}
        for entry in self.listed.values():
            name = f"{entry.where}.{entry.name}" if entry.where and named[entry.name] > 1 else entry.name
            if name in found:
                raise self.fail(f"the tensor {name} comes twice")
            if (why := odd_name(name.lstrip("/"))) is not None:  # exporters write the path of a module, from its root
                self.oddities.append(f"tensor {name} {why}")
            placing = Placing(self.messages, entry, name)
            dtype = placing.dtype()
            if dtype is None:
                found[name] = None
                self.oddities.append(
                    f"tensor {name} is of the type {TYPES[entry.type][0]}, and is not among its tensors"
                )
                continue
            found[name], held = placing.stored(dtype)
            if held is not None:
                self.hold(inline, name, held)
        return tuple(tensor for tensor in found.values() if tensor is not None), inline

    def hold(self, inline: dict[str, bytes], name: str, held: bytes) -> None:
        """Puts bytes to the others that are not in a file."""
        inline[name] = held
        self.inline_left -= len(held)
        if self.inline_left < 0:
            raise self.fail(f"numbers of varying length that take more than {MAX_INLINE_BYTES:,} bytes")
