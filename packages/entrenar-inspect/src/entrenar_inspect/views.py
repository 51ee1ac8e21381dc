"""How the reports look in a terminal."""

from entrenar_common.memory_views import memory
from entrenar_common.output import Block, View, ViewTable
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.memory.report import MemoryReport
from entrenar_core.units import count, moved, size
from entrenar_inspect.calibration_views import calibration
from entrenar_inspect.comparison_views import comparison
from entrenar_inspect.reports.calibration import CalibrationReport
from entrenar_inspect.reports.comparison import Comparison
from entrenar_inspect.reports.conversion import ConversionReport
from entrenar_inspect.reports.layers import LayerRow, LayersReport
from entrenar_inspect.reports.summary import ModelSummary
from entrenar_inspect.reports.validation import ValidationReport
from entrenar_inspect.summary_views import summary
from entrenar_inspect.validation_views import validation
from entrenar_inspect.value_views import value_tables


def layers(report: LayersReport) -> list[Block]:
    """A line for each module or tensor, and the sums below; then what their values are like."""
    title = f"Tensors of {report.name}" if report.by_tensor else f"Layers of {report.name}"
    totals = f"{report.tensors:,} tensors, {report.parameters:,} parameters, {size(report.size_bytes)}"
    matching = f"only what is called like {report.filter}" if report.filter else None
    repeated = any(row.copies > 1 for row in report.rows)
    each = "parameters and bytes of several are those of each" if repeated else None
    what = "tensor" if report.by_tensor else "layer"
    table = Table(
        title,
        (what, Column("", "right"), "shape", "dtype",
         Column("parameters", "right"), Column("bytes", "right")),
        tuple(_layer(row) for row in report.rows),
        tuple(note for note in (totals, each, matching, *report.notes) if note),
    )  # fmt: skip
    return [table, *value_tables(report.rows, what)]


def _layer(row: LayerRow) -> tuple[Cell, ...]:
    shape = " × ".join(f"{length}" for length in row.shape) if row.shape is not None else f"{row.tensors} tensors"
    copies = Amount(row.copies, f"{row.copies} ×" if row.copies > 1 else "")
    parameters, size_bytes = Amount(row.parameters, count(row.parameters)), Amount(row.size_bytes, size(row.size_bytes))
    return row.name, copies, shape or "scalar", ", ".join(row.dtypes), parameters, size_bytes


def conversion(report: ConversionReport) -> Table:
    """What was written, and what had to be changed for it."""
    blocks = ", ".join(f"{number:,} of {name}" for name, number in report.dequantised.items())
    types = sorted(report.types.items(), key=lambda item: -item[1])
    facts: dict[str, Cell | None] = {
        "From": f"{report.source} ({report.source_format})",
        "To": f"{report.output} ({report.format})",
        "Files": ", ".join(report.files) if len(report.files) <= 6 else f"{len(report.files)}",
        "Size": Amount(report.size_bytes, size(report.size_bytes)),
        "Tensors": report.tensors,
        "Quantised to": report.quantization,
        "Types": ", ".join(f"{number:,} {name}" for name, number in types) if report.quantization else None,
        "Bits per weight": None if report.bits_per_weight is None else f"{report.bits_per_weight:.2f}",
        "Copied as they are": report.copied or None,
        "Cast": report.cast or None,
        "Dequantised": blocks or None,
        "Rounding moved": None if not report.relative_rms else _rounding(report),
        "Beside torch": None if report.largest_difference is None else f"{report.largest_difference:.2e} at most",
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return key_values(f"Written to {report.output}", known, tuple(f"! {note}" for note in report.notes))


def _rounding(report: ConversionReport) -> str:
    about = "about " if report.quantization else ""
    return f"{about}{moved(report.relative_rms or 0.0)} of the values that changed (root mean square)"


VIEWS: ViewTable = {
    ModelSummary: summary,
    LayersReport: layers,
    Comparison: View(comparison, quiet=lambda report: [f"{one.kind} {one.name}" for one in report.changes]),
    ValidationReport: validation,
    ConversionReport: View(conversion, quiet=lambda report: [str(report.output)]),
    MemoryReport: memory,
    CalibrationReport: View(calibration, quiet=lambda report: [str(report.file)]),
}
