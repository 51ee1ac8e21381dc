"""The micro-batches of every optimiser step, as a function of the step alone.

A run that goes on from a checkpoint gets the same batches as one that never stopped, and every rank gets its part of
the same batches, however many ranks there are.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.ordering import epoch_batches, share
from entrenar_core.errors import DataError


class Batches(Protocol):
    """Where the loop's batches come from."""

    total_steps: int

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimiser step from `first` to the last."""
        ...


class _RankRows:
    """Rows by index, a whole batch at a time, which Arrow reads several times faster than row by row.

    An index below 0 is a row that fills a rank's empty share: it must not count.
    """

    def __init__(self, rows: Any, collator: Collator) -> None:
        self.rows, self.collator = rows, collator

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        counts = indices[0] >= 0
        columns = self.rows[list(indices) if counts else [-1 - index for index in indices]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return _collated(rows, counts=counts, collator=self.collator)


def _collated(rows: Sequence[dict[str, Any]], *, counts: bool, collator: Collator) -> Batch:
    batch = collator(rows)
    return batch if counts else batch.blanked()


class StoredBatches:
    """Batches of rows that are all at hand: a fresh permutation every epoch, reachable at any step at once.

    Ranks cut a batch between groups of `group_size` rows.
    """

    def __init__(
        self,
        rows: Any,
        collator: Collator,
        training: TrainingConfig,
        rank: int = 0,
        world_size: int = 1,
        group_size: int = 1,
    ) -> None:
        self.rows, self.collator = rows, collator
        self.training, self.rank, self.world_size, self.group_size = training, rank, world_size, group_size
        self.lengths: Sequence[int] | None = list(rows["length"]) if training.group_by_length else None
        self.steps_per_epoch = math.ceil(math.ceil(len(rows) / training.batch_size) / training.gradient_accumulation)
        self.total_steps = training.max_steps or training.epochs * self.steps_per_epoch

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimiser step from `first` to the last."""
        epoch, skipped = divmod(first, self.steps_per_epoch)
        step = first
        while step < self.total_steps:
            for micro_batches in itertools.islice(self._epoch(epoch, skipped), self.total_steps - step):
                yield micro_batches
                step += 1
            epoch, skipped = epoch + 1, 0

    def _epoch(self, epoch: int, skipped_steps: int) -> Iterator[list[Batch]]:
        size = self.training.gradient_accumulation
        batches = epoch_batches(
            len(self.rows),
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            epoch=epoch,
            lengths=self.lengths,
        )[skipped_steps * size :]
        parts = (share(batch, self.rank, self.world_size, self.group_size) for batch in batches)
        shares = [part or [-1 - batch[0]] for part, batch in zip(parts, batches, strict=True)]
        loader: DataLoader[Any] = DataLoader(
            _RankRows(self.rows, self.collator.of_epoch(epoch)),  # type: ignore[arg-type]
            batch_sampler=shares,
            collate_fn=_as_it_is,
            num_workers=self.training.dataloader_workers,
            generator=torch.Generator(),  # it draws a seed for workers, which must not move the run's random state
        )
        return _grouped(iter(loader), size)


class StreamedBatches:
    """Batches of rows that are read as they come. To go on from a step, the rows before it are read again."""

    def __init__(
        self,
        epoch_rows: Callable[[int], Iterator[dict[str, Any]]],
        num_rows: int,
        collator: Collator,
        training: TrainingConfig,
        rank: int = 0,
        world_size: int = 1,
        group_size: int = 1,
    ) -> None:
        self.epoch_rows, self.collator, self.training = epoch_rows, collator, training
        self.num_rows = num_rows
        self.rank, self.world_size, self.group_size = rank, world_size, group_size
        step_rows = training.batch_size * training.gradient_accumulation
        self.total_steps = training.max_steps or training.epochs * math.ceil(num_rows / step_rows)

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimiser step from `first` to the last.

        Raises:
            DataError: a whole pass over the stream gave no row with a token to learn.
        """
        return itertools.islice(self._all(), first, self.total_steps)

    def _all(self) -> Iterator[list[Batch]]:
        for epoch in itertools.count():
            found = False
            for micro_batches in _grouped(self._epoch(epoch), self.training.gradient_accumulation):
                found = True
                yield micro_batches
            if not found:
                raise DataError(
                    f"of the {self.num_rows:,} rows of the stream, none has a token to learn",
                    "raise `dataset.max_length`, or check the columns",
                )

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        rows, collator = self.epoch_rows(epoch), self.collator.of_epoch(epoch)
        while batch := list(itertools.islice(rows, self.training.batch_size)):
            mine = share(range(len(batch)), self.rank, self.world_size, self.group_size)
            yield _collated([batch[i] for i in mine] or batch[:1], counts=bool(mine), collator=collator)


def _as_it_is(batch: Any) -> Any:
    return batch


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group
