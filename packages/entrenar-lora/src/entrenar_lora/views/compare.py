"""How `compare` looks: a line for each method, and what was published of it below."""

from collections.abc import Iterator, Mapping

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table
from entrenar_core.units import count, percent, size
from entrenar_lora.reports.compare import CompareReport, MethodRow


def comparison(report: CompareReport) -> list[Block]:
    """The methods, and what others measured."""
    asked = f"{report.batch_size:,} rows of {report.sequence_length:,} tokens in {report.precision} on {report.device}"
    limited = report.limit_bytes is not None
    found = dict.fromkeys((one.setting, one.source) for row in report.rows for one in row.published)
    places = {setting: place for place, (setting, _) in enumerate(found, 1)}
    table = Table(
        f"Methods for {report.model}: {asked}",
        ("method", Column("memory", "right"), *(("fits",) if limited else ()), Column("trains", "right"),
         Column("share", "right"), Column("speed", "right"), "published"),
        tuple(_row(row, places, limited=limited) for row in report.rows),
        tuple(_notes(report)),
    )  # fmt: skip
    if not found:
        return [table]
    sources = tuple((f"[{places[setting]}]", setting, source) for setting, source in found)
    return [table, Table("What was published, for other data than yours", ("", "of", "source"), sources)]


def _row(row: MethodRow, places: Mapping[str, int], *, limited: bool) -> tuple[Cell, ...]:
    if row.needed_bytes is None:
        return (row.name, None, *((None,) if limited else ()), None, None, None, f"not for this model: {row.why_not}")
    speed = row.speed
    times = None if speed is None or speed.times is None else Amount(speed.times, f"{speed.times:.2f}x")
    trained = row.trainable_parameters or 0
    return (
        row.name,
        Amount(row.needed_bytes, size(row.needed_bytes)),
        *((row.fits,) if limited else ()),
        Amount(trained, count(trained)),
        None if row.share is None else Amount(row.share, percent(row.share, 2)),
        times,
        "; ".join(f"[{places[one.setting]}] {one.value}" for one in row.published) or None,
    )


def _notes(report: CompareReport) -> Iterator[str]:
    if report.note is not None:
        yield report.note
    yield from (f"{row.name}: {row.what}" for row in report.rows if row.needed_bytes is not None)
    yield f"memory: predicted peak with {size(report.process_bytes)} of the process"
    how = dict.fromkeys(row.speed.how for row in report.rows if row.speed is not None)
    yield from (f"speed beside full training: {one}" for one in how)
    if report.limit_bytes is not None:
        yield f"to fit: {size(report.limit_bytes)}, {report.machine}"
    yield "quality is not computed: published figures are those of their authors"
