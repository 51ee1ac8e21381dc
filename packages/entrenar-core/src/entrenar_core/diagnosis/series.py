"""What a training told of itself, as series that its troubles are recognised from. Needs no torch.

A line is one of metrics.jsonl: of an optimiser step (`loss`), of an evaluation, or of diagnostics.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Line = Mapping[str, Any]
Lines = Sequence[Line]
FEWEST = 20
"""Lines of optimiser steps that a trend needs."""
_TO_DEVIATION = 1.4826
"""From the median distance to the standard deviation, of normal values."""
_OF_A_MEDIAN = 1.2533
"""The standard error of a median over that of a mean, of normal values."""


@dataclass(frozen=True, slots=True)
class Level:
    """Where a part of a series lies: its median, and the standard error of that."""

    value: float
    error: float


def steps(lines: Lines) -> list[Line]:
    """The lines of optimiser steps."""
    return [line for line in lines if is_number(line.get("loss"))]


def evaluations(lines: Lines) -> list[tuple[int, Line]]:
    """The evaluations, each with its step, in order."""
    return [(line["step"], line["evaluation"]) for line in lines if isinstance(line.get("evaluation"), Mapping)]


def judges_vectors(scores: Line) -> bool:
    """Whether an evaluation is one of a sentence encoder, which has no cross-entropy."""
    return scores.get("mean_average_precision") is not None


def learns_vectors(lines: Lines) -> bool:
    """Whether a training is one of a sentence encoder, by its evaluations."""
    return any(judges_vectors(scores) for _, scores in evaluations(lines))


def diagnostics(lines: Lines) -> list[tuple[int, Line]]:
    """The diagnostics, each with its step, in order."""
    return [(line["step"], line["diagnostics"]) for line in lines if isinstance(line.get("diagnostics"), Mapping)]


def comparable_losses(lines: Lines) -> list[float]:
    """The loss of every step; where a schedule moves what it is made of, the first of its terms, whose weights are not
    in it, whose temperature stays. Empty where there is none.
    """
    told = steps(lines)
    moving = {name for line in told for name in line.get("schedules", ())}
    if not moving:
        return [float(line["loss"]) for line in told]
    labels = told[0].get("losses", {}) if told else {}
    for label in labels:
        values = term(told, label)
        if f"{label}.temperature" not in moving and len(values) == len(told):
            return values
    return []


def term(lines: Lines, label: str) -> list[float]:
    """A term of the loss, in the steps that tell it."""
    found = (line.get("losses", {}).get(label) for line in lines)
    return [float(value) for value in found if is_number(value)]


def level(values: Sequence[float]) -> Level:
    """Raises ValueError where there are no values."""
    if not values:
        raise ValueError("no values have no level")
    middle = median(values)
    spread = _TO_DEVIATION * median(abs(value - middle) for value in values)
    return Level(middle, _OF_A_MEDIAN * spread / math.sqrt(len(values)))


def thirds(values: Sequence[float]) -> tuple[Level, Level, Level]:
    """The levels of the first, the middle and the last third.

    Raises:
        ValueError: there are fewer than 3 values.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} values have no thirds")
    third = len(values) // 3
    return level(values[:third]), level(values[third:-third]), level(values[-third:])


def spikes(values: Sequence[float], window: int = 10) -> Iterator[int]:
    """Places of values that stand out of the `window` before them: by 8 standard deviations, and by half.

    The deviation is that of the window or of the whole series, in parts of the level, whichever is more: ten values
    lie close together by chance. All from medians, which a spike does not move.
    """
    places = range(window, len(values))
    middles = [median(values[place - window : place]) for place in places]
    away = [abs(values[place] - middle) for place, middle in zip(places, middles, strict=True)]
    usual = median([distance / abs(middle) for distance, middle in zip(away, middles, strict=True) if middle] or [0.0])
    for place, middle in zip(places, middles, strict=True):
        near = median(abs(value - middle) for value in values[place - window : place])
        deviation = _TO_DEVIATION * max(near, usual * abs(middle))
        if values[place] > middle + max(8 * deviation, 0.5 * abs(middle), 1e-12):
            yield place


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
