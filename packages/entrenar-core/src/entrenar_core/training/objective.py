"""What a training makes small: losses with weights, each a sum that is divided by a count of the whole step.

Shapes: B rows, T positions, V classes or vocabulary, N rows or positions that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from entrenar_core.config.schedules import Schedule, Setting
from entrenar_core.data.collating import Batch
from entrenar_core.losses import Core
from entrenar_core.losses.pooling import Pool
from entrenar_core.models.rows import Counting
from entrenar_core.models.wants import Wants
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.layer_terms import LayerTerm
from entrenar_core.training.schedules import moves, value_at
from entrenar_core.training.vector_terms import VectorTerm


@dataclass(frozen=True, slots=True)
class RowTerm:
    """A loss on the logits of each row that counts: a divergence from the teacher, or the cross-entropy with labels.

    `core` is None for the labels, of which `smoothing` is given to all classes evenly; `power` is that of `soften`.
    """

    label: str
    weight: Setting = 1.0
    core: Core | None = None
    temperature: float | Schedule = 1.0
    smoothing: float = 0.0
    power: int = 2

    @property
    def needs_teacher(self) -> bool:
        """Labels need none."""
        return self.core is not None

    def count(self, batch: Batch) -> int:
        """How many rows of a batch it is summed over."""
        return batch.num_hard if self.core is None else batch.num_soft


@dataclass(frozen=True, slots=True)
class Now:
    """A loss in some optimiser step: its weight, its temperature, and what its sum is divided by."""

    weight: float
    temperature: float
    count: int

    @property
    def factor(self) -> float:
        """What its sum is multiplied by. A loss that nothing counts for is zero."""
        return self.weight / max(self.count, 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """loss = Σ weight · sum / count over its terms, with counts of all micro-batches and ranks of a step.

    A student with a `pool` makes a vector of each sentence, and no logits: it has no terms of rows.

    Source: for one divergence and labels, Hinton, Vinyals & Dean 2015.
    """

    counting: Counting
    rows: tuple[RowTerm, ...]
    layers: tuple[LayerTerm, ...] = ()
    vectors: tuple[VectorTerm, ...] = ()
    pool: Pool | None = None
    exits: tuple[ExitTerm, ...] = ()

    @property
    def modules(self) -> tuple[VectorTerm | LayerTerm | ExitTerm, ...]:
        """Those that may have weights of their own."""
        return (*self.vectors, *self.layers, *self.exits)

    @property
    def terms(self) -> tuple[RowTerm | VectorTerm | LayerTerm | ExitTerm, ...]:
        """All of them, in the order in which they are told."""
        return (*self.rows, *self.modules)

    def wants(self, side: int) -> Wants:
        """What must be recorded of the student (0) or the teacher (1)."""
        looking: tuple[LayerTerm | ExitTerm, ...] = (*self.layers, *self.exits)
        return reduce(or_, (term.wants(side) for term in looking), Wants())

    def counts(self, batches: Sequence[Batch]) -> list[int]:
        """What each term of a rank's batches is divided by, before other ranks are added."""
        return [sum(term.count(batch) for batch in batches) for term in self.terms]

    def at(self, step: int, total_steps: int, counts: Sequence[int]) -> tuple[Now, ...]:
        """Its terms in an optimiser step, counted from 0."""
        return tuple(
            Now(
                value_at(term.weight, step, total_steps),
                value_at(term.temperature, step, total_steps),
                count,
            )
            for term, count in zip(self.terms, counts, strict=True)
        )

    def needs_teacher(self, now: Sequence[Now] | None = None) -> bool:
        """Whether some term does, of those that have weight `now`."""
        weights = [1.0] * len(self.terms) if now is None else [term.weight for term in now]
        return any(term.needs_teacher and weight > 0 for term, weight in zip(self.terms, weights, strict=True))

    def moving(self, now: Sequence[Now]) -> dict[str, float]:
        """What schedules say now, by the names of the terms."""
        told: dict[str, float] = {}
        for term, present in zip(self.terms, now, strict=True):
            if moves(term.weight):
                told[f"{term.label}.weight"] = present.weight
            if moves(term.temperature):
                told[f"{term.label}.temperature"] = present.temperature
        return told
