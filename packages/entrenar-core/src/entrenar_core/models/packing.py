"""Whether a model says of examples that share a row what it says of each alone. Found out by asking it.

Position ids and a mask are all that a model is given to keep examples apart. Some take neither from their caller, some
mix neighbouring tokens by convolutions or a running state, which no mask stops.

Shapes: N positions that count, V classes or vocabulary.
"""

import math
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
_EXACT, _STEPS = 1e-5, 2
"""What rounding may do, in parts of the largest logit; in numbers coarser than fp32, so many steps of theirs. Measured
were 1e-7 in fp32 and 0.2 steps of bf16, and 3e-2 and more where trained models mixed the examples."""
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
    device: torch.device | None = None,
) -> None:
    """Compares logits of packed rows with those of each example by itself. Model and random state stay as they were.

    Args:
        model: is asked in evaluation mode, on its device.
        part: what it is called: the student or the teacher.
        rows: the examples of each row, as tokenised.
        collator: makes batches of them.
        counting: what of a batch counts.
        output: where the logits of a language model are made, if they can be made in tiles.
        device: of its inputs, that of its weights if not given.

    Raises:
        ModelError: the examples are not kept apart.
    """
    inner = type(model).__name__
    if (implementation := other_implementation(model)) is not None:
        raise ModelError(
            f"the {part} ({inner}) computes attention by `{implementation}`, which cannot keep packed examples apart",
            f"load it with `attn_implementation` sdpa or eager, or {_WITHOUT}",
        )
    training, device = model.training, device or next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            found = _difference(model, rows, collator, counting, output, device)
    finally:
        model.train(training)
    if isinstance(found, str):
        raise ModelError(f"the {part} ({inner}) cannot read packed rows: {found}", _WITHOUT)
    if not found <= max(_EXACT, _STEPS * torch.finfo(next(model.parameters()).dtype).eps):
        raise ModelError(
            f"the {part} ({inner}) does not keep the examples of a packed row apart: its logits differ by {found:.1e} "
            "of the largest from those of each example alone",
            _WITHOUT,
        )


def _difference(
    model: nn.Module,
    rows: Sequence[Sequence[Example]],
    collator: Collator,
    counting: Counting,
    output: OutputLayer | None,
    device: torch.device,
) -> float | str:
    """How far the logits of packed rows are from those of each example alone, as a root mean square, in parts of the
    largest; or why packed rows cannot be read.
    """

    def read(batch: Batch) -> Rows:
        return read_rows(model, batch.to(device), counting, output)

    examples = [example for row in rows for example in row]
    try:
        packed = read(collator.packed(rows))
    except torch.OutOfMemoryError:
        raise
    except _OWN_ERRORS as error:  # of code that expects neither our positions nor our mask
        return str(error)
    square, largest, numbers, start = 0.0, 0.0, 0, 0
    for example in examples:
        alone = read(collator([example]))
        for first in range(0, len(alone), _TILE):
            last = min(first + _TILE, len(alone))
            alone_NV = alone.of(slice(first, last)).float()
            packed_NV = packed.of(slice(start + first, start + last)).float()
            square += float((packed_NV - alone_NV).square().sum())
            largest, numbers = max(largest, float(alone_NV.abs().max())), numbers + alone_NV.numel()
        start += len(alone)
    return math.sqrt(square / max(numbers, 1)) / max(largest, 1e-30)
