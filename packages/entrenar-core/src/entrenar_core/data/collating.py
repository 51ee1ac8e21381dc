"""Tokenised rows to tensors, padded to the longest row of the batch. Several examples may share a row.

Shapes: B rows, T positions, E examples (as many as rows, unless they are packed), L positions of the longest example.
Padding is known by its place, not by its token: a pad token may be the EOS token too.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.data.masking import Masking

_TENSORS = ("input_ids_BT", "attention_mask_BT", "labels", "targets", "rows_B", "weights")


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the examples of packed rows are.

    `positions_BT` are those of tokens in their own example, from 0; `segments_BT` is the number of the example in its
    row, from 0. Padding has position 0, and goes with the example beside it, so that it has something to look at.
    """

    positions_BT: Tensor
    segments_BT: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(*(part.to(device, non_blocking=True) for part in (self.positions_BT, self.segments_BT)))

    def of(self, rows: slice) -> Self:
        """Of some of the rows."""
        return type(self)(self.positions_BT[rows], self.segments_BT[rows])

    def apart(self, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The places of the tokens of each example in the flattened batch, (E, L), and which of these are real."""
        places_N = real_BT.flatten().nonzero()[:, 0]
        positions_N = self.positions_BT.flatten()[places_N]
        examples_N = (positions_N == 0).cumsum(0) - 1
        longest = int(positions_N.max()) + 1 if len(positions_N) else 0
        shape = int((positions_N == 0).sum()), longest
        places_EL, real_EL = places_N.new_zeros(shape), real_BT.new_zeros(shape, dtype=torch.bool)
        places_EL[examples_N, positions_N] = places_N
        real_EL[examples_N, positions_N] = True
        return places_EL, real_EL


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one forward pass.

    `labels` are classes (B,) or tokens (B, T) as in transformers: unshifted, −100 where nothing is to be learnt.
    `targets` says what the soft loss counts: every row of a classifier, labelled or not, or the positions whose token
    is predicted. `rows_B` are the rows' positions in their source; of `packed` rows there is one for each example, in
    the order in which they stand in the batch. `weights` are those of labels, where they have some. The numbers of
    labels and targets are taken on the CPU, when the batch is made, so that no step waits for the device. A `blank`
    batch has nothing that counts.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels: Tensor
    targets: Tensor
    rows_B: Tensor
    weights: Tensor | None = None
    blank: bool = False
    packed: Packed | None = None
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
        if self.packed is not None:
            object.__setattr__(moved, "packed", self.packed.to(device))
        return moved

    @property
    def real(self) -> Tensor:
        """Which tokens, (B, T), are a row's own and count."""
        return self.attention_mask_BT.bool() & (not self.blank)

    def parts(self, size: int) -> Iterator[Self]:
        """The same rows, at most `size` of them in a batch."""
        if size >= len(self.input_ids_BT):
            yield self
            return
        ends = torch.arange(1, len(self.input_ids_BT) + 1) if self.packed is None else self._ends_of_rows(self.packed)
        for start in range(0, len(self.input_ids_BT), size):
            rows = slice(start, start + size)
            examples = slice(int(ends[start - 1]) if start else 0, int(ends[rows][-1]))
            yield type(self)(
                self.input_ids_BT[rows],
                self.attention_mask_BT[rows],
                self.labels[rows],
                self.targets[rows],
                self.rows_B[examples],
                None if self.weights is None else self.weights[rows],
                self.blank,
                None if self.packed is None else self.packed.of(rows),
            )

    def _ends_of_rows(self, packed: Packed) -> Tensor:
        """How many examples there are up to the end of each row, (B,)."""
        begins_BT = (packed.positions_BT == 0) & self.attention_mask_BT.bool()
        return begins_BT.sum(-1).cumsum(0)

    @property
    def counted(self) -> Tensor:
        """How many targets each example has, (E,)."""
        if self.packed is None:
            return self.targets.reshape(len(self.rows_B), -1).sum(-1)
        places_EL, real_EL = self.packed.apart(self.attention_mask_BT.bool())
        return (self.targets.flatten()[places_EL] & real_EL).sum(-1)

    def of(self, examples: Sequence[int]) -> Self:
        """Some of its examples, each in a row of its own."""
        chosen = torch.tensor(examples, device=self.rows_B.device)
        rows_B, weights = self.rows_B[chosen], self.weights
        if self.packed is None:
            ids_BT, mask_BT = self.input_ids_BT[chosen], self.attention_mask_BT[chosen]
            weights = None if weights is None else weights[chosen]
            return type(self)(ids_BT, mask_BT, self.labels[chosen], self.targets[chosen], rows_B, weights, self.blank)
        places_EL, real_EL = (part[chosen] for part in self.packed.apart(self.attention_mask_BT.bool()))
        ids_EL, labels_EL = self.input_ids_BT.flatten()[places_EL], self.labels.flatten()[places_EL]
        targets_EL = self.targets.flatten()[places_EL] & real_EL
        weights = None if weights is None else weights.flatten()[places_EL]
        mask_EL = real_EL.to(self.attention_mask_BT.dtype)
        return type(self)(
            ids_EL, mask_EL, labels_EL.masked_fill(~real_EL, IGNORED), targets_EL, rows_B, weights, self.blank
        )

    def blanked(self) -> Self:
        """The same shapes with nothing that counts, for a process that has no rows but must take part."""
        return type(self)(
            self.input_ids_BT,
            self.attention_mask_BT,
            torch.full_like(self.labels, IGNORED),
            torch.zeros_like(self.targets),
            self.rows_B,
            blank=True,
            packed=self.packed,
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
        rows = [self._ready(row) for row in rows]
        if isinstance(rows[0]["labels"], list):
            return self._of_tokens(rows, [row["row"] for row in rows])
        labels_B = torch.tensor([row["labels"] for row in rows])
        targets_B = torch.ones(len(rows), dtype=torch.bool)
        return Batch(*self._tokens(rows), labels_B, targets_B, torch.tensor([row["row"] for row in rows]))

    def packed(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> Batch:
        """Rows of several examples each, one after another; not of a classifier of texts."""
        examples = [[self._ready(example) for example in row] for row in rows]
        positions = [[at for example in row for at in range(len(example["input_ids"]))] for row in examples]
        segments = [[n for n, example in enumerate(row) for _ in example["input_ids"]] for row in examples]
        numbered_BT = self._padded(segments, -1).cummax(1).values.clamp_min(0)  # padding is of the example beside it
        packed = Packed(self._padded(positions, 0), numbered_BT)
        return self._of_tokens([*map(_joined, examples)], [one["row"] for row in examples for one in row], packed)

    def _ready(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row with labels of those tokens alone that are predicted from others of the same example."""
        if "words" in row:
            return self._masked(row)
        if not isinstance(row["labels"], list) or "targets" in row:
            return row
        return {**row, "labels": [IGNORED, *row["labels"][1:]]}

    def _tokens(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Ids and mask."""
        ids = [row["input_ids"] for row in rows]
        return self._padded(ids, self.pad_token_id), self._padded([[1] * len(row) for row in ids], 0)

    def _of_tokens(self, rows: Sequence[Mapping[str, Any]], examples: list[int], packed: Packed | None = None) -> Batch:
        labels_BT = self._padded([row["labels"] for row in rows], IGNORED)
        targets_BT = labels_BT != IGNORED
        if "targets" in rows[0]:
            targets_BT = self._padded([row["targets"] for row in rows], 0).bool()
        weights_BT = self._padded([row["weights"] for row in rows], 0.0) if "weights" in rows[0] else None
        numbers = torch.tensor(examples)
        return Batch(*self._tokens(rows), labels_BT, targets_BT, numbers, weights_BT, packed=packed)

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


def _joined(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One row of them all."""
    columns = [name for name in ("input_ids", "labels", "targets", "weights") if name in examples[0]]
    return {name: [value for example in examples for value in example[name]] for name in columns}
