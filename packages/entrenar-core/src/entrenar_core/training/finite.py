"""A run whose numbers are none stops, before it overwrites a good checkpoint with them."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from entrenar_core.data.collating import Batch
from entrenar_core.errors import TrainingError
from entrenar_core.training.run_folder import complete_checkpoints

_SHOWN = 8


def require_finite(what: str, value: float, step: int, micro_batches: Sequence[Batch], checkpoints: Path) -> None:
    """Ends the run where `value` is infinite or not a number.

    Raises:
        TrainingError: it names the step, the rows of this rank that the step had, and the last good checkpoint.
    """
    if math.isfinite(value):
        return
    rows = [row for batch in micro_batches for row in batch.rows_B.tolist()]
    shown = ", ".join(map(str, rows[:_SHOWN])) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    saved = complete_checkpoints(checkpoints)
    kept = f"the last good checkpoint is {saved[-1]}" if saved else "there was no checkpoint before it"
    raise TrainingError(
        f"the {what} is {value} at step {step}, in the batch of rows {shown}; {kept}",
        "lower `training.learning_rate`, clip with `training.max_grad_norm`, or look at these rows of the data set",
    )


@torch.no_grad()
def largest(model: nn.Module) -> float:
    """The largest absolute value of the weights that train; nan where one is nan. Waits for the device once."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return float(torch.stack([parameter.abs().max().float() for parameter in trained]).max())
