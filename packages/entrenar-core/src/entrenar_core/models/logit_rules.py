"""What losses of logits must hold against the number of tokens or classes; without torch, as layer_rules.py."""

import math
from collections.abc import Iterator

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import SoftLoss
from entrenar_core.config.wording import dotted
from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import Problem

_LOWER = "lower or remove it"


def selects(section: DistillationSection) -> bool:
    """Whether a loss looks at some of the tokens or classes, or of the rows, alone, as `check_logits` checks."""
    return any(entry.entropy_threshold is not None or "top_k" in entry.model_fields_set for entry, _ in _soft(section))


def check_logits(section: DistillationSection, columns: int, what: str) -> list[Problem]:
    """Settings that leave a loss nothing to select from.

    Args:
        section: whose losses.
        columns: of the logits that are compared.
        what: they stand for: "tokens" or "classes".
    """
    return [*check_top_k(section, columns, what), *check_thresholds(section, columns, what)]


def check_top_k(section: DistillationSection, columns: int, what: str) -> Iterator[Problem]:
    """A `top_k` that leaves nothing out; arguments as `check_logits`."""
    for entry, path in _soft(section):
        top_k = getattr(entry, "top_k", None)
        if "top_k" in entry.model_fields_set and top_k is not None and top_k > columns:
            where = dotted((*path, "top_k"))
            yield Problem(f"`{where}` {top_k:,} is more than there are {what}: {columns:,}", _LOWER, where)


def check_thresholds(section: DistillationSection, columns: int, what: str) -> Iterator[Problem]:
    """An `entropy_threshold` that no distribution reaches; arguments as `check_logits`."""
    most = math.log(columns)
    for entry, path in _soft(section):
        threshold = entry.entropy_threshold
        if threshold is not None and threshold >= most:
            where = dotted((*path, "entropy_threshold"))
            message = (
                f"`{where}` {threshold:g} lets nothing through: of {columns:,} {what} no entropy is above {most:.4g}"
            )
            yield Problem(message, _LOWER, where)


def _soft(section: DistillationSection) -> Iterator[tuple[SoftLoss, Path]]:
    """The losses of logits, each with where its settings are."""
    for term in terms_of(section):
        if isinstance(term.entry, SoftLoss):
            yield term.entry, term.path if "losses" in term.path else ("distillation",)
