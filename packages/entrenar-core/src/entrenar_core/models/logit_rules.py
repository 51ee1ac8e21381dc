"""What losses of logits must hold against the number of tokens or classes; without torch, as layer_rules.py."""

import math
from collections.abc import Iterator

from entrenar_core.config.desugaring import Term, terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import SoftLoss
from entrenar_core.config.wording import dotted
from entrenar_core.errors import Problem


def selects(section: DistillationSection) -> bool:
    """Whether a loss looks at some of the tokens or classes, or of the rows, alone, as `check_logits` checks."""
    return any(
        entry.entropy_threshold is not None or "top_k" in entry.model_fields_set
        for entry in (term.entry for term in terms_of(section))
        if isinstance(entry, SoftLoss)
    )


def check_logits(section: DistillationSection, columns: int, what: str) -> list[Problem]:
    """Settings that leave a loss nothing to select from.

    Args:
        section: whose losses.
        columns: of the logits that are compared.
        what: they stand for: "tokens" or "classes".
    """
    return [problem for term in terms_of(section) for problem in _problems(term, columns, what)]


def _problems(term: Term, columns: int, what: str) -> Iterator[Problem]:
    entry = term.entry
    if not isinstance(entry, SoftLoss):
        return
    path = term.path if "losses" in term.path else ("distillation",)
    top_k, threshold = getattr(entry, "top_k", None), entry.entropy_threshold
    if "top_k" in entry.model_fields_set and top_k is not None and top_k > columns:
        where = dotted((*path, "top_k"))
        yield Problem(f"`{where}` {top_k:,} is more than there are {what}: {columns:,}", "lower or remove it", where)
    most = math.log(columns)
    if threshold is not None and threshold >= most:
        where = dotted((*path, "entropy_threshold"))
        message = f"`{where}` {threshold:g} lets nothing through: of {columns:,} {what} no entropy is above {most:.4g}"
        yield Problem(message, "lower or remove it", where)
