"""A plot shows where the data is, says what it leaves out, and works for any numbers."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from entrenar_common.plots import Plot, Point, compact_lines, line_plot

ESCAPE = "\x1b["


def body(text: str) -> list[str]:
    """The drawing, without title, axes and labels."""
    return [re.split("[┤│]", line)[1] for line in text.splitlines() if re.search("[┤│]", line)]


def labels(text: str) -> list[float]:
    return [float(line.split("┤")[0]) for line in text.splitlines() if "┤" in line]


def plot(*points: Point, **others: list[Point]) -> str:
    return line_plot({"loss": list(points), **others}, "Loss", "step", "nats", width=60, height=8)


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    text = plot((0, 1.0), (100, 5.0))
    drawing = body(text)
    assert text.startswith("Loss\n\n  nats\n")
    assert text.splitlines()[-1].strip() == "step"
    assert drawing[-1].startswith("⣀")
    assert len(drawing[0]) == max(map(len, drawing)) > 40
    starts = [len(line) - len(line.lstrip()) for line in drawing]
    assert starts == sorted(starts, reverse=True)


def test_axes_span_the_data_and_do_not_begin_at_zero_by_themselves() -> None:
    text = plot((1000, 2.1), (2000, 2.9))
    assert labels(text) == sorted(labels(text), reverse=True)
    assert all(2.1 <= label <= 2.9 for label in labels(text))
    numbers = text.splitlines()[-2].split()
    assert float(numbers[0]) == 1000
    assert float(numbers[-1]) == 2000


@pytest.mark.parametrize("last", [1, 2, 3, 7, 40])
def test_what_is_counted_has_ticks_at_whole_numbers(last: int) -> None:
    numbers = plot(*((step, 1 / (step + 1)) for step in range(last + 1))).splitlines()[-2].split()
    assert all(number.isdecimal() for number in numbers)
    assert (numbers[0], len(set(numbers))) == ("0", len(numbers))
    halves = plot((0, 1.0), (0.5, 2.0), (1, 3.0)).splitlines()[-2].split()
    assert any("." in number for number in halves)


def test_one_point_is_seen() -> None:
    assert sum(line.count("●") for line in body(plot((3, 7.25)))) == 1


def test_a_constant_series_is_a_level_line_in_the_middle() -> None:
    drawing = body(plot(*((i, 0.6) for i in range(10))))
    drawn = [index for index, line in enumerate(drawing) if line.strip()]
    assert len(drawn) == 1
    assert drawn[0] in (3, 4)


def test_points_that_are_not_finite_are_left_out_and_counted() -> None:
    text = plot((0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0), other=[(math.nan, 1.0)])
    assert "2 points of loss left out: not finite" in text
    assert "1 point of other left out: not finite" in text


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)]])
def test_no_point_at_all_is_said(points: list[Point]) -> None:
    assert "no points to plot" in plot(*points)


def test_several_series_are_told_apart_without_colour() -> None:
    text = plot((0, 1.0), (1, 2.0), evaluation=[(0, 3.0), (1, 4.0)])
    assert "● loss   ▲ evaluation" in text
    assert any("●" in line for line in body(text))
    assert any("▲" in line for line in body(text))


def test_colour_only_when_asked() -> None:
    series = {"a": [(0.0, 1.0), (1.0, 2.0)], "b": [(0.0, 2.0), (1.0, 1.0)]}
    assert ESCAPE not in line_plot(series, "t", "x", "y")
    assert ESCAPE in line_plot(series, "t", "x", "y", colour=True)


def test_names_cannot_steer_the_terminal() -> None:
    text = line_plot({"\x1b[31ma": [(0, 1)], "b": [(0, 1)]}, "\x1b[2J", "\x07", "\n")
    assert text.replace("\n", "").isprintable()


def test_a_spike_among_many_points_is_still_drawn() -> None:
    points = [(float(i), 0.0) for i in range(50_000)]
    points[31_234] = (31_234.0, 1.0)
    assert body(plot(*points))[0].strip()


@example([(3, -1.7e308), (4, 1.7e308)], 80)
@example([(0, 0.0), (1, 5e-324)], 80)
@example([(0, 1.0), (1, 1 + 1e-12)], 80)
@example([(0, 1.7e308)], 80)
@example([(0, 0.0), (1, 1e-310)], 80)
@example([(0, 1.0), (1, math.nextafter(1, 2))], 80)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30), st.integers(50, 120))
def test_any_numbers_give_a_plot_that_fits(points: list[Point], width: int) -> None:
    text = line_plot({"loss": points}, "Loss", "step", "nats", width=width, height=8)
    assert max(map(len, text.splitlines())) <= width
    assert len(set(labels(text))) == len(labels(text)), "two ticks with one label"


def test_a_script_gets_the_points() -> None:
    assert compact_lines(Plot("t", {"a": [(0, 1.5)], "b\t": [(1, 2.0)]}, "x", "y")) == ["a\t0\t1.5", "b\\t\t1\t2.0"]
