"""What `validate` returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. A `warning` fails a strict validation; `skipped` says why it was not looked at.

    `details` are single findings, of which `message` is the sum.
    """

    name: str
    status: Literal["ok", "failed", "warning", "skipped"]
    message: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was checked of a model, and whether it is sound."""

    name: str
    format: str | None
    strict: bool
    checks: tuple[Check, ...]
    checksums: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether nothing failed; and nothing is to be warned of, where that is asked for."""
        wrong = ("failed", "warning") if self.strict else ("failed",)
        return not any(check.status in wrong for check in self.checks)

    @property
    def exit_status(self) -> int:
        return int(not self.sound)
