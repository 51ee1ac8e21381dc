"""What the commands return. Standard library only, so that it imports in no time."""

from dataclasses import dataclass
from typing import Any, Literal

from entrenar_core.reports import Plan, RunReport

__all__ = ["Check", "Loss", "LossTable", "Plan", "RunReport", "ValidationReport"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `skipped` says in its detail why it could not be."""

    name: str
    status: Literal["ok", "skipped"]
    detail: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """A configuration without a mistake, and how far that could be known."""

    config: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that a student can be trained with: an entry of `distillation.losses`, and its settings by default.

    `needs` is what both models must give; `scope` what may not be cut: tokens, sequences, or groups of rows.
    """

    name: str
    family: str
    formula: str
    settings: dict[str, Any]
    needs: str
    scope: str
    source: str


@dataclass(frozen=True, slots=True)
class LossTable:
    """All losses."""

    losses: tuple[Loss, ...]
