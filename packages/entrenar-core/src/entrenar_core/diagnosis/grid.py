"""Where a smooth function, known with its slopes at some points, passes through a level."""

from collections.abc import Sequence

_HALVINGS = 60


def crossing(places: Sequence[float], values: Sequence[float], slopes: Sequence[float], level: float) -> float | None:
    """The first place, in the order of the points, where the function passes `level`; None where it never does.

    In the interval the function is taken for the cubic with these values and slopes at its ends (Hermite), whose error
    is of the fourth order in the width.

    Raises:
        ValueError: the lists differ in length.
    """
    if not len(places) == len(values) == len(slopes):
        raise ValueError(f"{len(places)} places, {len(values)} values and {len(slopes)} slopes")
    for left in range(len(places) - 1):
        ends = values[left] - level, values[left + 1] - level
        if ends[0] == 0 or ends[0] * ends[1] < 0:
            return _inside(places[left : left + 2], ends, slopes[left : left + 2])
    return places[-1] if values and values[-1] == level else None


def _inside(places: Sequence[float], ends: tuple[float, float], slopes: Sequence[float]) -> float:
    width = places[1] - places[0]

    def cubic(t: float) -> float:
        return (
            (1 + 2 * t) * (1 - t) ** 2 * ends[0]
            + t * (1 - t) ** 2 * width * slopes[0]
            + t**2 * (3 - 2 * t) * ends[1]
            + t**2 * (t - 1) * width * slopes[1]
        )

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cubic(middle) * ends[0] > 0 else (low, middle)
    return places[0] + width * (low + high) / 2
