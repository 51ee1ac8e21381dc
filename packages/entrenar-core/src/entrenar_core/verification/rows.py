"""Texts as the original's tokenizer has them: ids to be compared, and rows to be read by both models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrenar_core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROW_TOKENS = 128
"""How many tokens of the passage a row has: long enough that most of it is read with some context."""
MAX_TEXTS = 64
"""How many texts an embedding model is asked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of tokens. What follows `ids[place]` is predicted for each of `places`."""

    ids: tuple[int, ...]
    places: tuple[int, ...]


def encoded(tokenizer: "Tokenizer", text: str, *, special: bool, longest: int | None = None) -> tuple[int, ...]:
    """The ids of a text; `special`: with those that a text begins and ends with. One that is too long is cut before its
    last token.
    """
    ids = tuple(tokenizer.encode(text, add_special_tokens=special).ids)
    return ids if longest is None or len(ids) <= longest else (*ids[: longest - 1], ids[-1])


def rows_of(tokenizer: "Tokenizer", passage: str, *, positions: int, context: int) -> list[Row]:
    """Rows in which `positions` tokens of a passage are predicted, or what whole rows it has: pieces that lie evenly
    over the whole, each after the tokens that a text begins with.

    Raises:
        UsageError: no token of it can be predicted.
    """
    ids, begin = encoded(tokenizer, passage, special=False), _begin(tokenizer)
    free = 0 if begin else 1  # the first token of a row follows nothing
    length = min(ROW_TOKENS + free, context - len(begin))
    if length <= free or len(ids) <= free:
        raise UsageError("the passage to verify with has no token that a model could predict", "give a longer one")
    wanted = min(positions, len(ids) - free)
    count = min(-(-wanted // (length - free)), max(1, len(ids) // length))
    spread = (len(ids) - length) / max(1, count - 1)
    rows = []
    for number in range(count):
        start = max(0, round(number * spread))
        size = min(length, wanted + free)
        piece = ids[start : start + size]
        wanted -= len(piece) - free
        first = len(begin) - 1 + free
        rows.append(Row((*begin, *piece), tuple(range(first, len(begin) + len(piece) - 1))))
    return rows


def texts_of(tokenizer: "Tokenizer", passage: str, texts: Sequence[str], *, context: int) -> list[Row]:
    """Rows for an embedding model: the paragraphs of a passage and other texts, with what a text begins and ends with.

    Raises:
        UsageError: all are empty.
    """
    pieces = [*passage.split("\n\n"), *texts]
    rows = [encoded(tokenizer, piece, special=True, longest=context) for piece in pieces if piece.strip()]
    if not rows:
        raise UsageError("there is no text to verify with", "give a passage")
    return [Row(ids, ()) for ids in rows[:MAX_TEXTS] if ids]


def _begin(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """What a text begins with, such as the token that begins a sequence."""
    plain = encoded(tokenizer, "a", special=False)
    whole = encoded(tokenizer, "a", special=True)
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return whole[: next(starts, 0)]
