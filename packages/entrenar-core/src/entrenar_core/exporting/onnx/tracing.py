"""The graph of a model, by torch's exporter, and made tidy: small sums done once, weights under their own names.

Of torch's own way to make it tidy the rewriting rules are left out: they look through the whole graph for each node, so
that a model of 30 layers takes a minute, and onnxruntime does what they do when it loads a graph.

Source: torch.onnx.export of torch 2.13; onnxscript.optimizer of onnxscript 0.7.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from entrenar_core.errors import ModelError
from entrenar_core.exporting.onnx.callers import Caller
from entrenar_core.models.quiet import quietly

if TYPE_CHECKING:
    import onnx_ir

_EXAMPLE = (2, 11)
"""Rows and tokens of what is traced: neither is 0 or 1, which an exporter takes for sizes that never change."""
_WITHIN = "model."
"""What the names of weights begin with in a `Caller`."""
_LONGEST = 300
_FOLDS = 2
_CONSTANT = 8
"""Values of what is a constant of the arithmetic, such as a shape, and no weight."""


@contextmanager
def silently() -> Iterator[None]:
    """No word from torch's exporter, and those that it calls, until the block ends; errors are raised anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def traced(caller: Caller, name: object, opset: int) -> "onnx_ir.Model":
    """The graph of a model, in 32 bits, for any number of rows and tokens. Its weights are the model's own memory, as
    far as they did not have to be transposed.

    Raises:
        ModelError: torch's exporter cannot follow the model.
    """
    example = torch.ones(_EXAMPLE, dtype=torch.long)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with silently(), torch.no_grad():
            program = torch.onnx.export(
                caller,
                kwargs={name: example.clone() for name in caller.inputs},
                dynamo=True,
                dynamic_shapes=dict.fromkeys(caller.inputs, sizes),
                input_names=caller.inputs,
                output_names=caller.outputs,
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
            assert program is not None, "it is not written by torch"
            _tidy(program.model, _names(caller))
    except Exception as error:  # the exporter raises errors of any class, even its own assertions
        kind = type(caller.model).__name__
        raise ModelError(
            f"torch {torch.__version__} cannot export {name}, a {kind}, to ONNX: {_reason(error)}",
            "take another format, such as GGUF, or another version of torch or transformers",
        ) from error
    return program.model


def _reason(error: Exception) -> str:
    """The first line that says something, of what is often pages; the cause, where the exporter only wraps it."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else type(cause).__name__
    return reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"


def _names(caller: Caller) -> Mapping[str, str]:
    """What weights are called in the model, by what they are in the caller; of tied ones the first name."""
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, weight in caller.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(weight), name.removeprefix(_WITHIN))
    return names


def _tidy(model: "onnx_ir.Model", names: Mapping[str, str]) -> None:
    """Folds what is constant, but not the transposed copy of a weight that is used as it is, too: tied weights stay
    one. What the exporter notes of itself, such as lines of source and the folders they lie in, is taken away.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir

    passes.InlinePass()(model)
    _name_weights(model, names)
    for _ in range(_FOLDS):
        fold_constants_ir(model, should_fold=_folds)
        passes.RemoveUnusedNodesPass()(model)
    for step in (
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=_CONSTANT),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def _folds(node: "onnx_ir.Node") -> bool | None:
    """Whether a node that has only constants is computed now; None leaves that to its size."""
    given = node.inputs[0] if node.inputs else None
    if node.op_type != "Transpose" or given is None or not given.is_initializer():
        return None
    return len(given.uses()) == 1


def _name_weights(model: "onnx_ir.Model", names: Mapping[str, str]) -> None:
    """Weights are called as in the model; the transposed of one, which takes its place when folded, ends in `.T`."""
    for value in list(model.graph.initializers.values()):
        if value.name is not None:
            value.name = names.get(value.name, value.name.removeprefix(_WITHIN))
        for node in value.consumers():
            if node.op_type == "Transpose":
                node.outputs[0].name = f"{value.name}.T"
