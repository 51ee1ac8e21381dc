"""`losses`: what a student can be trained with."""

from entrenar_core.losses.table import DIVERGENCES
from entrenar_distill.reports import Loss, LossTable


def list_losses() -> LossTable:
    """The table of the library, without loading what computes them."""
    rows = (
        Loss(row.name, row.formula, dict(row.parameters), "logits of teacher and student", row.source)
        for row in DIVERGENCES.values()
    )
    return LossTable(tuple(rows))
