"""Losses between the vectors of sentences of student and teacher.

A projection is the loss's: it trains with the student and is not saved with it.

Shapes: B rows, N rows that count, H student's width, K teacher's width.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from entrenar_core.config.desugaring import Term
from entrenar_core.config.losses import RelationLoss, SimilarityLoss, VectorLoss
from entrenar_core.data.collating import Batch
from entrenar_core.losses.grouping import LEAST, count_groups
from entrenar_core.losses.projections import make_projection
from entrenar_core.losses.sums import LossSum
from entrenar_core.losses.table import LOSSES

Compare = Callable[[Tensor, Tensor], LossSum]


class VectorTerm(nn.Module):
    """A loss on a vector for each row, as part of an objective. `counted` says what so many rows count for.

    `row_by_row`: a row's vector is compared with the teacher's of the same row, and not relations among rows.
    """

    needs_teacher = True
    temperature = 1.0

    def __init__(
        self, term: Term, compare: Compare, counted: Callable[[int], int], projection: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.label, self.weight = term.label, term.weight
        self.row_by_row = isinstance(term.entry, VectorLoss)
        self.compare, self.counted, self.projection = compare, counted, projection

    def count(self, batch: Batch) -> int:
        """What its sum over a batch is divided by."""
        return self.counted(batch.num_soft)

    def forward(self, student_BH: Tensor, teacher_BK: Tensor, batch: Batch) -> Tensor:
        """The sum over the rows of a batch that count."""
        return self.compare(self.projected(student_BH[batch.targets]), teacher_BK[batch.targets]).total

    def projected(self, student_NH: Tensor) -> Tensor:
        """The student's vectors as they are compared, (N, K) where they need the teacher's width."""
        if self.projection is not None:
            student_NH = self.projection(student_NH)
        return student_NH


def make_vector_term(term: Term, student_width: int, teacher_width: int) -> VectorTerm:
    """The loss of an entry. A projection is drawn from torch's generator.

    Raises:
        ValueError: the widths do not fit the loss.
    """
    entry = term.entry
    found = getattr(import_module(f"entrenar_core.losses.{LOSSES[entry.name].home}"), entry.name)
    if isinstance(entry, VectorLoss):
        kind = entry.projection or ("none" if student_width == teacher_width else "linear")
        projection = make_projection(kind, student_width, teacher_width)
        return VectorTerm(term, found, lambda rows: rows, None if kind == "none" else projection)
    assert isinstance(entry, RelationLoss)
    settings = {"temperature": entry.temperature} if isinstance(entry, SimilarityLoss) else {}
    compare = partial(_between_rows, partial(found, group_size=entry.group_size, **settings))
    return VectorTerm(term, compare, partial(_groups, entry))


def _between_rows(compare: Callable[..., LossSum], student_NH: Tensor, teacher_NK: Tensor) -> LossSum:
    """Relations are written for rows of tokens: here each row is one token, its vector."""
    return compare(student_NH.unsqueeze(1), teacher_NK.unsqueeze(1), _one_token(len(student_NH)), pool="first")


def _groups(entry: RelationLoss, rows: int) -> int:
    return count_groups(_one_token(rows), entry.group_size, LEAST[entry.name])


def _one_token(rows: int) -> Tensor:
    return torch.ones(rows, 1, dtype=torch.bool)
