"""`losses`: what a student can be trained with."""

from entrenar_core.config.losses import settings_of
from entrenar_core.losses.table import LOSSES
from entrenar_distill.reports import Loss, LossTable


def list_losses() -> LossTable:
    """The table of the library, without loading what computes them."""
    rows = (
        Loss(row.name, row.family, row.formula, dict(settings_of(row.name)), row.needs, row.scope, row.source)
        for row in LOSSES.values()
    )
    return LossTable(tuple(rows))
