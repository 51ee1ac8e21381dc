"""A classifier as a teacher: its logits are few, so they are computed once for all rows, before training.

The teacher reads the texts with its own tokenizer, in batches fixed by the texts alone, so that the logits have the
same bits whatever the student's batches are and wherever a run is resumed.

Shapes: N texts, C classes.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.data.collating import Batch


class PrecomputedTeacher:
    """Logits by row number."""

    def __init__(self, rows: Sequence[int], logits_NC: Tensor) -> None:
        self.place = torch.full((max(rows) + 1,), -1)
        self.place[torch.tensor(rows)] = torch.arange(len(rows))
        self.logits_NC = logits_NC

    def logits(self, batch: Batch) -> Tensor:
        """(B, C), on the device of the batch."""
        places_B = self.place[batch.rows_B.cpu()]
        assert (places_B >= 0).all(), "a row that the teacher has not read"
        return self.logits_NC[places_B].to(batch.rows_B.device)


class LiveTeacher:
    """A model that reads the student's batches, at the same autocast as the student."""

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.model = model.to(accelerator.device).eval().requires_grad_(False)
        self.accelerator = accelerator

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V) of a language model, (B, C) of a classifier."""
        with self.accelerator.autocast():
            return self.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits  # type: ignore[no-any-return]


Teacher = PrecomputedTeacher | LiveTeacher


@torch.no_grad()
def classify(
    forward: Callable[..., Tensor],
    tokenizer: Callable[..., dict[str, list[list[int]]]],
    texts: Sequence[str],
    *,
    pad_token_id: int,
    batch_size: int,
    max_length: int,
    device: torch.device,
) -> Tensor:
    """Logits (N, C) in 32 bits, in the order of `texts`. `forward` takes ids and mask (B, T)."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), texts[row]))
    parts = []
    for start in range(0, len(order), batch_size):
        batch = [ids[row] for row in order[start : start + batch_size]]
        width = max(map(len, batch))
        ids_BT = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in batch], device=device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=device)
        parts.append(forward(input_ids=ids_BT, attention_mask=mask_BT).float().cpu())
    logits_NC = torch.empty(len(texts), parts[0].shape[-1])
    logits_NC[torch.tensor(order)] = torch.cat(parts)
    return logits_NC
