"""A graph as files: one, or with its weights in a second one beside it where one would be too large."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir

DATA = ".data"
"""What the file of weights ends in, behind the name of the graph."""
MAX_INSIDE_BYTES = 1_900_000_000
"""Weights that are put into the file of the graph: protobuf reads at most 2 GiB, and the graph itself takes some."""


def told_of(name: str, task: str) -> dict[str, str]:
    """What a file says of itself."""
    return {"model_name": name, "task": task, "made_by": f"entrenar {version('entrenar-core')}"}


def save(model: "onnx_ir.Model", file: Path, *, max_inside_bytes: int = MAX_INSIDE_BYTES) -> tuple[Path, ...]:
    """Writes a graph, and has ONNX's own checker read it; returns its files, the graph first.

    Raises:
        ModelError: the checker refuses it.
        OSError: it cannot be written.
    """
    import onnx
    import onnx_ir

    weights = [value.const_value for value in model.graph.initializers.values()]
    outside = sum(weight.nbytes for weight in weights if weight is not None) > max_inside_bytes
    data = file.with_name(file.name + DATA)
    onnx_ir.save(model, file, external_data=data.name if outside else None)
    try:
        onnx.checker.check_model(os.fspath(file))
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"the graph that torch exported is no sound ONNX: {str(error).strip().splitlines()[0]}",
            "take another --opset, or another version of torch",
        ) from error
    return (file, data) if outside else (file,)


def remove(file: Path) -> None:
    """Takes a graph and its weights away."""
    for part in (file, file.with_name(file.name + DATA)):
        part.unlink(missing_ok=True)


def put_data(work: Path, target: Path) -> None:
    """Puts the file of weights of a graph that is written in `work` beside `target`, or takes one away that an earlier
    graph of that name had.
    """
    beside = target.with_name(target.name + DATA)
    data = work.with_name(work.name + DATA)
    if data.is_file():
        data.replace(beside)
    else:
        beside.unlink(missing_ok=True)
