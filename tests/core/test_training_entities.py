"""Entities in tags, counted by hand, and against `conlleval`'s tables of what begins and ends one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.training.entities import (
    EntityCounts,
    are_entity_tags,
    count_entities,
    entity_f1,
    spans,
)

NAMES = ("O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B")
TAGS = st.lists(st.sampled_from(NAMES), max_size=12)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER O", {(0, 2, "PER")}),
        ("O I-PER B-PER", {(1, 2, "PER"), (2, 3, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        ("S-PER B-PER I-PER E-PER", {(0, 1, "PER"), (1, 4, "PER")}),
        ("B-PER E-PER I-PER", {(0, 2, "PER"), (2, 3, "PER")}),
        ("S-PER I-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("E-PER E-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("B-A-B I-A-B", {(0, 2, "A-B")}),
    ],
)
def test_spans_are_those_that_a_reader_sees(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == expected


def conlleval(tags: list[str]) -> set[tuple[int, int, str]]:
    """As the script of the shared tasks: a table of pairs that end an entity, and one of pairs that begin one."""
    ends = {"BB", "BS", "BO", "IB", "IS", "IO", "EE", "EI", "EO", "EB", "ES", "SE", "SI", "SO", "SB", "SS"}
    begins = {"EE", "EI", "SE", "SI", "OE", "OI"}
    found, start, before, kind_before = set(), 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        letter, kind = tag[0], tag[2:]
        if before + letter in ends or (before != "O" and kind_before != kind):
            found.add((start, position, kind_before))
        if letter in "BS" or before + letter in begins or (letter != "O" and kind_before != kind):
            start = position
        before, kind_before = letter, kind
    return found


@given(TAGS)
def test_spans_are_those_of_the_shared_tasks_script(tags: list[str]) -> None:
    assert spans(tags) == conlleval(tags)


def test_counts_by_hand() -> None:
    """Right: LOC. Another type, a shorter span, and one that is not there: three more are predicted, two are missed."""
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    labels = [names.index(tag) for tag in ["B-PER", "I-PER", "O", "B-LOC", "O", "B-PER", "I-PER", "O"]]
    predicted = [names.index(tag) for tag in ["B-LOC", "I-LOC", "O", "B-LOC", "O", "B-PER", "O", "B-PER"]]
    counts = count_entities(predicted, labels, names)
    assert counts == EntityCounts(correct=1, predicted=4, labelled=3)
    assert counts.f1 == pytest.approx(2 * (1 / 4) * (1 / 3) / (1 / 4 + 1 / 3))


def test_a_word_without_a_tag_is_outside_whatever_is_predicted() -> None:
    names = ["O", "B-X", "I-X"]
    assert count_entities([1, 2, 2], [1, -100, 2], names) == EntityCounts(2, 2, 2)
    assert count_entities([0, 1, 0], [0, -100, 0], names) == EntityCounts(0, 0, 0)


@given(rows=st.lists(st.tuples(TAGS, st.integers(0, 9)), max_size=5))
def test_counts_of_rows_add_up_and_f1_is_between_precision_and_recall(rows: list[tuple[list[str], int]]) -> None:
    total, right, told, there = EntityCounts(), 0, 0, 0
    for tags, seed in rows:
        guess = list(tags)
        random.Random(seed).shuffle(guess)
        indices = [[NAMES.index(tag) for tag in row] for row in (guess, tags)]
        total += count_entities(*indices, NAMES)
        right, told, there = (
            right + len(conlleval(guess) & conlleval(tags)), told + len(conlleval(guess)), there + len(conlleval(tags))
        )  # fmt: skip
    assert total == EntityCounts(right, told, there)
    if right:
        precision, recall = right / told, right / there
        assert total.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert total.f1 == 0.0


def test_no_entities_at_all_give_zero_and_all_right_one() -> None:
    assert entity_f1(0, 0, 0) == 0.0
    assert entity_f1(3, 3, 3) == 1.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["O", "B-X", "I-X"], True),
        (["B-X", "I-X"], True),
        (["S-X", "E-X", "O"], True),
        (["O"], False),
        (["NOUN", "VERB"], False),
        (["O", "B-X", "NOUN"], False),
        (["0", "1"], False),
        (["O", "B-", "I-"], False),
        ([], False),
    ],
)
def test_which_tags_tell_entities(names: list[str], expected: bool) -> None:
    assert are_entity_tags(names) is expected
