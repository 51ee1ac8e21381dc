"""How a validation looks: a list of checks, each with its mark, and their findings below."""

from entrenar_common.output import Block
from entrenar_common.tables import Table
from entrenar_inspect.reports.validation import Check, ValidationReport

_MARKS = {"ok": "✓", "failed": "✗", "warning": "!", "skipped": "–"}


def validation(report: ValidationReport) -> list[Block]:
    """The checks, then the findings of those that are not fine."""
    unseen = sum(check.status == "skipped" for check in report.checks)
    strictly = ", strictly" if report.strict else ""
    verdict = f"is {'sound' if report.sound else 'not sound'}{strictly}"
    if report.sound and unseen:
        verdict += ", as far as was looked at"
    rows = tuple((_marked(check), check.message) for check in report.checks)
    blocks: list[Block] = [Table(f"{report.name} {verdict}", ("", ""), rows)]
    blocks += [
        Table(f"Findings: {check.name}", ("",), tuple((line,) for line in check.details))
        for check in report.checks
        if check.details
    ]
    if report.checksums:
        blocks.append(Table("SHA-256", ("", ""), tuple((digest, name) for name, digest in report.checksums.items())))
    return blocks


def _marked(check: Check) -> str:
    return f"{_MARKS[check.status]} {check.name}"
