"""A table, and its three forms: coloured for a terminal, aligned text for a pipe, tab-separated for a script."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from entrenar_common.styles import MARKS, STYLES, cell_width, printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_GAP = "   "


@dataclass(frozen=True, slots=True)
class Amount:
    """A number that a reader is shown in other words: 8,200 as `8.2 kB`. A script gets the number."""

    value: int | float
    text: str


Cell = str | int | float | Amount | None
"""Numbers are grouped and right-aligned for a reader and exact in compact output; None is something unknown."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading. Without `align`, numbers go to the right and all else to the left."""

    title: str
    align: Literal["left", "right"] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. A column may be given by its title alone; titles that are all empty are not shown."""

    title: str
    columns: tuple[Column | str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{len(row)} cells for {len(self.columns)} columns: {row}"

    @property
    def headings(self) -> tuple[Column, ...]:
        """The columns, each with its alignment settled."""
        return tuple(self._settled(index, column) for index, column in enumerate(self.columns))

    def _settled(self, index: int, column: Column | str) -> Column:
        column = Column(column) if isinstance(column, str) else column
        cells = [row[index] for row in self.rows if row[index] is not None]
        numbers = bool(cells) and all(isinstance(cell, int | float | Amount) for cell in cells)
        return Column(printable(column.title), column.align or ("right" if numbers else "left"))


def key_values(title: str, mapping: Mapping[str, Cell], notes: tuple[str, ...] = ()) -> Table:
    """One thing and its properties: a table of two columns without headings, both to the left."""
    return Table(title, (Column("", "left"), Column("", "left")), tuple(mapping.items()), notes)


def human(cell: Cell) -> str:
    """A cell for a reader: `1,234`, `0.6012`, `yes`, `-` for None."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1000 <= abs(cell) < 1e15 else f"{cell:.4g}"
    return printable(cell.text if isinstance(cell, Amount) else cell)


def exact(cell: Cell) -> str:
    """A cell for a script: numbers in full, `true`, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, Amount):
        return str(cell.value)
    return str(cell).lower() if isinstance(cell, bool) else printable(str(cell))


def compact_lines(table: Table) -> list[str]:
    """One line per row, cells separated by tabs; no title, headings or notes."""
    return ["\t".join(map(exact, row)) for row in table.rows]


def plain(table: Table) -> str:
    """Aligned text of any width: what is piped is never cut."""
    headings = table.headings
    rows = [[human(cell) for cell in row] for row in table.rows]
    titles = [column.title for column in headings]
    widths = [max(map(cell_width, cells)) for cells in zip(titles, *rows, strict=True)]
    rule = ["─" * (sum(widths) + len(_GAP) * (len(widths) - 1))]
    lines = [_aligned(cells, widths, headings) for cells in rows]
    if any(titles):
        lines = [_aligned(titles, widths, headings), *rule, *lines]
    return "\n".join([*_title(table), *(f"  {line}".rstrip() for line in lines), *_notes(table)])


def for_terminal(table: Table, width: int, colour: bool) -> str:
    """The same layout for a terminal of a width: long cells are folded instead of running over."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(
        width=width,
        force_terminal=True,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as capture:
        for line in _title(table):
            console.print(Text(line, STYLES["title"]))
        console.print(Padding(_rich(table), (0, 0, 0, 2), expand=False))
        for line in _notes(table):
            console.print(Padding(Text(line.strip(), STYLES["muted"]), (0, 0, 0, 2)))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _rich(table: Table) -> "RichTable":
    from rich.box import Box
    from rich.table import Table as RichTable
    from rich.text import Text

    headings = table.headings
    headed = any(column.title for column in headings)
    rich_table = RichTable(
        box=Box("    \n    \n ── \n    \n    \n    \n    \n    \n"),
        border_style=STYLES["rule"],
        header_style="",
        show_header=headed,
        show_edge=False,
        pad_edge=False,
    )
    for index, column in enumerate(headings):
        whole = column.align == "right"  # a number is not broken over lines while words can be
        rich_table.add_column(
            Text(column.title, STYLES["header"]),
            justify=column.align or "left",
            overflow="fold",
            min_width=max(cell_width(human(row[index])) for row in table.rows) if whole and table.rows else None,
        )
    for row in table.rows:
        labelled = not headed and len(row) == 2
        cells = [human(cell) for cell in row]
        styles = [_style(cell) or (STYLES["label"] if labelled and i == 0 else "") for i, cell in enumerate(cells)]
        rich_table.add_row(*(Text(cell, style) for cell, style in zip(cells, styles, strict=True)))
    return rich_table


def _style(cell: str) -> str:
    """The colour of a mark (`✓ ok`) for the whole cell."""
    return STYLES[MARKS[cell[0]]] if cell[:1] in MARKS else ""


def _aligned(cells: list[str], widths: list[int], headings: tuple[Column, ...]) -> str:
    padding = [" " * (width - cell_width(cell)) for cell, width in zip(cells, widths, strict=True)]
    return _GAP.join(
        pad + cell if column.align == "right" else cell + pad
        for cell, pad, column in zip(cells, padding, headings, strict=True)
    )


def _title(table: Table) -> list[str]:
    return [printable(table.title), ""] if table.title else []


def _notes(table: Table) -> list[str]:
    return ["", *(f"  {printable(note)}" for note in table.notes)] if table.notes else []
