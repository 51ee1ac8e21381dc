"""How a written adapter looks in a terminal."""

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.units import count, percent, size
from entrenar_lora.reports.extract import AdapterReport, LeftOut

_SHOWN = 12


def extract(report: AdapterReport) -> list[Block]:
    """What was kept of the change, and then what differs and is not in the adapter."""
    low, high = report.ranks
    worst = report.worst
    facts: dict[str, Cell | None] = {
        "From": ", ".join(report.sources),
        "Output": str(report.output),
        "Size": Amount(report.size_bytes, size(report.size_bytes)),
        "Modules": len(report.modules),
        "Rank": low if low == high else f"{low} to {high}",
        "Parameters": Amount(report.parameters, count(report.parameters)),
        "Energy kept": percent(report.kept, 2),
        "Least in": f"{worst.module} ({percent(worst.kept, 2)})" if worst is not None and worst.kept < 1 else None,
        "Held whole": ", ".join(report.saved) or None,
        "Unchanged modules": report.unchanged or None,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    notes = [f"! {note}" for note in report.notes]
    if report.randomised:
        notes.append(
            f"{report.randomised} of {len(report.modules)} matrices were looked at through random directions; the "
            "energy is what these kept"
        )
    blocks: list[Block] = [key_values(f"Adapter written to {report.output}", known, tuple(notes))]
    if report.left_out:
        blocks.append(_left_out(report))
    return blocks


def _left_out(report: AdapterReport) -> Table:
    ordered = sorted(report.left_out, key=lambda one: -(float("inf") if one.relative is None else one.relative))
    more = len(ordered) - _SHOWN
    return Table(
        "Differs, and is not in the adapter",
        ("tensor", Column("values", "right"), Column("change", "right"), "why"),
        tuple(_row(one) for one in ordered[:_SHOWN]),
        (f"and {more} more: --json has all",) if more > 0 else (),
    )


def _row(one: LeftOut) -> tuple[Cell, ...]:
    change = None if one.relative is None else Amount(one.relative, percent(one.relative, 2))
    return one.name, Amount(one.values, count(one.values)), change, one.reason
