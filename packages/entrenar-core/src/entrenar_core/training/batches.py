"""The micro-batches of every optimiser step, as a function of the step alone.

A run that goes on from a checkpoint gets the same batches as one that never stopped, and every rank gets its part of
the same batches, however many ranks there are.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.ordering import epoch_batches, share
from entrenar_core.data.packing import Packing
from entrenar_core.errors import DataError


class Batches(Protocol):
    """Where the loop's batches come from."""

    total_steps: int

    def steps(self, first: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimiser step from `first` to the last."""
        ...


class _Share(NamedTuple):
    """A rank's part of a batch: the examples of each row, by index. One that does not count fills an empty part."""

    rows: list[list[int]]
    counts: bool


class _RankRows:
    """Examples by index, a whole batch at a time, which Arrow reads several times faster than row by row."""

    def __init__(self, rows: Any, collator: Collator, *, packed: bool) -> None:
        self.rows, self.collator, self.is_packed = rows, collator, packed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, share: _Share) -> Batch:
        columns = self.rows[[index for row in share.rows for index in row]]
        examples = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        if self.is_packed:
            batch = self.collator.packed([[next(examples) for _ in row] for row in share.rows])
        else:
            batch = self.collator(list(examples))
        return batch if share.counts else batch.blanked()


class StoredBatches:
    """Batches of rows that are all at hand: a fresh permutation every epoch, reachable at any step at once.

    Ranks cut a batch between groups of `group_size` rows. With a `packing`, a row holds several examples.
    """

    def __init__(
        self,
        rows: Any,
        collator: Collator,
        training: TrainingConfig,
        rank: int = 0,
        world_size: int = 1,
        group_size: int = 1,
        packing: Packing | None = None,
    ) -> None:
        self.rows, self.collator, self.packing = rows, collator, packing
        self.training, self.rank, self.world_size, self.group_size = training, rank, world_size, group_size
        self.lengths: Sequence[int] | None = None
        if training.group_by_length:
            self.lengths = list(rows["length"]) if packing is None else packing.filled
        self.num_rows = len(rows) if packing is None else len(packing)
        self.steps_per_epoch = math.ceil(
            math.ceil(self.num_rows / training.batch_size) / training.gradient_accumulation
        )
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
            self.num_rows,
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            epoch=epoch,
            lengths=self.lengths,
        )[skipped_steps * size :]
        held = None if self.packing is None else self.packing.rows(seed=self.training.seed, epoch=epoch)
        shares = []
        for batch in batches:
            part = share(batch, self.rank, self.world_size, self.group_size)
            shares.append(_Share([[row] if held is None else held[row] for row in part or batch[:1]], bool(part)))
        loader: DataLoader[Any] = DataLoader(
            _RankRows(self.rows, self.collator.of_epoch(epoch), packed=held is not None),  # type: ignore[arg-type]
            batch_sampler=shares,  # type: ignore[arg-type]
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
            made = collator([batch[i] for i in mine] or batch[:1])
            yield made if mine else made.blanked()


def _as_it_is(batch: Any) -> Any:
    return batch


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group
