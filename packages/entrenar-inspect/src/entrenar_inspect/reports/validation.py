"""What `validate` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """What was checked of a model. It is `sound` where nothing failed, and, where that is asked for, nothing is to be
    warned of.
    """

    name: str
    format: str | None
    strict: bool
    checks: tuple[Check, ...]
    checksums: Mapping[str, str]
    sound: bool = field(init=False)

    def __post_init__(self) -> None:
        wrong = ("failed", "warning") if self.strict else ("failed",)
        object.__setattr__(self, "sound", not any(check.status in wrong for check in self.checks))

    @property
    def exit_status(self) -> int:
        return int(not self.sound)
