"""Walks a JSON text in a file from its start to its end, a window at a time, and says where long lists lie in it.

Of a text of a gigabyte only a window is in memory, and what a caller asks for by `value`. A list of numbers is passed
over in less time than it takes to read it: see `Scan.pass_list`.

Source: RFC 8259.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from entrenar_core.errors import ModelError
from entrenar_core.formats.json_texts import KEY, VALUE, JsonError, key_of
from entrenar_core.formats.sources import Source

WINDOW_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES = 1 << 20, 1 << 20, 64_000_000
_BLANK = re.compile(rb"[ \t\n\r]*+")


@dataclass(frozen=True, slots=True)
class ListPlace:
    """A list in a file: its text without the brackets is from byte `start` up to `end`, and has so many values."""

    start: int
    end: int
    values: int


class Scan:
    """A text that is walked. What is wrong with it is a `JsonError`; what its file does not give, a ModelError."""

    def __init__(self, source: Source, fail: Callable[[str], ModelError]) -> None:
        self._source, self._fail = source, fail
        self._window, self._start, self._at = b"", 0, 0

    @property
    def position(self) -> int:
        """The byte of the file that comes next."""
        return self._start + self._at

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; after each, the caller has to pass over its value."""
        self._expect(b"{")
        if self.next() == b"}":
            self._at += 1
            return
        while True:
            yield key_of(self._matched(KEY, MAX_KEY_BYTES, "a key with a colon")[1])
            if self.next() == b"}":
                self._at += 1
                return
            self._expect(b",")
            self.next()

    def next(self) -> bytes:
        """The byte that comes next besides blanks, which are passed over; none at the end."""
        while True:
            blank = _BLANK.match(self._window, self._at)
            assert blank is not None, "a pattern that nothing fits too"
            self._at = blank.end()
            if self._at < len(self._window) or not self._more():
                return self._window[self._at : self._at + 1]

    def value(self) -> bytes:
        """The text of the value that comes next, in an object, and passes over it."""
        self.next()
        return self._matched(VALUE, MAX_VALUE_BYTES, "a value with an end, not nested too deep,")[1]

    def pass_list(self) -> ListPlace:
        """Passes over a list of values that are no lists or objects, nor texts with a bracket."""
        self._expect(b"[")
        begin, commas, filled = self.position, 0, False
        while (end := self._window.find(b"]", self._at)) < 0:
            commas, filled = commas + self._passed(len(self._window)), filled or self._holds(len(self._window))
            self._at = len(self._window)
            if not self._more():
                raise self._ends()
        commas, filled = commas + self._passed(end), filled or self._holds(end)
        self._at = end + 1
        return ListPlace(begin, self.position - 1, commas + 1 if filled else 0)

    def finish(self) -> None:
        """Raises JsonError where something follows."""
        if self.next():
            raise JsonError(f"is not JSON: something follows its end at byte {self.position:,}")

    def _passed(self, end: int) -> int:
        """The commas up to there."""
        if self._window.find(b"[", self._at, end) >= 0:
            raise JsonError(
                f"has a bracket among values, before byte {self._start + end:,}, that should be one flat list"
            )
        return self._window.count(b",", self._at, end)

    def _holds(self, end: int) -> bool:
        """Whether the window has more than blanks up to there."""
        blank = _BLANK.match(self._window, self._at, end)
        return blank is not None and blank.end() < end

    def _expect(self, sign: bytes) -> None:
        found = self.next()
        if not found:
            raise self._ends()
        if found != sign:
            raise JsonError(f"is not JSON: `{sign.decode()}` is missing at byte {self.position:,}")
        self._at += 1

    def _matched(self, pattern: re.Pattern[bytes], most_bytes: int, what: str) -> re.Match[bytes]:
        while (found := pattern.match(self._window, self._at)) is None:
            if len(self._window) - self._at > most_bytes:
                raise JsonError(f"is not JSON that is read: what starts at byte {self.position:,} is too long")
            if not self._more(len(self._window) - self._at):
                raise JsonError(f"is not JSON, or cut short: {what} is missing at byte {self.position:,}")
        self._at = found.end()
        return found

    def _more(self, size: int = 0) -> bool:
        """Reads on, by a window or more; what was passed over is forgotten."""
        there = self._start + len(self._window)
        size = min(max(size, WINDOW_BYTES), self._source.size_bytes - there)
        if size <= 0:
            return False
        block = self._source.read(there, size)
        if (zero := block.find(0)) >= 0:
            raise self._fail(f"it has a zero at byte {there + zero:,}, where text should be")
        self._window = self._window[self._at :] + block if self._at < len(self._window) else block
        self._start, self._at = self._start + self._at, 0
        return True

    def _ends(self) -> JsonError:
        return JsonError(
            f"is not JSON, or cut short: it ends at byte {self._source.size_bytes:,} before it is complete"
        )
