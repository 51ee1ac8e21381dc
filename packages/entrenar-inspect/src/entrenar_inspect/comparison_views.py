"""How a comparison looks: what changed, then how far values moved."""

from entrenar_common.output import Block
from entrenar_common.tables import Cell, Column, Table
from entrenar_core.units import count, percent
from entrenar_inspect.reports.comparison import Change, Comparison, ModuleDifference, TensorDifference

_SIGNS = {"added": "+", "removed": "-", "renamed": "→", "reshaped": "~", "retyped": "~"}
_MOST = 200
"""Changes that are shown; JSON has them all."""


def comparison(report: Comparison) -> list[Block]:
    """The changes of structure, and a table of differences where values were compared."""
    blocks: list[Block] = [_changes(report)]
    if report.modules:
        blocks.append(_modules(report))
    if report.tensors:
        blocks.append(_tensors(report))
    return blocks


def _changes(report: Comparison) -> Table:
    shown = report.changes[:_MOST]
    more = len(report.changes) - len(shown)
    notes = (
        f"{report.in_common:,} tensors are in both, in one shape",
        *((f"{more:,} more changes; --json has them all",) if more else ()),
        *((_values(report),) if report.beyond is not None else ()),
        *report.notes,
    )
    rows: list[tuple[Cell, ...]] = [
        (_SIGNS[change.kind], change.name, change.kind, _detail(change)) for change in shown
    ] or [("=", "names, shapes and dtypes", "the same", "")]
    return Table(f"From {report.first} to {report.second}", ("", "", "", ""), tuple(rows), notes)


def _values(report: Comparison) -> str:
    within = f"differ by more than {report.tolerance:g}" if report.tolerance else "differ"
    return f"the values of {report.beyond:,} of them {within}"


def _detail(change: Change) -> str:
    if change.kind == "renamed":
        return str(change.now)
    if change.kind == "reshaped":
        assert isinstance(change.now, tuple)
        return f"{_shape(change.shape)} → {_shape(change.now)}"
    if change.kind == "retyped":
        return f"{change.now}, {count(change.parameters or 0)} parameters"
    shape = f"{_shape(change.shape)}, " if change.shape is not None else ""
    return f"{shape}{count(change.parameters or 0)} parameters"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "[" + ",".join(map(str, shape or ())) + "]"


_COLUMNS = (Column("largest", "right"), Column("mean", "right"), Column("cosine", "right"))


def _modules(report: Comparison) -> Table:
    rows = tuple((row.name, f"{row.beyond} of {row.tensors}", *_moved(row)) for row in report.modules)
    return Table("Values", ("layer", Column("differ", "right"), *_COLUMNS), rows, _MEANING)


def _tensors(report: Comparison) -> Table:
    rows = tuple((row.name, percent(row.changed), *_moved(row)) for row in report.tensors)
    return Table("Values", ("tensor", Column("changed", "right"), *_COLUMNS), rows, _MEANING)


_MEANING = (
    "largest and mean of the absolute differences, and the cosine of the least like tensor; of what is finite on both "
    "sides",
)


def _moved(row: ModuleDifference | TensorDifference) -> tuple[Cell, ...]:
    broken = row.non_finite if isinstance(row, ModuleDifference) else row.non_finite_differ
    largest = "NaN or infinite" if broken else f"{row.max_abs:.3g}"
    return largest, f"{row.mean_abs:.3g}", None if row.cosine is None else f"{row.cosine:.6f}"
