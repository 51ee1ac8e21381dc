"""Texts in batches, for a model that reads each of them once.

A batch holds texts of similar length, and which ones depends on the texts alone and not on their order, so that what a
model says of a text has the same bits whenever the same texts are read.

Shapes: B rows of a batch, T positions, N texts, K numbers for each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entrenar_core.data.tokenizing import never_empty


@dataclass(frozen=True, slots=True)
class TextBatch:
    """The tokens of some texts; `rows` says which ones."""

    rows: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    pad_token_id: int

    def inputs(self, device: torch.device | str) -> dict[str, Tensor]:
        """Ids and mask (B, T), padded on the right, where positions of every family stay what they are."""
        width = max(map(len, self.ids))
        ids_BT = torch.tensor([[*row, *[self.pad_token_id] * (width - len(row))] for row in self.ids])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self.ids])
        return {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}


def text_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int, max_length: int
) -> list[TextBatch]:
    """All texts, cut to `max_length` tokens, the shortest first."""
    ids = never_empty(tokenizer, texts, max_length)
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), texts[row]))
    starts = range(0, len(order), batch_size)
    pad = tokenizer.pad_token_id or 0
    return [
        TextBatch(tuple(rows), tuple(tuple(ids[row]) for row in rows), pad)
        for rows in (order[start : start + batch_size] for start in starts)
    ]


def in_order(read: Iterable[tuple[TextBatch, Tensor]]) -> Tensor:
    """What was said of each batch (B, K), as one tensor (N, K) in the order of the texts, in 32 bits on the CPU."""
    batches, values = zip(*read, strict=True)
    values_NK = torch.cat([value.float().cpu() for value in values])
    ordered_NK = torch.empty_like(values_NK)
    ordered_NK[torch.tensor([row for batch in batches for row in batch.rows])] = values_NK
    return ordered_NK
