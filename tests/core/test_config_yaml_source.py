"""YAML is read by the rules of version 1.2, with the place of every key, and within bounds."""

import math
import time
from typing import Any

import pytest

from entrenar_core.config.yaml_source import MOST_DEEP, parse_document, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("+3", 3),
        ("012", 12),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("no", "no"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ("[a, 1]", ["a", 1]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("{1: x, null: y}", {"1": "x", "null": "y"}),
        ("org/name@main", "org/name@main"),
    ],
)
def test_a_value_is_read_by_the_rules_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_read_as_one() -> None:
    assert math.isnan(parse_scalar(".nan"))


@pytest.mark.parametrize(
    "text", ["[", "*x", "{a: 1, a: 2}", "a: b: c", "!!bool x", "!!int {b: c}", "!!float ''", "!!timestamp x", "!foo a"]
)
def test_what_is_no_yaml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_scalar(text)


def test_every_key_and_item_has_its_line_and_column() -> None:
    document = parse_document("a:\n  b: [x,\n      y]\nc: {d: 1}\n", "f")
    assert document.places == {
        (): "f",
        ("a",): "f:1:1",
        ("a", "b"): "f:2:3",
        ("a", "b", 0): "f:2:7",
        ("a", "b", 1): "f:3:7",
        ("c",): "f:4:1",
        ("c", "d"): "f:4:5",
    }


def test_a_key_given_twice_is_reported_where_it_stands_again() -> None:
    document = parse_document("a:\n  b: 1\n  c: 2\n  b: 3\n", "f")
    assert [str(problem) for problem in document.problems] == ["f:4:3: `b` is given twice"]


def test_a_tab_is_explained() -> None:
    (problem,) = parse_document("a:\n\tb: 1\n", "f").problems
    assert problem.where == "f:2:1"
    assert problem.hint == "indent with spaces: YAML does not take tabs"


def test_a_syntax_error_has_its_place() -> None:
    (problem,) = parse_document("a: 1\nb: [1, 2\nc: 3\n", "f").problems
    assert problem.where is not None
    assert problem.where.startswith("f:3:")
    assert problem.message.startswith("not YAML: ")


def test_what_a_merge_brings_has_the_place_where_it_is_written_and_gives_way() -> None:
    document = parse_document("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n", "f")
    assert document.values["b"] == {"x": 1, "y": 3}
    assert document.places["b", "x"] == "f:2:3"
    assert document.places["b", "y"] == "f:6:3"
    assert not document.problems


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "a list in itself": "a: &a [*a]",
    "a merge of itself": "a: &a {<<: *a}",
    "depth": "a: " + "[" * (MOST_DEEP + 1) + "]" * (MOST_DEEP + 1),
    "depth without end": "a: " + "[" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_text_cannot_become_a_large_value(name: str) -> None:
    started = time.process_time()
    document = parse_document(BOMBS[name], "f")
    assert time.process_time() - started < 10
    assert document.values == {}
    assert len(document.problems) == 1
    assert "more than" in document.problems[0].message


def test_a_number_of_too_many_digits_is_not_converted_digit_by_digit() -> None:
    assert parse_scalar("9" * 4000) == int("9" * 4000)
    assert parse_scalar("9" * 5000) == math.inf
