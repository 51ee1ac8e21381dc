"""Bytes, counts, durations, shares and perplexities: how they are printed, and how they are read back.

Sizes are decimal (SI): 1 kB is 1000 bytes, as disks, networks and the Hub count. `GiB` and its kin are read,
never printed. Printed numbers keep two to four digits; JSON output carries the exact ones.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

from entrenar_core.errors import UsageError

SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB", "RB", "QB")
COUNT_UNITS = ("", "K", "M", "B", "T")
SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6}

_SIZE_FACTORS = {unit.lower(): 1000**power for power, unit in enumerate(SIZE_UNITS)}
_SIZE_FACTORS |= {f"{unit[0].lower()}ib": 1024**power for power, unit in enumerate(SIZE_UNITS) if power}
_COUNT_FACTORS = {unit.lower(): 1000**power for power, unit in enumerate(COUNT_UNITS)}
_NUMBER = r"[0-9]{1,40}(?:\.[0-9]{1,40})?"
_WITH_UNIT = re.compile(rf"({_NUMBER})\s*([a-z]*)")
_DURATION_PART = re.compile(rf"\s*({_NUMBER})\s*(d|h|ms|m|s|µs|us)")


def size(size_bytes: float) -> str:
    """Bytes in decimal units: `4.2 MB`, `135 MB`, `512 B`."""
    return _scaled(size_bytes, SIZE_UNITS, " ")


def count(number: float) -> str:
    """A count in thousands, millions, billions or trillions: `6.7B`, `135M`, `512`."""
    return _scaled(number, COUNT_UNITS, "")


def percent(fraction: float, decimals: int = 1) -> str:
    """A share of one, in percent: `percent(0.6012)` is `60.1 %`."""
    return f"{100 * fraction:.{decimals}f} %"


def moved(relative: float) -> str:
    """How far values were moved, as a share of their root mean square: `1.234 %`, and `3.1e-08` of what is less than a
    hundredth of that.
    """
    return percent(relative, 3) if relative >= 1e-4 else f"{relative:.1e}"


def nats(value: float) -> str:
    """A divergence: `0.0123 nats`, and `2.1e-05 nats` of what four places do not show."""
    return f"{value:.4f} nats" if value >= 0.001 or not value else f"{value:.1e} nats"


def bound(value: float) -> str:
    """A largest difference in one digit, which is none too low: `2e-05`."""
    if not value:
        return "0"
    exponent = math.floor(math.log10(value))
    return f"{math.ceil(round(value / 10**exponent, 6)) * 10**exponent:.0e}"


def perplexity(value: float) -> str:
    """A perplexity, or a ratio of two: `7.39`, and from a million on three digits with their power, `2.53e+29`."""
    return f"{value:.3g}" if value >= 999_999.995 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds in the one or two units that matter: `3d 4h`, `2h 34m`, `1m 5s`, `4.2s`, `340ms`, `12µs`."""
    if not math.isfinite(seconds):
        return str(float(seconds))
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 60:
        return _under_a_minute(seconds)
    for large, small in (("m", "s"), ("h", "m"), ("d", "h")):
        whole = round(seconds / SECONDS[small])
        per_large = round(SECONDS[large] / SECONDS[small])
        limit = {"m": 60, "h": 24, "d": 10_000}[large]
        if whole < limit * per_large:
            return f"{whole // per_large}{large} {whole % per_large}{small}"
    return f"{seconds / SECONDS['d']:.3g}d"


def parse_size(text: str) -> int:
    """Bytes from `16GB` (decimal), `16GiB` (binary) or `512`.

    Raises:
        UsageError: anything else, such as `16G`, which could mean either.
    """
    accepted = "write bytes (`512`), a decimal unit (`16GB` is 16 × 10⁹) or a binary one (`16GiB` is 16 × 2³⁰)"
    return _whole(text, {"": 1, **_SIZE_FACTORS}, f"`{text}` is not a size", accepted)


def parse_count(text: str) -> int:
    """A count from `1.1B`, `135M`, `8k` or `512`.

    Raises:
        UsageError: anything else.
    """
    accepted = "write a whole number (`512`), or one with K, M, B or T (`1.1B`)"
    return _whole(text, _COUNT_FACTORS, f"`{text}` is not a count", accepted)


def parse_duration(text: str) -> float:
    """Seconds from `2h`, `90s`, `1h30m`, `1.5d` or `250ms`, largest unit first.

    Raises:
        UsageError: anything else, such as a number without a unit.
    """
    seconds, position, smallest = 0.0, 0, math.inf
    while part := _DURATION_PART.match(text, position):
        unit = SECONDS[part[2]]
        if unit >= smallest:
            break
        seconds, position, smallest = seconds + float(part[1]) * unit, part.end(), unit
    if position == 0 or text[position:].strip():
        raise UsageError(
            f"`{text}` is not a duration", "write numbers with d, h, m, s or ms, largest first: `2h`, `90s`, `1h30m`"
        )
    return seconds


def _scaled(number: float, units: tuple[str, ...], space: str) -> str:
    """The number in the largest unit that leaves at least 1, with one decimal below 100."""
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    if number < 0:
        return f"-{_scaled(-number, units, space)}"
    exact = Decimal(number)  # a float would overflow where an int does not
    for power, unit in enumerate(units):
        scaled = exact.scaleb(-3 * power)
        if scaled < Decimal("999.5"):  # what rounds to 1000 belongs to the next unit
            decimals = 1 if power and scaled < Decimal("99.95") else 0
            return f"{scaled:.{decimals}f}{space}{unit}"
    return f"{scaled:{'.0f' if scaled < 10_000 else '.1e'}}{space}{units[-1]}"


def _under_a_minute(seconds: float) -> str:
    if seconds >= 59.5:
        return "1m 0s"
    if seconds >= 0.9995:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f}s"
    if seconds >= 0.9995e-3:
        return f"{seconds * 1e3:.0f}ms"
    return f"{seconds * 1e6:.0f}µs" if seconds >= 0.5e-6 else "0s"


def _whole(text: str, factors: dict[str, int], problem: str, accepted: str) -> int:
    """`number unit` as a whole number; without a unit, only a whole number is meant."""
    match = _WITH_UNIT.fullmatch(text.strip().lower())
    if match is None or match[2] not in factors or (factors[match[2]] == 1 and "." in match[1]):
        raise UsageError(problem, accepted)
    return round(Fraction(match[1]) * factors[match[2]])
