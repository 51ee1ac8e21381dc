"""Rows of words with a tag for each: how they are read, and which tokens carry the tags.

A word's first token carries its tag, and what a model says there is what it says of the word; the word's other tokens
count for nothing.

Source: Devlin et al. 2019, section 5.3.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from entrenar_core.data.labels import IGNORED, UNLABELLED, Value, clean
from entrenar_core.errors import DataError

Label = int | list[int]
"""The label of a row: a class, or one for each word."""


def read_tags(
    row: int, words: object, tags: object, columns: tuple[str, str], declared: Sequence[str] | None
) -> list[Value | None]:
    """The tags of a row as its source spells them, None for a word that has none; a row may have none at all.

    Raises:
        DataError: there are not as many tags as words, or a word is no text, or a tag cannot be a class.
    """
    words_column, tags_column = columns
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"row {row} has a word in column `{words_column}` that is no text", "write a list of texts")
    if tags is None or (tags == [] and words):
        return [None] * len(words)
    assert isinstance(tags, list), "checked by `check_features`"
    if len(tags) != len(words):
        raise DataError(
            f"row {row} has {_counted(len(words), 'word')} in column `{words_column}` "
            f"and {_counted(len(tags), 'tag')} in column `{tags_column}`",
            "give one tag for each word; null for a word without one",
        )
    return [None if tag == IGNORED else clean(tag, tags_column, declared) for tag in tags]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def standing(labels: Iterable[Label]) -> list[int]:
    """A class for each row: its own; of a row of tags 0, or −1 where none of its words has one."""
    return [label if isinstance(label, int) else max([UNLABELLED, *(min(tag, 0) for tag in label)]) for label in labels]


def unlabelled(label: Label) -> Label:
    """The same row without its label."""
    return UNLABELLED if isinstance(label, int) else [UNLABELLED] * len(label)


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words as a text, as a tokenizer reads texts elsewhere, and the characters `[start, end)` of each."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), spans


def first_tokens(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each token the word that it begins, None for all other tokens. Offsets and spans ascend.

    A token begins a word if it is the first that shares a character with it. One token may stand for several words;
    then it begins the first of them, and the others are not told apart and have no token.
    """
    begun: list[int | None] = []
    waiting = [(first, last, word) for word, (first, last) in reversed(list(enumerate(spans))) if last > first]
    for start, end in offsets:
        while waiting and waiting[-1][1] <= start:
            waiting.pop()
        begun.append(waiting[-1][2] if waiting and waiting[-1][0] < end else None)
        while waiting and waiting[-1][0] < end:
            waiting.pop()
    return begun


def flat_labels(labels: Iterable[Any]) -> list[int]:
    """All labels of all rows that there are: of rows of classes, or of lists of tags."""
    lists = ([label] if isinstance(label, int) else label for label in labels)
    return [label for row in lists for label in row if label >= 0]
