"""How a calibration looks: what memory is taken beside models, and what the machine does in a second."""

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.units import count, size
from entrenar_inspect.reports.calibration import CalibrationReport, RateRow

_KINDS = {
    "training": "training, forward and backward",
    "update": "training, optimiser (AdamW)",
    "reading": "forward pass",
    "decoding": "writing a token",
}


def calibration(report: CalibrationReport) -> list[Block]:
    """The machine, and below it a line for each thing that was timed."""
    facts: dict[str, Cell | None] = {
        "Device": report.device,
        "torch": report.torch_version,
        "Threads": report.threads,
        "Measured": report.measured_at,
        "Process": Amount(report.process_bytes, size(report.process_bytes)),
        "Allocator rounds to": _size(report.rounding_bytes),
        "Workspace": _size(report.workspace_bytes),
        "Kept in": str(report.file),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    rates = Table(
        "Rates, the median of some rounds",
        ("", "precision", "model", Column("per second", "right"), Column("slowest", "right"),
         Column("fastest", "right"), Column("rounds", "right")),
        tuple(_row(rate) for rate in report.rates),
        ("operations are counted as predictions of time count them: products of matrices, and attention",),
    )  # fmt: skip
    return [key_values(report.name, known, tuple(f"! {note}" for note in report.notes)), rates]


def _size(size_bytes: int | None) -> Amount | None:
    return None if size_bytes is None else Amount(size_bytes, size(size_bytes))


def _row(rate: RateRow) -> tuple[Cell, ...]:
    values = rate.per_second, rate.slowest_per_second, rate.fastest_per_second
    amounts = (Amount(value, _rate(value, rate.unit)) for value in values)
    return _KINDS[rate.kind], rate.precision, rate.model, *amounts, rate.rounds


def _rate(per_second: float, unit: str) -> str:
    """`104 GFLOP`, `12 GB` or `1.2B parameters`."""
    if unit == "bytes":
        return size(per_second)
    if unit == "FLOP":
        return size(per_second).replace("kB", "KB").removesuffix("B") + "FLOP"
    return f"{count(per_second)} {unit}"
