"""Whether a model says of examples that share a row what it says of each alone. Found out by asking it.

Position ids and a mask are all that a model is given to keep examples apart. Some take neither from their caller, some
mix neighbouring tokens by convolutions or a running state, which no mask stops.

Shapes: N positions that count, V classes or vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from entrenar_core.data.collating import Batch, Collator
from entrenar_core.errors import ModelError
from entrenar_core.models.output_layer import OutputLayer
from entrenar_core.models.recording import other_implementation
from entrenar_core.models.rows import Counting, Rows, read_rows

_TILE = 64
_EXACT = 1e-5
"""What rounding may do in fp32, in parts of the largest logit."""
_ROUNDING, _MOST = 8, 1e-3
"""How many times more than padding does, and where rounding ends for certain (in coarser numbers, so many steps)."""
_WITHOUT = "remove `dataset.packing`"
_OWN_ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError)

Example = Mapping[str, Any]


def require_packable(
    model: nn.Module,
    part: str,
    rows: Sequence[Sequence[Example]],
    collator: Collator,
    counting: Counting,
    output: OutputLayer | None = None,
) -> None:
    """Compares logits of packed rows with those of each example by itself. Model and random state stay as they were.

    Args:
        model: is asked in evaluation mode, on its device.
        part: what it is called: the student or the teacher.
        rows: the examples of each row, as tokenised.
        collator: makes batches of them.
        counting: what of a batch counts.
        output: where the logits of a language model are made, if they can be made in tiles.

    Raises:
        ModelError: the examples are not kept apart.
    """
    inner = type(model).__name__
    if (implementation := other_implementation(model)) is not None:
        raise ModelError(
            f"the {part} ({inner}) computes attention by `{implementation}`, which cannot keep packed examples apart",
            f"load it with `attn_implementation` sdpa or eager, or {_WITHOUT}",
        )
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            found = _differences(model, rows, collator, counting, output, device)
    finally:
        model.train(training)
    if isinstance(found, str):
        raise ModelError(f"the {part} ({inner}) cannot read packed rows: {found}", _WITHOUT)
    padded, packed = found
    steps = 4 * torch.finfo(next(model.parameters()).dtype).eps
    if not packed <= min(max(_EXACT, _ROUNDING * padded), max(_MOST, steps)):
        raise ModelError(
            f"the {part} ({inner}) does not keep the examples of a packed row apart: its logits differ by {packed:.1e} "
            "of the largest from those of each example alone",
            _WITHOUT,
        )


def _differences(
    model: nn.Module,
    rows: Sequence[Sequence[Example]],
    collator: Collator,
    counting: Counting,
    output: OutputLayer | None,
    device: torch.device,
) -> tuple[float, float] | str:
    """How far the logits of padded and of packed rows are from those of each example alone, in parts of the largest;
    or why packed rows cannot be read.
    """

    def read(batch: Batch) -> Rows:
        return read_rows(model, batch.to(device), counting, output)

    examples = [example for row in rows for example in row]
    padded = read(collator(examples))
    try:
        packed = read(collator.packed(rows))
    except torch.OutOfMemoryError:
        raise
    except _OWN_ERRORS as error:  # of code that expects neither our positions nor our mask
        return str(error)
    largest, differences, start = 0.0, [0.0, 0.0], 0
    for example in examples:
        alone = read(collator([example]))
        for first in range(0, len(alone), _TILE):
            last = min(first + _TILE, len(alone))
            alone_NV = alone.of(slice(first, last)).float()
            largest = max(largest, float(alone_NV.abs().max()))
            for index, other in enumerate((padded, packed)):
                other_NV = other.of(slice(start + first, start + last)).float()
                differences[index] = _larger(differences[index], float((other_NV - alone_NV).abs().max()))
        start += len(alone)
    return differences[0] / max(largest, 1e-30), differences[1] / max(largest, 1e-30)


def _larger(one: float, other: float) -> float:
    """What is no number is the largest of all."""
    return other if other > one or other != other else one
