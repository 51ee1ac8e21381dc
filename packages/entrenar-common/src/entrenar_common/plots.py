"""A line plot in the characters of a terminal: braille dots (plotille) inside axes with round ticks.

The axes are honest: they span the data and nothing else, they do not start at zero unless the data does, and a
point that is not a finite number is left out and counted below the plot.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from entrenar_common.styles import SERIES, cell_width, paint, printable

Point = tuple[float, float]
_Dot = tuple[int, int]
_DOTS_X, _DOTS_Y = 2, 4  # in one braille character


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines through points, each under a name."""

    title: str
    series: Mapping[str, Sequence[Point]]
    x_label: str
    y_label: str


@dataclass(frozen=True, slots=True)
class _Axis:
    """A range of values over a number of dots, with the round numbers inside it."""

    low: float
    high: float
    dots: int
    ticks: tuple[float, ...]

    def dot(self, value: float) -> int:
        """Where the value lies. Halves, because the difference of two huge numbers would overflow."""
        return round((self.dots - 1) * ((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)))

    def labels(self) -> list[str]:
        """The ticks with as many digits as it takes to tell them apart."""
        if len(self.ticks) < 2:
            return [f"{tick:.7g}" for tick in self.ticks]
        greatest = max(map(abs, self.ticks))
        digits = math.floor(math.log10(greatest)) - math.floor(math.log10(self.ticks[1] - self.ticks[0])) + 1
        return [f"{tick:.{max(7, digits)}g}" for tick in self.ticks]


def line_plot(
    series: Mapping[str, Sequence[Point]],
    title: str,
    x_label: str,
    y_label: str,
    width: int = 80,
    height: int = 12,
    colour: bool = False,
) -> str:
    """The plot as text of at most `width` columns, its drawing `height` lines high.

    Works with one point and with constant series. Several series carry symbols, so that they can be told apart
    without colour.
    """
    finite = {name: sorted(p for p in points if all(map(math.isfinite, p))) for name, points in series.items()}
    notes = _left_out(series, finite)
    heading = [paint(printable(title), "title", colour), ""] if title else []
    xs, ys = ([point[i] for points in finite.values() for point in points] for i in (0, 1))
    if not xs:
        return "\n".join([*heading, "  no points to plot", *notes])
    y_axis = _axis(ys, _DOTS_Y * height, max(4, height // 3))
    y_labels = dict(zip((height - 1 - y_axis.dot(t) // _DOTS_Y for t in y_axis.ticks), y_axis.labels(), strict=True))
    gutter = max(map(len, y_labels.values()))
    columns = max(10, width - gutter - 4)
    x_axis = _axis(xs, _DOTS_X * columns, max(3, columns // 14), whole=all(float(x).is_integer() for x in xs))
    body = [
        f"  {y_labels.get(row, ''):>{gutter}} {'┤' if row in y_labels else '│'}{line}"
        for row, line in enumerate(_drawing(finite, x_axis, y_axis, colour))
    ]
    below = [" " * (gutter + 3) + line for line in _below(x_axis, columns, printable(x_label))]
    above = [f"  {printable(y_label)}", *([_key(finite, colour)] if len(finite) > 1 else [])]
    return "\n".join([*heading, *above, *body, *below, *notes])


def compact_lines(plot: Plot) -> list[str]:
    """One line per point: series, x and y, separated by tabs."""
    return [f"{printable(name)}\t{x}\t{y}" for name, points in plot.series.items() for x, y in points]


def _left_out(series: Mapping[str, Sequence[Point]], finite: Mapping[str, Sequence[Point]]) -> list[str]:
    missing = {name: len(points) - len(finite[name]) for name, points in series.items()}
    return [
        f"  {number} point{'s' if number > 1 else ''} of {printable(name)} left out: not finite"
        for name, number in missing.items()
        if number
    ]


def _axis(values: Sequence[float], dots: int, wanted: int, whole: bool = False) -> _Axis:
    """The axis from the least to the greatest value, with ticks 1, 2 or 5 times a power of ten apart.

    `whole`: the values are counted, such as steps, and there are no ticks between two of them.
    """
    low, high = min(values), max(values)
    if high / 2 - low / 2 <= max(abs(low) * 1e-13, 1e-300):  # constant as far as a float can tell: centred
        margin = abs(low) / 10 or 1.0
        low, high = max(low - margin, -sys.float_info.max), min(high + margin, sys.float_info.max)
    raw = max(high / wanted - low / wanted, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * n for n in (1, 2, 5, 10) if raw * 0.999 <= power * n < math.inf), power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = (min(max(index * step, low), high) for index in range(first, last + 1))
    return _Axis(low, high, dots, tuple(ticks))


def _drawing(series: Mapping[str, Sequence[Point]], x_axis: _Axis, y_axis: _Axis, colour: bool) -> list[str]:
    """The lines of the drawing, from the top."""
    from plotille import Canvas

    canvas = Canvas(x_axis.dots // _DOTS_X, y_axis.dots // _DOTS_Y, 0, 0, x_axis.dots, y_axis.dots)
    dots = [_thinned([(x_axis.dot(x), y_axis.dot(y)) for x, y in points]) for points in series.values()]
    for line, (_, shade) in zip(dots, _styles(series), strict=True):
        for start, end in pairwise(line):
            canvas.line(*start, *end, color=shade if colour else None)
    for line, (symbol, shade) in zip(dots, _styles(series), strict=True):
        for dot in _marked(line, symbols=6 if len(series) > 1 else 0):
            canvas.point(*dot, color=shade if colour else None, marker=symbol)
    return [line.replace("⠀", " ").rstrip() for line in str(canvas.plot(linesep="\n")).split("\n")]


def _thinned(dots: Sequence[_Dot]) -> list[_Dot]:
    """At most four dots per column: the first, the lowest, the highest, the last. Draws the same."""
    thin: list[_Dot] = []
    for x, group in groupby(dots, key=lambda dot: dot[0]):
        ys = [y for _, y in group]
        thin += [(x, y) for y in dict.fromkeys((ys[0], min(ys), max(ys), ys[-1]))]
    return thin


def _marked(dots: Sequence[_Dot], symbols: int) -> Sequence[_Dot]:
    """The dots that carry the symbol of their line: the last, and some on the way. A lone dot would be overlooked."""
    if len(dots) <= 1:
        return dots
    return dots[:: -math.ceil(len(dots) / symbols)] if symbols else ()


def _styles(series: Mapping[str, Sequence[Point]]) -> list[tuple[str, str]]:
    return [SERIES[index % len(SERIES)] for index in range(len(series))]


def _key(series: Mapping[str, Sequence[Point]], colour: bool) -> str:
    from plotille import color

    names = zip(series, _styles(series), strict=True)
    return "  " + "   ".join(
        f"{color(symbol, fg=shade, no_color=not colour)} {printable(name)}" for name, (symbol, shade) in names
    )


def _below(axis: _Axis, columns: int, label: str) -> list[str]:
    """The axis line with its marks, the numbers under them, and the label."""
    line, numbers = ["─"] * columns, ""
    for tick, text in zip(axis.ticks, axis.labels(), strict=True):
        place = axis.dot(tick) // _DOTS_X
        start = min(max(place - len(text) // 2, 0), columns - len(text))
        if not numbers or start > len(numbers):  # a number without room is left out with its mark
            line[place] = "┬"
            numbers = numbers.ljust(start) + text
    return ["└" + "".join(line), " " + numbers, " " + " " * max(0, (columns - cell_width(label)) // 2) + label]
