"""How a comparison looks: what changed, in tensors, settings and tokenizer, then how far values moved."""

import json
from collections.abc import Iterator
from typing import Any

from entrenar_common.output import Block
from entrenar_common.tables import Cell, Column, Table
from entrenar_core.units import count, percent
from entrenar_inspect.reports.comparison import (
    Change,
    Comparison,
    ModuleDifference,
    SettingChange,
    TensorDifference,
    TokenizerDifference,
)

_SIGNS = {"added": "+", "removed": "-", "renamed": "→", "reshaped": "~", "retyped": "~", "changed": "~"}
_MOST, _MOST_SETTINGS = 200, 40
"""Changes that are shown; JSON has them all."""
_LONGEST = 32


def comparison(report: Comparison) -> list[Block]:
    """The changes of structure and settings, and tables of differences where values were compared."""
    blocks: list[Block] = [_changes(report), *_settings(report.settings)]
    if report.tokenizer is not None:
        blocks.append(_tokenizer(report.tokenizer))
    if any(map(_is_moved, report.modules)):
        blocks.append(_modules(report))
    if any(map(_is_moved, report.tensors)):
        blocks.append(_tensors("Values", report.tensors))
    shown = len([row for row in report.tensors if _is_moved(row)])
    if len(report.furthest) > 1 and not 0 < shown <= len(report.furthest):
        blocks.append(_tensors("Moved furthest for their size", report.furthest))
    return blocks


def _changes(report: Comparison) -> Table:
    shown = report.changes[:_MOST]
    more = len(report.changes) - len(shown)
    notes = (
        f"{report.in_common:,} tensors are in both, in one shape",
        *((f"{more:,} more changes; --json has them all",) if more else ()),
        *((_values(report),) if report.beyond is not None and report.in_common else ()),
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
        return f"{change.now}: {change.tensors:,} tensors" if change.tensors > 1 else str(change.now)
    if change.kind == "reshaped":
        assert isinstance(change.now, tuple)
        return f"{_shape(change.shape)} → {_shape(change.now)}"
    if change.kind == "retyped":
        return f"{change.now}, {count(change.parameters or 0)} parameters"
    shape = f"{_shape(change.shape)}, " if change.shape is not None else ""
    return f"{shape}{count(change.parameters or 0)} parameters"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "[" + ",".join(map(str, shape or ())) + "]"


def _settings(changes: tuple[SettingChange, ...]) -> Iterator[Table]:
    for file in dict.fromkeys(change.file for change in changes):
        inside = [change for change in changes if change.file == file]
        rows = tuple((_SIGNS[change.kind], change.key or file, _setting(change)) for change in inside[:_MOST_SETTINGS])
        more = len(inside) - len(rows)
        notes = (f"{more:,} more; --json has them all",) if more else ()
        yield Table(f"Changes of {file}", ("", "", ""), rows, notes)


def _setting(change: SettingChange) -> str:
    if change.key is None and change.kind == "changed":
        return "cannot be read, and was not compared"
    if change.key is None:
        return f"the {'second' if change.kind == 'added' else 'first'} alone has it"
    sides = {"changed": (change.old, change.new), "added": (change.new,), "removed": (change.old,)}[change.kind]
    return " → ".join(map(_short, sides))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _tokenizer(found: TokenizerDifference) -> Table:
    rows = [("~", file, "differs") for file in found.files]
    if found.chat_template:
        rows.append(("~", "chat template", "differs"))
    told = ((found.added, "added"), (found.removed, "removed"), (found.moved, "with another id"))
    tokens = ", ".join(f"{number:,} {what}" for number, what in told if number)
    if tokens:
        rows.append(("~", "tokens", tokens))
    notes = () if found.added is not None else ("tokens were not compared",)
    return Table("Changes of the tokenizer", ("", "", ""), tuple(rows), notes)


_COLUMNS = tuple(Column(title, "right") for title in ("relative", "largest", "mean", "cosine"))
_MEANING = (
    "relative is the norm of the difference over that of the first; largest and mean of absolute differences, and the "
    "cosine of the least like tensor: of what is finite on both sides",
)


def _modules(report: Comparison) -> Table:
    shown = [row for row in report.modules if _is_moved(row)]
    rows = tuple((row.name, f"{row.beyond} of {row.tensors}", *_moved(row)) for row in shown)
    notes = (*_same(len(report.modules) - len(shown), "module"), *_MEANING)
    return Table("Values", ("layer", Column("differ", "right"), *_COLUMNS), rows, notes)


def _tensors(title: str, tensors: tuple[TensorDifference, ...]) -> Table:
    shown = [row for row in tensors if _is_moved(row)]
    rows = tuple((row.name, percent(row.changed), *_moved(row)) for row in shown)
    same = tuple(_same(len(tensors) - len(shown), "tensor"))
    return Table(
        title,
        ("tensor", Column("changed", "right"), *_COLUMNS),
        rows,
        (*same, *_MEANING) if title == "Values" else (),
    )


def _is_moved(row: ModuleDifference | TensorDifference) -> bool:
    if isinstance(row, ModuleDifference):
        return row.moved > 0
    return row.max_abs > 0 or row.non_finite_differ


def _same(number: int, what: str) -> Iterator[str]:
    if number:
        yield f"{number:,} other {what}{' has' if number == 1 else 's have'} the same values"


def _moved(row: ModuleDifference | TensorDifference) -> tuple[Cell, ...]:
    broken = row.non_finite if isinstance(row, ModuleDifference) else row.non_finite_differ
    return (
        None if row.relative is None else f"{row.relative:.3g}",
        "NaN or inf" if broken else f"{row.max_abs:.3g}",
        f"{row.mean_abs:.3g}",
        None if row.cosine is None else f"{row.cosine:.6f}",
    )
