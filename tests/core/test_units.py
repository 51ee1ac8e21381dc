"""What is printed can be read back to the printed precision, keeps its order, and never fails on odd numbers."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import UsageError
from entrenar_core.units import count, duration, parse_count, parse_duration, parse_size, percent, perplexity, size

SIZES = st.integers(0, 10**33 - 10**30)
COUNTS = st.integers(0, 10**15 - 10**13)
SECONDS = st.floats(1e-3, 8e8)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (4_200_000, "4.2 MB"),
        (99_949_999, "99.9 MB"),
        (99_950_000, "100 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.0 GB"),
        (-5_000_000, "-5.0 MB"),
        (9999 * 10**30, "9999 QB"),
        (10**400, "1.0e+370 QB"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_size_is_decimal_and_short(size_bytes: float, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (512, "512"), (22_700_000, "22.7M"), (134_515_008, "135M"), (6_700_000_000, "6.7B"), (10**12, "1.0T")],
)
def test_a_count_is_short(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "0s"),
        (12e-6, "12µs"),
        (0.34, "340ms"),
        (0.9996, "1.0s"),
        (4.2, "4.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 0s"),
        (65, "1m 5s"),
        (3599.6, "1h 0m"),
        (9240, "2h 34m"),
        (86399, "1d 0h"),
        (300_000, "3d 11h"),
        (-90, "-1m 30s"),
        (1e300, "1.16e+295d"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_duration_names_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.6012, "60.1 %"), (1, "100.0 %"), (-0.5, "-50.0 %")])
def test_a_share_is_a_percentage(fraction: float, text: str) -> None:
    assert percent(fraction) == text
    assert percent(fraction, decimals=0) == f"{float(text[:-2]):.0f} %"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.389, "7.39"),
        (1000, "1000.00"),
        (999_999.99, "999999.99"),
        (999_999.999, "1e+06"),
        (2.5349e29, "2.53e+29"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_perplexity_is_short_however_large(value: float, text: str) -> None:
    assert perplexity(value) == text


@given(SIZES)
def test_a_printed_size_reads_back_within_its_precision(size_bytes: int) -> None:
    assert parse_size(size(size_bytes)) == pytest.approx(size_bytes, rel=0.05 + 1e-9, abs=0.5)


@given(COUNTS)
def test_a_printed_count_reads_back_within_its_precision(number: int) -> None:
    assert parse_count(count(number)) == pytest.approx(number, rel=0.05 + 1e-9, abs=0.5)


@given(SECONDS)
def test_a_printed_duration_reads_back_within_its_precision(seconds: float) -> None:
    assert parse_duration(duration(seconds)) == pytest.approx(seconds, rel=0.5, abs=5e-4)
    if seconds > 1:
        assert parse_duration(duration(seconds)) == pytest.approx(seconds, rel=0.05)


@given(SIZES, SIZES)
def test_a_larger_size_never_prints_as_a_smaller_one(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert parse_size(size(small)) <= parse_size(size(large))


@given(COUNTS, COUNTS)
def test_a_larger_count_never_prints_as_a_smaller_one(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert parse_count(count(small)) <= parse_count(count(large))


@given(SECONDS, SECONDS)
def test_a_longer_duration_never_prints_as_a_shorter_one(one: float, other: float) -> None:
    short, long = sorted((one, other))
    assert parse_duration(duration(short)) <= parse_duration(duration(long))


@given(st.floats() | st.integers())
def test_any_number_prints_in_a_few_characters(number: float) -> None:
    assert all(len(text) <= 14 for text in (size(number), count(number), duration(number)))


@given(st.floats(0, allow_infinity=False, exclude_min=True) | st.integers(1))
def test_a_negative_prints_as_its_opposite_with_a_sign(number: float) -> None:
    assert (size(-number), count(-number), duration(-number)) == tuple(f"-{f(number)}" for f in (size, count, duration))


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512", 512),
        ("512 B", 512),
        ("16GB", 16 * 10**9),
        ("16 gb", 16 * 10**9),
        (" 16GiB ", 16 * 2**30),
        ("1.5KiB", 1536),
        ("0.5kB", 500),
        ("9" * 30 + "QB", int("9" * 30) * 10**30),
    ],
)
def test_sizes_people_write(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "number"), [("1.1B", 1_100_000_000), ("135m", 135_000_000), ("8 k", 8000), ("512", 512)]
)
def test_counts_people_write(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90s", 90), ("1h30m", 5400), (" 1h 30m ", 5400), ("1.5d", 129_600), ("250ms", 0.25)],
)
def test_durations_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "16G", "1,5GB", "-1GB", "1.5", "1e9", "nan", "inf", "GB", "1 2GB", "16GBs", "9" * 5000]
)
def test_a_size_that_could_mean_anything_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_size(text)
    assert refused.value.message == f"`{text}` is not a size"
    assert "16GiB" in str(refused.value.hint)


@pytest.mark.parametrize("text", ["", "1.5", "-3", "1GB", "1e6", "many", "٣"])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "90", "h", "2 hours", "30m1h", "1h1h", "-2h", "1h 30", "nan"])
def test_a_duration_without_units_or_order_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration") as refused:
        parse_duration(text)
    assert "1h30m" in str(refused.value.hint)


@given(st.text(max_size=12))
def test_a_parser_answers_or_refuses_and_nothing_else(text: str) -> None:
    for parse in (parse_size, parse_count, parse_duration):
        with suppress(UsageError):
            assert parse(text) >= 0
