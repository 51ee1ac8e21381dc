"""A teacher that is read from a cache: its body is not loaded, and need not be on this machine.

Shapes: N rows or positions of a batch that count.
"""

import torch
from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.errors import DataError
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.models.rows import Rows
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.keys import keys_of
from entrenar_core.teachers.cache.kinds import Kind
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.cache.store import Store
from entrenar_core.teachers.source import Said, TeacherSays


class CachedTeacher:
    """What a teacher said of the rows of a batch, by their tokens."""

    def __init__(self, store: Store, kind: Kind) -> None:
        self.store, self.kind = store, kind

    @torch.no_grad()
    def rows(self, batch: Batch) -> Targets:
        """What it said of the rows or positions that count, on the device of the batch.

        Raises:
            DataError: a row of the batch is not in the cache, or is damaged there.
        """
        return self.kind.targets(self._kept(batch), batch.input_ids_BT.device)

    def dense(self, batch: Batch) -> Rows:
        """The same, of a kind that keeps all of a distribution."""
        found = self.rows(batch)
        assert isinstance(found, Logits | HeadRows), "a kind that keeps some tokens alone"
        return found

    def of_labels(self, batch: Batch) -> Tensor:
        """The log-probability of each label, NaN where there is none, of a kind that keeps some tokens alone, (N,)."""
        return torch.from_numpy(self._kept(batch)["label"])

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training, where nothing can be wanted of its layers."""
        assert not wants.anything, "checked before training"
        return lambda batch: Said(self.rows(batch))

    def _kept(self, batch: Batch) -> Arrays:
        if batch.num_soft == 0:
            return self.store.gathered(())
        return self.store.gathered(map(self._place, keys_of(batch), batch.rows_B.tolist()))

    def _place(self, key: bytes, row: int) -> int:
        place = self.store.place(key)
        if place is None:
            raise DataError(
                f"row {row} is not in the cache of the teacher: its tokens are others than when it was built",
                "build the cache again with this configuration",
            )
        return place
