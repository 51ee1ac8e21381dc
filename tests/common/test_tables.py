"""A table keeps all that it is given, in columns, and nothing in it can steer the terminal."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_common.styles import cell_width
from entrenar_common.tables import Amount, Cell, Column, Table, compact_lines, for_terminal, key_values, plain

RESULTS = Table(
    "Results",
    ("Model", "Parameters", Column("Accuracy", "right"), "Loads"),
    (("teacher, all-MiniLM-L6-v2", 22_713_216, "60.1 %", True), ("student", None, "8.0 %", False)),
    ("On 1,026 held-out rows.",),
)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
TABLES = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        lambda rows: Table("T", tuple(f"column {i}" for i in range(n)), tuple(rows)),
        st.lists(st.tuples(*[CELLS] * n), max_size=5),
    )
)


def test_a_piped_table_is_aligned_and_numbers_stand_to_the_right() -> None:
    assert plain(RESULTS) == (
        "Results\n"
        "\n"
        "  Model                       Parameters   Accuracy   Loads\n"
        "  ─────────────────────────────────────────────────────────\n"
        "  teacher, all-MiniLM-L6-v2   22,713,216     60.1 %     yes\n"
        "  student                              -      8.0 %      no\n"
        "\n"
        "  On 1,026 held-out rows."
    )


def test_a_terminal_shows_the_same_table_in_colour() -> None:
    shown = for_terminal(RESULTS, 80, colour=True)
    assert "\x1b[" in shown
    assert [line.rstrip() for line in ESCAPES.sub("", shown).splitlines()] == plain(RESULTS).splitlines()


def coloured(table: Table) -> list[str]:
    """The lines for a terminal, without rich's colour of the empty line between columns."""
    return for_terminal(table, 80, colour=True).replace("\x1b[2m \x1b[0m", " ").splitlines()


def test_what_a_table_says_beside_its_cells_is_dim_and_its_title_bold() -> None:
    table = Table("Sizes", ("what", "bytes"), (("student", 12),), ("a note",))
    assert coloured(table) == [
        "\x1b[1mSizes\x1b[0m",
        "",
        "  \x1b[2mwhat   \x1b[0m   \x1b[2mbytes\x1b[0m",
        "  \x1b[2m───────────────\x1b[0m",
        "  student      12",
        "",
        "  \x1b[2ma note\x1b[0m",
    ]


def test_the_names_of_properties_have_a_colour_and_the_first_cells_of_other_tables_none() -> None:
    assert coloured(key_values("", {"Layers": 30}, ("a note",))) == [
        "  \x1b[36mLayers\x1b[0m   30",
        "",
        "  \x1b[2ma note\x1b[0m",
    ]
    assert "\x1b[36m" not in for_terminal(Table("", ("a", "b"), (("x", "y"),)), 80, colour=True)
    assert "\x1b[36m" not in for_terminal(Table("", ("", "", ""), (("x", "y", "z"),)), 80, colour=True)


def test_the_environment_does_not_change_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = for_terminal(RESULTS, 80, colour=True)
    for name, value in {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert for_terminal(RESULTS, 80, colour=True) == shown


def test_properties_have_no_headings_and_are_not_aligned_as_numbers() -> None:
    table = key_values("Model", {"Layers": 30, "Precision": "Q4_1", "Bias": None})
    assert plain(table) == "Model\n\n  Layers      30\n  Precision   Q4_1\n  Bias        -"
    assert plain(key_values("", {"Layers": 30, "Heads": 4})) == "  Layers   30\n  Heads    4"


@pytest.mark.parametrize(
    ("cell", "human", "exact"),
    [
        (22_713_216, "22,713,216", "22713216"),
        (0.601234567, "0.6012", "0.601234567"),
        (4210.7, "4,211", "4210.7"),
        (999.96, "1000", "999.96"),
        (1000.4, "1,000", "1000.4"),
        (-1000.0, "-1,000", "-1000.0"),
        (1e15, "1e+15", "1000000000000000.0"),
        (1e-5, "1e-05", "1e-05"),
        (float("nan"), "nan", "nan"),
        (True, "yes", "true"),
        (None, "-", ""),
        (Amount(8_200, "8.2 kB"), "8.2 kB", "8200"),
        ("a\tb\n", "a\\tb\\n", "a\\tb\\n"),
    ],
)
def test_a_cell_is_grouped_for_a_reader_and_exact_for_a_script(cell: Cell, human: str, exact: str) -> None:
    table = Table("", ("name", "value"), (("x", cell),))
    assert plain(table).splitlines()[-1].split(maxsplit=1) == ["x", human]
    assert compact_lines(table) == [f"x\t{exact}"]


def test_markup_and_escape_codes_in_names_are_text() -> None:
    table = key_values("[red]title", {"[bold]key[/]": "\x1b[31mred\x1b]0;title\x07 \u202e:smile:"})
    spelled = "\\x1b[31mred\\x1b]0;title\\x07 \\u202e:smile:"
    for text in (plain(table), for_terminal(table, 80, colour=False), ESCAPES.sub("", for_terminal(table, 80, True))):
        assert "[red]title" in text
        assert "[bold]key[/]" in text
        assert spelled in text


def test_a_mark_gives_its_cell_a_colour_and_survives_without() -> None:
    table = Table("", ("check", "result"), (("loads", "✓ yes"), ("exports", "✗ no")))
    assert "\x1b[32m✓ yes" in for_terminal(table, 80, colour=True)
    assert "\x1b[31m✗ no" in for_terminal(table, 80, colour=True)
    assert "✗ no" in plain(table)


def test_a_long_cell_is_folded_on_a_terminal_and_whole_in_a_pipe() -> None:
    path = "/a/folder" * 20
    table = Table("", ("name", "size", "path"), (("x", 22_713_216, path),))
    shown = for_terminal(table, 60, colour=False)
    assert max(map(len, shown.splitlines())) <= 60
    assert "".join(line.split()[-1] for line in shown.splitlines()[2:]) == path
    assert path in plain(table)


def test_where_room_is_short_words_are_folded_before_numbers() -> None:
    columns = ("model", "parameters", "layers", "examples/s", "steps", "path")
    table = Table("", columns, (("student, distilled", 22_713_216, 1_000_030, 4_210_700, 1_234_567, "/out/student"),))
    shown = for_terminal(table, 70, colour=False)
    assert max(map(len, shown.splitlines())) <= 70
    assert all(number in shown for number in ("22,713,216", "1,000,030", "4,210,700", "1,234,567"))
    assert "student, distilled" not in shown


@given(TABLES, st.integers(60, 200))
def test_no_line_runs_over_the_terminal(table: Table, width: int) -> None:
    lines = for_terminal(table, width, colour=False).splitlines()
    assert all(len(line) <= width for line in lines if line.isascii())


@given(TABLES)
def test_rows_are_lines_whatever_they_hold(table: Table) -> None:
    assert len(compact_lines(table)) == len(table.rows)
    assert all(line.count("\t") == len(table.columns) - 1 for line in compact_lines(table))
    body = plain(table).split("\n")[2:]
    assert len(body) == len(table.rows) + 2, "a heading, a rule, and one line per row"
    assert not {unicodedata.category(character) for line in body for character in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_wide_characters_keep_their_columns() -> None:
    lines = plain(Table("", ("name", "value"), (("模型", "a"), ("café", "b"), ("e\u0301", "c")))).splitlines()
    assert {cell_width(line.rpartition(" ")[0]) for line in lines[2:]} == {8}


def test_a_row_of_another_length_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="2 cells for 1 columns"):
        Table("", ("one",), ((1, 2),))
