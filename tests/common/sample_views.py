"""How the sample program's reports look. Imported only when there is one to show."""

from sample_program import Checked, Rows, Weighed

from entrenar_common.output import Blocks, View
from entrenar_common.plots import Plot
from entrenar_common.tables import Table, key_values
from entrenar_core.units import size


def weighed(report: Weighed) -> Blocks:
    properties = {"Kind": report.kind.value, "File size": size(report.file_bytes), "Every layer": report.every_layer}
    return (
        key_values(f"Model: {report.name}", properties),
        Plot("Loss", {"train": [(0, 2.0), (1, 1.0)]}, "step", "nats"),
        "✓ it weighs something",
    )


def rows(report: Rows) -> Table:
    return Table("Rows", ("number", "square"), tuple((i, i * i) for i in range(report.number)))


VIEWS = {
    Weighed: View(weighed, quiet=lambda report: [str(report.folder)]),
    Checked: lambda report: f"{report.mistakes} mistakes",
    Rows: rows,
}
