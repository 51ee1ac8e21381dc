"""A teacher that is read from a cache: its body is not loaded, and need not be on this machine.

Rows that a cache lacks are read by the live teacher, where there is one, and taken as the cache would have kept them.

Shapes: B rows, N rows or positions of a batch that count, K teacher's width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.errors import DataError
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.models.rows import Rows
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.keys import keys_of
from entrenar_core.teachers.cache.kinds import Kind, kind_settings
from entrenar_core.teachers.cache.layers import Layers
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.cache.store import RowStore
from entrenar_core.teachers.promises import of_cache
from entrenar_core.teachers.signals import Signals
from entrenar_core.teachers.source import Said, TeacherSays

ReadLive = Callable[[Batch], Sequence[Arrays]]
"""From a batch to what a cache keeps of its rows, in their order."""


class CachedTeacher:
    """What a teacher said of the rows of a batch, by their tokens."""

    def __init__(
        self, store: RowStore, kind: Kind, layers: Layers | None = None, read_live: ReadLive | None = None
    ) -> None:
        self.store, self.kind, self.layers, self.read_live = store, kind, layers, read_live

    @property
    def signals(self) -> Signals:
        """What was kept."""
        return of_cache(kind_settings(self.kind), Wants() if self.layers is None else self.layers.wants)

    @torch.no_grad()
    def rows(self, batch: Batch) -> Targets:
        """What it said of the rows or positions that count, on the device of the batch.

        Raises:
            DataError: a row of the batch is not in the cache and nobody reads it, or is damaged there.
        """
        return self.kind.targets(self._kept(batch)[0], batch.input_ids_BT.device)

    def dense(self, batch: Batch) -> Rows:
        """The same, of a kind that keeps all of a distribution."""
        found = self.rows(batch)
        assert isinstance(found, Logits | HeadRows), "a kind that keeps some tokens alone"
        return found

    def of_labels(self, batch: Batch) -> Tensor:
        """The log-probability of each label, NaN where there is none, of a kind that keeps some tokens alone, (N,)."""
        return torch.from_numpy(self._kept(batch)[0]["label"])

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training: also what passed in the layers that are wanted."""
        assert wants <= (Wants() if self.layers is None else self.layers.wants), "of those that were kept"

        @torch.no_grad()
        def says(batch: Batch) -> Said:
            kept, known = self._kept(batch)
            said = self.kind.targets(kept, batch.input_ids_BT.device)
            record = self.layers.record(kept, batch) if wants.anything and self.layers is not None else None
            if self.kind.name == "vectors":
                assert isinstance(said, Logits), "numbers as they are"
                return Said(None, record, said.logits_NV, known)
            return Said(said, record, kept_rows=known)

        return says

    def _kept(self, batch: Batch) -> tuple[Arrays, int]:
        """The arrays of the rows of a batch, one row behind the other, and how many of them the cache knew."""
        if batch.num_soft == 0:
            return self.store.gathered(()), 0
        places = [self.store.place(key) for key in keys_of(batch)]
        if None not in places:
            return self.store.gathered(place for place in places if place is not None), len(places)
        lacking = [index for index, place in enumerate(places) if place is None]
        if self.read_live is None:
            raise DataError(
                f"row {int(batch.rows_B[lacking[0]])} is not in the cache of the teacher: its tokens are others than "
                "when it was built",
                "build the cache again with this configuration, or set `teacher.cache.missing: live`",
            )
        live = dict(zip(lacking, self.read_live(batch.of(lacking)), strict=True))
        rows = [live[index] if place is None else self.store.read(place) for index, place in enumerate(places)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, len(places) - len(lacking)


class CachedSentences(CachedTeacher):
    """A sentence encoder that read the student's tokens; `judged_NK`: of the texts that the student is judged by."""

    def __init__(
        self, store: RowStore, kind: Kind, layers: Layers | None, judged_NK: Tensor, read_live: ReadLive | None = None
    ) -> None:
        super().__init__(store, kind, layers, read_live)
        self.judged_NK = judged_NK
