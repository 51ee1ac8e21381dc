"""What an ONNX graph must read and give to be a teacher; without torch, so that `validate` answers at once."""

from collections.abc import Iterator
from importlib.util import find_spec

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import EntrenarError, Problem
from entrenar_core.formats.onnx import Dimension, OnnxGraph, OnnxValue, read_graph
from entrenar_core.models.heads import CAUSAL_LM, CLASSIFICATION, EMBEDDING, LANGUAGE, head_labels

NO_RUNTIME = (
    "an ONNX model is run by onnxruntime, which is not installed",
    "install it with `pip install 'entrenar[onnx]'`, or `pip install onnxruntime-gpu` for a GPU",
)
"""What is wrong where onnxruntime is missing, and what to do."""
IDS, MASK, TYPES, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
PAST = "past_key_values."
SENTENCE = "sentence_embedding"
"""What graphs call a vector of the whole text, which is pooled already."""
_HIDDEN = ("last_hidden_state", "token_embeddings")
_KNOWN = (IDS, MASK, TYPES, POSITIONS)
_READS = f"{', '.join(_KNOWN)} and {PAST}*"
_WHOLE, _REAL = ("int64", "int32"), ("float", "float16", "double")
_OFFSET = ("camembert", "esm", "longformer", "mpnet", "roberta")
"""Families whose positions are not counted from 0, where a graph asks for them."""
_AGAIN = "export it again, such as with `optimum-cli export onnx`"


def has_runtime() -> bool:
    """Whether onnxruntime is there; it is not imported."""
    return find_spec("onnxruntime") is not None


def output_of(graph: OnnxGraph, task: str) -> OnnxValue | None:
    """What of a graph teaches: logits; of a sentence encoder its hidden states, else its vector of the text."""
    names = (*_HIDDEN, SENTENCE) if task == EMBEDDING else ("logits",)
    by_name = {value.name: value for value in graph.outputs}
    return next((by_name[name] for name in names if name in by_name), None)


def width_of(artifact: ModelArtifact, task: str) -> int | None:
    """How many numbers the config says that the graph gives of a row or position.

    Raises:
        ModelError: the names of the classes cannot be read.
    """
    if task in LANGUAGE:
        return artifact.architecture.vocab_size
    if task == EMBEDDING:
        return artifact.architecture.hidden_size
    labels = head_labels(artifact, task)
    return None if labels is None else len(labels)


def check_graph(artifact: ModelArtifact, task: str | None) -> list[Problem]:
    """Every mistake in the graph of an ONNX artifact, as its file tells it. `where` is the dotted name of a setting."""
    try:
        graph = read_graph(artifact.weight_files[0])
        found = [*_inputs(graph, artifact, task), *(_output(graph, artifact, task) if task else ())]
    except EntrenarError as error:
        return [Problem(error.message, error.hint, "teacher.model_id")]
    return [Problem(f"{artifact.reference}: {message}", hint, "teacher.model_id") for message, hint in found]


def _inputs(graph: OnnxGraph, artifact: ModelArtifact, task: str | None) -> Iterator[tuple[str, str]]:
    names = [value.name for value in graph.inputs]
    for value in graph.inputs:
        yield from _input(value)
    if IDS not in names:
        yield f"the graph reads no `{IDS}`, but {', '.join(names) or 'nothing'}", "take a model that reads text"
    if MASK not in names and task not in (None, CAUSAL_LM):
        yield f"the graph reads no `{MASK}`, so padding would be text to it", _AGAIN
    model_type = artifact.architecture.model_type or ""
    if POSITIONS in names and any(name in model_type for name in _OFFSET):
        yield f"the graph reads `{POSITIONS}`, which a {model_type} does not count from 0", f"{_AGAIN} without them"


def _input(value: OnnxValue) -> Iterator[tuple[str, str]]:
    past = value.name.startswith(PAST)
    if not past and value.name not in _KNOWN:
        yield f"the graph reads `{value.name}`, and a teacher is given {_READS}", _AGAIN
    elif value.type not in _types_of(value.name):
        yield f"`{value.name}` of the graph is of the type {value.type}", _AGAIN
    elif past and len(value.shape or ()) != 4:
        yield f"`{value.name}` of the graph has not the four dimensions of keys and values", _AGAIN
    elif not past and (fixed := _fixed(value)):
        yield f"`{value.name}` of the graph has the fixed shape {fixed}", f"{_AGAIN} and with dynamic axes"


def _types_of(name: str) -> tuple[str, ...]:
    if name.startswith(PAST):
        return ("float", "float16")
    return (*_WHOLE, "bool", "float", "float16") if name == MASK else _WHOLE


def _fixed(value: OnnxValue) -> str | None:
    """The shape, where a batch or a length is fixed in it."""
    sizes = value.shape or ()
    return _shown(sizes) if any(isinstance(size, int) for size in sizes) else None


def _shown(shape: tuple[Dimension, ...]) -> str:
    return f"({', '.join(str(size) or '?' for size in shape)})"


def _output(graph: OnnxGraph, artifact: ModelArtifact, task: str) -> Iterator[tuple[str, str]]:
    output = output_of(graph, task)
    if output is None:
        wanted = f"`{_HIDDEN[0]}` nor `{SENTENCE}`" if task == EMBEDDING else "`logits`"
        given = ", ".join(value.name for value in graph.outputs) or "nothing"
        start = "neither " if task == EMBEDDING else "no "
        yield f"the graph gives {start}{wanted}, but {given}", f"export it for the task {task}"
        return
    if output.type not in _REAL:
        yield f"`{output.name}` of the graph is of the type {output.type}", _AGAIN
    dimensions = 2 if task == CLASSIFICATION or output.name == SENTENCE else 3
    if output.shape is None:
        return
    width = width_of(artifact, task)
    if len(output.shape) != dimensions:
        yield f"`{output.name}` of the graph is of the shape {_shown(output.shape)}", f"export it for the task {task}"
    elif isinstance(output.shape[-1], int) and width not in (None, output.shape[-1]):
        what = f"the graph gives {output.shape[-1]:,} numbers in `{output.name}`, and config.json says {width:,}"
        yield what, "check that config.json and the graph belong together"
