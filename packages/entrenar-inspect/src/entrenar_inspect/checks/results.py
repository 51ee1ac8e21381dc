"""The results of checks, from what they found."""

from collections.abc import Sequence

from entrenar_inspect.reports.validation import Check

SHOWN = 20
"""Findings of one check that are told one by one; of more, their number."""


def ok(name: str, message: str) -> Check:
    return Check(name, "ok", message)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", why)


def failed(name: str, message: str, findings: Sequence[str] = ()) -> Check:
    return Check(name, "failed", message, _first(findings))


def warned(name: str, message: str, findings: Sequence[str] = ()) -> Check:
    return Check(name, "warning", message, _first(findings))


def found(name: str, findings: Sequence[str], *, fine: str, wrong: str = "failed") -> Check:
    """A check that is fine without findings; with one, that is its message."""
    if not findings:
        return ok(name, fine)
    make = failed if wrong == "failed" else warned
    return make(name, findings[0]) if len(findings) == 1 else make(name, f"{len(findings):,} findings", findings)


def _first(findings: Sequence[str]) -> tuple[str, ...]:
    more = (f"and {len(findings) - SHOWN:,} more",) if len(findings) > SHOWN else ()
    return (*findings[:SHOWN], *more)
