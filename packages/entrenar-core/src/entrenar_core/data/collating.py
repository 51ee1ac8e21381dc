"""Tokenised rows to tensors, padded to the longest row of the batch.

Shapes: B rows, T positions. Padding is known by its place, not by its token: a pad token may be the EOS token too.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.data.masking import Masking

_TENSORS = ("input_ids_BT", "attention_mask_BT", "labels", "targets", "rows_B", "weights")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one forward pass.

    `labels` are classes (B,) or tokens (B, T) as in transformers: unshifted, −100 where nothing is to be learnt.
    `targets` says what the soft loss counts: every row of a classifier, labelled or not, or the positions whose token
    is predicted. `rows_B` are the rows' positions in their source; `weights` are those of labels, where they have some.
    The numbers of labels and targets are taken on the CPU, when the batch is made, so that no step waits for the
    device. A `blank` batch has nothing that counts.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels: Tensor
    targets: Tensor
    rows_B: Tensor
    weights: Tensor | None = None
    blank: bool = False
    num_soft: int = field(init=False)
    num_hard: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_soft", int(self.targets.sum()))
        object.__setattr__(self, "num_hard", int((self.labels != IGNORED).sum()))

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        moved = copy.copy(self)
        for name in _TENSORS:
            if (tensor := getattr(self, name)) is not None:
                object.__setattr__(moved, name, tensor.to(device, non_blocking=True))
        return moved

    @property
    def real(self) -> Tensor:
        """Which tokens, (B, T), are a row's own and count."""
        return self.attention_mask_BT.bool() & (not self.blank)

    def of(self, places: Sequence[int]) -> Self:
        """Some of its rows, padded as they are."""
        chosen = torch.tensor(places, device=self.rows_B.device)
        weights = None if self.weights is None else self.weights[chosen]
        ids_BT, mask_BT = self.input_ids_BT[chosen], self.attention_mask_BT[chosen]
        labels, targets, rows_B = self.labels[chosen], self.targets[chosen], self.rows_B[chosen]
        return type(self)(ids_BT, mask_BT, labels, targets, rows_B, weights, self.blank)

    def blanked(self) -> Self:
        """The same shapes with nothing that counts, for a process that has no rows but must take part."""
        return type(self)(
            self.input_ids_BT,
            self.attention_mask_BT,
            torch.full_like(self.labels, IGNORED),
            torch.zeros_like(self.targets),
            self.rows_B,
            blank=True,
        )


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes a batch of rows as `tokenize_rows` gives them. Rows with `words` are masked: in every `epoch` otherwise,
    and for evaluation, without one, always in the same way.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    masking: Masking | None = None
    epoch: int | None = None

    def of_epoch(self, epoch: int) -> Self:
        """The same for a pass over the training rows."""
        return dataclasses.replace(self, epoch=epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows whose `labels` is a list are of a language model, others of a classifier; rows that are masked have none
        yet, and those whose words are tagged have `targets`.
        """
        if "words" in rows[0]:
            rows = [self._masked(row) for row in rows]
        input_ids_BT = self._padded([row["input_ids"] for row in rows], self.pad_token_id)
        attention_mask_BT = self._padded([[1] * len(row["input_ids"]) for row in rows], 0)
        rows_B = torch.tensor([row["row"] for row in rows])
        if not isinstance(rows[0]["labels"], list):
            labels_B = torch.tensor([row["labels"] for row in rows])
            targets_B = torch.ones(len(rows), dtype=torch.bool)
            return Batch(input_ids_BT, attention_mask_BT, labels_B, targets_B, rows_B)
        labels_BT = self._padded([row["labels"] for row in rows], IGNORED)
        if "targets" in rows[0]:
            targets_BT = self._padded([row["targets"] for row in rows], 0).bool()
            return Batch(input_ids_BT, attention_mask_BT, labels_BT, targets_BT, rows_B)
        predicted_BT = torch.zeros_like(labels_BT, dtype=torch.bool)  # a token that follows a token of its own row
        predicted_BT[:, 1:] = attention_mask_BT[:, :-1].bool()
        labels_BT = labels_BT.masked_fill(~predicted_BT, IGNORED)
        weights_BT = self._padded([row["weights"] for row in rows], 0.0) if "weights" in rows[0] else None
        return Batch(input_ids_BT, attention_mask_BT, labels_BT, labels_BT != IGNORED, rows_B, weights_BT)

    def _masked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        assert self.masking is not None, "rows to be masked, and nothing says how"
        ids, labels = self.masking.apply(row["input_ids"], row["words"], row=row["row"], epoch=self.epoch)
        targets = [label != IGNORED for label in labels]
        return {"input_ids": ids, "labels": labels, "targets": targets, "row": row["row"]}

    def _padded(self, values: Sequence[list[Any]], filler: float) -> Tensor:
        length = max(map(len, values))
        fillers = [[filler] * (length - len(row)) for row in values]
        if self.padding_side == "left":
            return torch.tensor([before + row for row, before in zip(values, fillers, strict=True)])
        return torch.tensor([row + after for row, after in zip(values, fillers, strict=True)])
