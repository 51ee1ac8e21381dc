"""The colours and symbols of the terminal, in one place, and what may be written to one.

Colour only repeats what the words already say: a symbol or a label carries the meaning, so that nothing is lost
in a pipe, with `NO_COLOR`, or to a reader who does not see colours.
"""

import os
import re
import shutil
import sys
import unicodedata
from typing import TextIO

# The words are rich's; `paint` turns them into escape codes where rich is not needed.
STYLES = {
    "error": "bold red",
    "warning": "bold yellow",
    "hint": "bold cyan",
    "title": "bold",
    "header": "dim",
    "rule": "dim",
    "label": "cyan",
    "muted": "dim",
    "good": "green",
    "bad": "red",
    "doubtful": "yellow",
    "heading": "bold green",
    "option": "bold cyan",
}
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

GOOD, BAD, DOUBTFUL = "✓", "✗", "!"
MARKS = {GOOD: "good", BAD: "bad", DOUBTFUL: "doubtful"}
"""A cell or a line that starts with one of these takes its colour."""

SERIES = (("●", "cyan"), ("▲", "yellow"), ("■", "green"), ("◆", "magenta"), ("○", "blue"), ("△", "red"))
"""The lines of a plot are told apart by symbol first, by colour second."""

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def paint(text: str, style: str, colour: bool) -> str:
    """The text between the escape codes of a style, or as it is."""
    codes = ";".join(_CODES[word] for word in STYLES[style].split())
    return f"\033[{codes}m{text}\033[0m" if colour and text else text


def labelled(label: str, text: str, colour: bool) -> str:
    """`label: text`, or the text alone; lines after the first are indented, so that none can pose as a label."""
    head = f"{paint(label, label, colour)}{paint(':', 'title', colour)} " if label else ""
    return head + printable(text, keep="\n").replace("\n", "\n  ")


def marked(line: str, colour: bool) -> str:
    """The line in the colour of the mark that it starts with, if any."""
    return paint(line, MARKS[line[0]], colour) if line[:1] in MARKS else line


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches the stream, on a terminal that can move its cursor."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO | None) -> bool:
    """Whether the stream shows colours: a capable terminal, and no `NO_COLOR` (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def width() -> int:
    """Columns of the terminal, 80 where there is none."""
    return shutil.get_terminal_size().columns


def cell_width(text: str) -> int:
    """Columns that the text takes: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def printable(text: str, keep: str = "") -> str:
    """The text with control and format characters spelled out, so that a name cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSAFE else _spelled(c) for c in text)


def redacted(text: str) -> str:
    """The text without access tokens: the value of `HF_TOKEN`, and anything that has the shape of one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if len(token) >= 4:  # a shorter one is no secret, and is part of too many words
        text = text.replace(token, "[token]")
    return _TOKEN.sub("[token]", text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def safe_for(stream: TextIO, text: str) -> str:
    """The text with what the stream's encoding lacks replaced, so that printing it cannot fail."""
    encoding = getattr(stream, "encoding", None) or sys.getdefaultencoding()
    return text.encode(encoding, "replace").decode(encoding)
