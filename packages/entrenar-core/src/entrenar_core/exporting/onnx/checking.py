"""onnxruntime beside torch: does a graph give what the model gives, in batches of sizes that were not traced?

Shapes: B rows, T positions.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entrenar_core.errors import ModelError
from entrenar_core.exporting.onnx.callers import Caller
from entrenar_core.models.onnx_rules import IDS, MASK, TYPES

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SHAPES = ((1, 1), (1, 7), (3, 33), (2, 19))
"""Rows and tokens of what is compared; what is traced has other sizes."""
LIMIT = 1e-3
"""How far apart numbers may be, as a part of their root mean square. Of the families of families.toml with random
weights, MiniLM and SmolLM2-135M it was at most 2e-5; a mask or an angle that is wrong gives 0.01 and more."""
_QUIET = 4  # errors come as exceptions
_SEED = 0

Feed = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Expected:
    """What torch gives for a batch: for each output its numbers, of which the `real` ones count."""

    feed: Feed
    outputs: tuple[Tensor, ...]

    def real(self, found: Tensor) -> Tensor:
        """The numbers of real tokens, or of rows, one after another: (N, width)."""
        mask_BT = self.feed[MASK].bool()
        return found[mask_BT] if found.ndim == 3 else found


def batches(caller: Caller, longest: int | None, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Feed]:
    """Rows of random tokens, the same ones for the same model, with padding on the right in every second row and on the
    left in the others, but none in the first. `longest` is how many positions the model has.
    """
    generator = torch.Generator().manual_seed(_SEED)
    return [_batch(caller, rows, min(tokens, longest or tokens), generator) for rows, tokens in shapes]


def _batch(caller: Caller, rows: int, tokens: int, generator: torch.Generator) -> Feed:
    config: Any = caller.model.config
    pad, vocabulary = getattr(config, "pad_token_id", None), int(config.vocab_size)
    ids_BT = torch.randint(vocabulary, (rows, tokens), generator=generator)
    if pad is not None:
        ids_BT[ids_BT == pad] = (pad + 1) % vocabulary  # a real one would count as padding in some models
    mask_BT = torch.ones_like(ids_BT)
    for row in range(1, rows):
        half = slice(tokens - tokens // 2, None) if row % 2 else slice(0, tokens // 2)
        mask_BT[row, half], ids_BT[row, half] = 0, pad or 0
    feed = {IDS: ids_BT, MASK: mask_BT}
    if TYPES in caller.inputs:
        feed[TYPES] = torch.randint(caller.kinds_of_tokens, (rows, tokens), generator=generator)
    return feed


@torch.no_grad()
def expected(caller: Caller, feeds: Sequence[Feed], name: object) -> list[Expected]:
    """What torch gives.

    Raises:
        ModelError: the model cannot be called like this, or gives what is no number.
    """
    found = []
    for feed in feeds:
        try:
            outputs = tuple(output.clone() for output in caller(**feed))
        except Exception as error:  # whatever a model raises that is called with ids and mask alone
            raise ModelError(
                f"{name} cannot be called with {', '.join(caller.inputs)}: {_first_line(error)}", "take another format"
            ) from error
        one = Expected(feed, outputs)
        if not all(one.real(output).isfinite().all() for output in outputs):
            raise ModelError(
                f"{name} gives numbers that are not finite", "check its weights: `entrenar-inspect validate`"
            )
        found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference between two graphs, and that over the root mean square of what it was compared with."""

    largest: float
    relative: float


def require_equal(file: Path, wanted: Sequence[Expected], name: object) -> Difference:
    """Runs a graph on what torch was given.

    Raises:
        ModelError: onnxruntime cannot run it, or it gives something else.
    """
    session = open_session(file)
    found = [_difference(one, run(session, one.feed)) for one in wanted]
    largest = Difference(max(one.largest for one in found), max(one.relative for one in found))
    if not largest.relative <= LIMIT:
        raise ModelError(
            f"the ONNX graph of {name} gives other numbers than torch: they differ by up to {largest.largest:.3g}, "
            f"{largest.relative:.2g} of their root mean square",
            "take another format, such as GGUF, or another --opset",
        )
    return largest


def _difference(one: Expected, found: Sequence[Tensor]) -> Difference:
    largest = relative = 0.0
    for is_, should in zip(found, one.outputs, strict=True):
        if is_.shape != should.shape:
            return Difference(float("inf"), float("inf"))
        difference = float((one.real(is_) - one.real(should)).abs().max())
        scale = float(one.real(should).square().mean().sqrt())
        largest = max(largest, difference)
        relative = max(relative, difference / scale if scale else difference)
    return Difference(largest, relative)


def open_session(file: Path) -> "InferenceSession":
    """A graph in onnxruntime, on the CPU and as many threads as torch has.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise _not_run(error) from error


def run(session: "InferenceSession", feed: Feed) -> list[Tensor]:
    """What a graph gives for a batch, in the order of its outputs.

    Raises:
        ModelError: onnxruntime cannot run it.
    """
    given = {value.name: feed[value.name].numpy() for value in session.get_inputs()}
    try:
        return [torch.from_numpy(output) for output in session.run(None, given)]
    except Exception as error:  # onnxruntime's errors have no class in common
        raise _not_run(error) from error


def _not_run(error: Exception) -> ModelError:
    return ModelError(
        f"onnxruntime cannot run the graph that torch exported: {_first_line(error)}",
        "take another --opset or onnxruntime",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
