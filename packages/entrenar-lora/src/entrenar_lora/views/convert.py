"""How `convert` looks."""

from collections.abc import Sequence

from entrenar_common.tables import Amount, Cell, Table, key_values
from entrenar_core.units import count, moved, size
from entrenar_lora.reports.convert import AdapterConversion


def conversion(report: AdapterConversion) -> Table:
    """What was written, and what had to be changed for it."""
    facts: dict[str, Cell] = {
        "From": f"{report.source} ({report.source_format})",
        "To": f"{report.output} ({report.form})",
        "Files": ", ".join(report.files),
        "Size": Amount(report.size_bytes, size(report.size_bytes)),
        "Tensors": report.tensors,
        "Parameters": Amount(report.parameters, f"{report.parameters:,} ({count(report.parameters)})"),
    }
    if report.cast:
        facts["Cast"] = report.cast
    if report.relative_rms is not None:
        facts["Rounding moved"] = f"{moved(report.relative_rms)} of the values that changed (root mean square)"
    if report.folded:
        facts["Scale folded into B"] = f"{report.folded} modules"
    return key_values(f"Written to {report.output}", facts, tuple(f"! {note}" for note in report.notes))


def quiet(report: AdapterConversion) -> Sequence[str]:
    """The output."""
    return [str(report.output)]
