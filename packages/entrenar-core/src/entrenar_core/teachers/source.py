"""Where a teacher's signals come from, as the training loop sees it.

A source says something of the rows of a batch that count, and of its layers, where a loss asks for them. Whether it is
a model that reads the batch, a cache that kept what one said, or several of them, the loop does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.losses.targets import Targets
from entrenar_core.models.recording import Record
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.signals import Signals


@dataclass(frozen=True, slots=True)
class Said:
    """What a teacher says of a batch: of the rows that count, and what passed inside of it, if it was asked. A sentence
    encoder says a vector of each row instead. `kept_rows` is how many rows a cache knew; None where there is none.
    """

    rows: Targets | None
    record: Record | None = None
    vectors_BK: Tensor | None = None
    kept_rows: int | None = None


TeacherSays = Callable[[Batch], Said]


class TeacherSource(Protocol):
    """A teacher of tokens or classes."""

    @property
    def signals(self) -> Signals:
        """What it can say."""
        ...

    def rows(self, batch: Batch) -> Targets:
        """What it says of the rows or positions of a batch that count, on the device of the batch."""
        ...

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training: also what passes in the layers that are wanted, which `signals` has."""
        ...
