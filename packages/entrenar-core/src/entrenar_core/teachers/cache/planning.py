"""What a cache will hold: which rows, in which batches, in which shards, and how large it becomes.

All of it follows from the rows and the settings, and not from the run that builds it, so that a build that was stopped
goes on where it was, and ends with the same bytes as one that was not.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from entrenar_core.data.collating import Batch, Collator
from entrenar_core.models.heads import EMBEDDING, MASKED_LM
from entrenar_core.teachers.cache.keys import keys_of, row_key
from entrenar_core.teachers.texts import ids_of, texts_of

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

Split = Literal["train", "evaluation", "texts"]
"""Rows that the student reads too, or texts that the teacher reads by itself."""
_OF_A_ROW = 40
"""Bytes of a shard for each row, beside what is kept of it."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row to be read: of which data, where in it, and how it is masked; how many of its positions count."""

    key: bytes
    length: int
    positions: int
    split: Split
    index: int
    epoch: int | None = None


def planned_rows(prepared: "Preparation") -> Iterator[PlannedRow]:
    """Every row that a run asks its teacher for, as it is met."""
    return (row for group in _groups(prepared) for row in group)


@dataclass(frozen=True, slots=True)
class Costs:
    """The bytes that are kept of a position that counts, and of a real token."""

    of_position: float
    of_token: float = 0.0

    def of(self, row: PlannedRow) -> float:
        """Of a row; of texts no layers are kept."""
        tokens = 0 if row.split == "texts" else row.length
        return row.positions * self.of_position + tokens * self.of_token + _OF_A_ROW


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The batches of every shard."""

    shards: tuple[tuple[tuple[PlannedRow, ...], ...], ...]
    costs: Costs

    @property
    def rows(self) -> Iterator[PlannedRow]:
        """All rows, in the order in which they are read."""
        return (row for shard in self.shards for batch in shard for row in batch)

    @property
    def positions(self) -> int:
        """All that is kept something of."""
        return sum(row.positions for row in self.rows)

    @property
    def bytes(self) -> int:
        """About how large the shards become; of draws, at most."""
        return round(sum(map(self.costs.of, self.rows)))

    def digest(self) -> str:
        """What tells this plan from others."""
        found = hashlib.sha256()
        for shard in self.shards:
            for batch in shard:
                found.update(b"".join(row.key for row in batch) + b"|")
            found.update(b"||")
        return found.hexdigest()


def plan_cache(prepared: "Preparation", costs: Costs, *, batch_size: int, shard_bytes: int) -> CachePlan:
    """Every row of the training and the evaluation data once, and of masked texts once for every epoch.

    Of two rows with the same tokens one is kept.

    Args:
        prepared: whose rows.
        costs: what a row takes.
        batch_size: how many rows the teacher reads at once.
        shard_bytes: about how large a shard becomes.
    """
    batches: list[tuple[PlannedRow, ...]] = []
    seen: set[bytes] = set()
    for group in _groups(prepared):
        fresh = {row.key: row for row in group if row.key not in seen}
        seen |= fresh.keys()
        ordered = sorted(fresh.values(), key=lambda row: (row.length, row.key))
        batches += [tuple(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
    return CachePlan(tuple(_shards(batches, costs, shard_bytes)), costs)


def _shards(
    batches: Sequence[tuple[PlannedRow, ...]], costs: Costs, shard_bytes: int
) -> Iterator[tuple[tuple[PlannedRow, ...], ...]]:
    """Texts have shards of their own: less is kept of them."""
    shard: list[tuple[PlannedRow, ...]] = []
    size = 0.0
    for batch in batches:
        if shard and (size >= shard_bytes or _are_texts(batch) != _are_texts(shard[0])):
            yield tuple(shard)
            shard, size = [], 0.0
        shard.append(batch)
        size += sum(map(costs.of, batch))
    if shard:
        yield tuple(shard)


def _are_texts(batch: Sequence[PlannedRow]) -> bool:
    return batch[0].split == "texts"


def _groups(prepared: "Preparation") -> Iterator[Iterator[PlannedRow]]:
    """Rows that are masked alike, which a batch does not mix."""
    if prepared.teacher_reads_tokens:
        epochs: Sequence[int | None] = [None]
        if prepared.task == MASKED_LM:  # other words are masked in every epoch
            epochs = range(_epochs(prepared))
        for epoch in epochs:
            yield _rows_of("train", prepared.train_tokens, prepared.collator, epoch)
        if prepared.task != EMBEDDING:  # whose student is judged by texts
            yield _rows_of("evaluation", prepared.eval_tokens, prepared.collator, None)
    if texts := texts_of(prepared):
        yield _text_rows(prepared, texts)


def _epochs(prepared: "Preparation") -> int:
    """How many passes over the rows the training begins."""
    from entrenar_core.training.assembly import make_batches

    training = prepared.config.training
    if training.max_steps is None:
        return training.epochs
    whole = make_batches(prepared, prepared.train_tokens, None, 0, 1).total_steps
    return -(-training.max_steps * training.epochs // whole)


def _rows_of(split: Split, tokens: Any, collator: Collator, epoch: int | None) -> Iterator[PlannedRow]:
    collator = collator if epoch is None else collator.of_epoch(epoch)
    for index, row in enumerate(tokens):
        batch = collator([row])
        (key,) = keys_of(batch)
        yield PlannedRow(key, batch.input_ids_BT.shape[1], batch.num_soft, split, index, epoch)


def _text_rows(prepared: "Preparation", texts: Sequence[str]) -> Iterator[PlannedRow]:
    for index, ids in enumerate(ids_of(prepared, texts)):
        yield PlannedRow(text_key(ids), len(ids), 1, "texts", index)


def text_key(ids: Sequence[int]) -> bytes:
    """What a text is known by: its tokens as the teacher reads them."""
    return row_key(ids, ())


def collated(prepared: "Preparation", rows: Sequence[PlannedRow]) -> Batch:
    """The batch of some rows of one group, as the teacher reads it."""
    tokens = prepared.train_tokens if rows[0].split == "train" else prepared.eval_tokens
    epoch = rows[0].epoch
    collator = prepared.collator if epoch is None else prepared.collator.of_epoch(epoch)
    return collator([tokens[row.index] for row in rows])
