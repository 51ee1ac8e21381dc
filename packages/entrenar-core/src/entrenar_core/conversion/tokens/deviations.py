"""Where llama.cpp cuts a text otherwise than the tokenizer whose metadata it has, though no metadata could say more.

Each was found by comparing the two on texts with every sign of Unicode's first two planes, and is stated with the texts
that it can show in: a comparison that finds a difference in another text has found a mistake.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_OLD = unicodedata.ucd_3_2_0
WHITE = "\t\n\x0b\x0c\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""White space of every kind but the space itself, as Unicode has it."""
_BREAKS = "\x0b\x0c\x85"
_JOINING = (
    ("\u1100", "\u11ff"), ("\ua960", "\ua97f"), ("\ud7b0", "\ud7ff"), ("가", "힣"), ("\uff9e", "\uff9f"),
    ("\U0001f1e6", "\U0001f1ff"), ("\U0001f3fb", "\U0001f3ff"),
)  # fmt: skip
_CHANGED = "\u166d\u2581"  # of another category in newer versions of Unicode, or llama.cpp's own sign for a space


@dataclass(frozen=True, slots=True)
class Deviation:
    """What llama.cpp does otherwise, in words, and whether that can show in a text."""

    note: str
    shows_in: Callable[[str], bool]


def pieces_between(tokens: Iterable[str]) -> Callable[[str], list[str]]:
    """Cuts a text at the tokens that are found whole in it; what they leave may be empty."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return lambda text: [text]
    return re.compile("|".join(map(re.escape, longest_first))).split


COMPOSES = Deviation(
    "its tokenizer composes accents (NFC) before it cuts words, and llama.cpp does not: a text whose accents are signs "
    "of their own gets other tokens",
    lambda text: not unicodedata.is_normalized("NFC", text),
)
MARKS = Deviation(
    "llama.cpp cuts a word at a combining mark, such as the vowel signs of Hindi and Thai, which its tokenizer keeps "
    "in it: texts with such marks get other tokens",
    lambda text: any(unicodedata.category(sign).startswith("M") for sign in text),
)
STRIPPED_MARKS = Deviation(
    "llama.cpp leaves out every combining mark, and of a Korean syllable all but its first letter, and its tokenizer "
    "only accents: texts in Korean, Hindi and some other scripts get other tokens",
    lambda text: any(unicodedata.category(sign) in ("Mc", "Me") or "가" <= sign <= "힣" for sign in text),
)
CLUSTERS = Deviation(
    "its tokenizer puts what the table of SentencePiece has for the first of several signs that are seen as one (a "
    "letter with its accents, a letter and a joiner) for all of them, and llama.cpp for the first alone",
    lambda text: "\r\n" in text or any(map(_joins, text)),
)
LOWER_CASE = Deviation(
    "llama.cpp has no lower case for a capital I with a dot",
    lambda text: "\u0130" in text,
)
NEW_SIGNS = Deviation(
    "llama.cpp ends a word at U+0085, vertical tab and form feed, and knows signs of punctuation, marks and formats "
    "that are newer than Unicode 8, which its tokenizer does not",
    lambda text: any(sign in _BREAKS + _CHANGED or _is_new(sign) for sign in text),
)


def long_words(letters: int) -> Deviation:
    """WordPiece gives up on a long word."""
    return Deviation(
        f"a word of more than {letters} letters is unknown to its tokenizer, and llama.cpp cuts it into pieces",
        lambda text: any(len(word) > letters for word in text.split()),
    )


def leading_space(tokens: Iterable[str]) -> Deviation:
    """Metaspace puts no space before one."""
    pieces = pieces_between(tokens)
    return Deviation(
        "llama.cpp puts a space before a text even if it begins with one, and its tokenizer does not: such texts get "
        "another first token",
        lambda text: any(piece.startswith((" ", "\u2581")) for piece in pieces(text)),
    )


def block(tokens: Iterable[str], *, inside: bool) -> Deviation:
    """U+2581 in a text is what Metaspace writes for a space."""
    pieces = pieces_between(tokens)
    where = "a word" if inside else "a text"
    return Deviation(
        f"its tokenizer takes a U+2581 that begins {where} for the space before it, and llama.cpp puts one before that",
        lambda text: "\u2581" in text if inside else any(piece.startswith("\u2581") for piece in pieces(text)),
    )


def after_special(tokens: Iterable[str]) -> Deviation:
    """Metaspace puts a space before the first piece of a text only."""
    pieces = pieces_between(tokens)
    return Deviation(
        "llama.cpp puts a space after each special token within a text, and its tokenizer only before the text: there "
        "a word gets another token",
        lambda text: any(pieces(text)[1:]),
    )


def trailing_space(tokens: Iterable[str]) -> Deviation:
    """llama.cpp writes a space with the word behind it."""
    pieces = pieces_between(tokens)
    return Deviation(
        "llama.cpp takes no space at the end of a text for a token, and its tokenizer does",
        lambda text: any(piece.endswith(" ") for piece in pieces(text)),
    )


def other_white_space(tokens: Iterable[str], *, inside: bool) -> Deviation:
    """Without SentencePiece's table, only a space is white to llama.cpp."""
    pieces = pieces_between(tokens)
    where = "" if inside else " at the end of a text"

    def shows(text: str) -> bool:
        return any(
            sign in WHITE
            for piece in pieces(text)
            for sign in (piece if inside else piece[len(piece.rstrip(WHITE + " ")) :])
        )

    return Deviation(f"its tokenizer leaves out line feeds and tabs{where}, and llama.cpp only spaces", shows)


def around_tokens(note: str, tokens: Iterable[str]) -> Deviation:
    """Added tokens that are found otherwise than as their text."""
    named = tuple(tokens)
    return Deviation(note, lambda text: any(token in text for token in named))


def _joins(sign: str) -> bool:
    """Whether a sign can be seen as one with its neighbour: marks, joiners, tones of skin, flags, letters of Korean."""
    return (
        unicodedata.category(sign) in ("Mn", "Mc", "Me", "Cf")
        or any(first <= sign <= last for first, last in _JOINING)
        or sign in "\u0e33\u0eb3"
    )


def _is_new(sign: str) -> bool:
    return _OLD.category(sign) == "Cn" and unicodedata.category(sign) in ("Po", "Ps", "Pe", "Pd", "Cf", "Mn")
