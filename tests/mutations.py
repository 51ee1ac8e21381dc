"""Changes to the bytes of sound files, as accidents and strangers make them: what fuzzing draws."""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import strategies as st

_NUMBERS = (
    *(0, 1, 2, 7, 63, 64, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1),
)
_CODES = ("<B", "<H", "<I", "<Q")
_VALUE = re.compile(rb'-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|"[^"]*"(?!\s*:)|true|false|null')
_TEXT = re.compile(rb'"[^"]*"')
_SIGN = re.compile(rb"[\[\]{},:]")
_VALUES = (
    *(b"-1", b"0", b"1", b"3", b"0.5", b"1e999", b"-1e999", b"NaN", b"true", b"null", b"[]", b"{}", b'""', b'"3"'),
    *(b'"BF16"', b'"a"', b'"\\ud800"', b'"\\u001b[2J"', b'"../x"', b"18446744073709551616", b"[1]", b'{"a":1}'),
    *(b"9" * 19, b"9" * 400, b"9" * 4000, b"9" * 5000, b"[" * 50 + b"]" * 50),
)
_SIGNS = (b",", b":", b"[", b"]", b"{", b"}")
_LONGEST_RUN = 64


class Edit(NamedTuple):
    """A change: of which kind, where, by what and how far are numbers that are brought into what there is."""

    kind: int
    place: int
    value: int
    width: int


EDITS: st.SearchStrategy[list[Edit]] = st.lists(
    st.builds(Edit, st.integers(0, 2**8), st.integers(0, 2**16), st.integers(0, 2**16), st.integers(0, 2**8)),
    min_size=1,
    max_size=4,
)


@dataclass(frozen=True, slots=True)
class Mutator:
    """Makes changes. `marks` are where numbers stand that say how long, how many, or where; of `others`, pieces are put
    in. Of JSON (`is_text`) it is rather words and signs that are exchanged than bytes.
    """

    is_text: bool
    marks: Sequence[int]
    others: Sequence[bytes]

    def mutated(self, content: bytes, edits: Sequence[Edit]) -> bytes:
        """The content with all edits, one after the other."""
        data = bytearray(content)
        kinds = _OF_TEXT if self.is_text else _OF_BYTES
        for edit in edits:
            if data:
                kinds[edit.kind % len(kinds)](self, data, edit)
        return bytes(data)

    def flip(self, data: bytearray, edit: Edit) -> None:
        data[edit.place % len(data)] ^= 1 << edit.value % 8

    def set(self, data: bytearray, edit: Edit) -> None:
        data[edit.place % len(data)] = edit.value % 256

    def fill(self, data: bytearray, edit: Edit) -> None:
        run = self._run(data, edit)
        data[run] = bytes((255 * (edit.value % 2),)) * len(data[run])

    def drop(self, data: bytearray, edit: Edit) -> None:
        del data[self._run(data, edit)]

    def copy(self, data: bytearray, edit: Edit) -> None:
        at = edit.value % len(data)
        data[at:at] = data[self._run(data, edit)]

    def cut(self, data: bytearray, edit: Edit) -> None:
        del data[edit.place % len(data) :]

    def splice(self, data: bytearray, edit: Edit) -> None:
        other, run = self.others[edit.width % len(self.others)], self._run(data, edit)
        start = edit.value % len(other)
        data[run] = other[start : start + run.stop - run.start]

    def number(self, data: bytearray, edit: Edit) -> None:
        """Writes one of the numbers that counts and lengths are tried with."""
        self._put(data, edit.place % len(data), edit)

    def marked(self, data: bytearray, edit: Edit) -> None:
        """The same where such a number is."""
        places = self.marks or range(len(data))
        self._put(data, places[edit.place % len(places)], edit)

    def value(self, data: bytearray, edit: Edit) -> None:
        """Another value of JSON where one is."""
        _replace(data, _VALUE, edit.place, _VALUES[edit.value % len(_VALUES)])

    def sign(self, data: bytearray, edit: Edit) -> None:
        """Another sign of JSON where one is."""
        _replace(data, _SIGN, edit.place, _SIGNS[edit.value % len(_SIGNS)])

    def exchange(self, data: bytearray, edit: Edit) -> None:
        """A value of JSON that is elsewhere."""
        values = _VALUE.findall(data)
        if values:
            _replace(data, _VALUE, edit.place, values[edit.value % len(values)])

    def rename(self, data: bytearray, edit: Edit) -> None:
        """A text of JSON that is elsewhere, which may be a key."""
        texts = _TEXT.findall(data)
        if texts:
            _replace(data, _TEXT, edit.place, texts[edit.value % len(texts)])

    def _run(self, data: bytearray, edit: Edit) -> slice:
        at = edit.place % len(data)
        return slice(at, at + 1 + edit.width % _LONGEST_RUN)

    def _put(self, data: bytearray, at: int, edit: Edit) -> None:
        code = _CODES[edit.width % len(_CODES)]
        size = struct.calcsize(code)
        data[at : at + size] = struct.pack(code, _NUMBERS[edit.value % len(_NUMBERS)] % 256**size)


def _replace(data: bytearray, what: re.Pattern[bytes], place: int, by: bytes) -> None:
    found = list(what.finditer(data))
    if found:
        chosen = found[place % len(found)]
        data[chosen.start() : chosen.end()] = by


_Kinds = tuple[Callable[[Mutator, bytearray, Edit], None], ...]
_ANY: _Kinds = (Mutator.drop, Mutator.copy, Mutator.cut, Mutator.splice)
# How often a kind is there says how often it is drawn.
_OF_BYTES: _Kinds = (
    *_ANY, *(Mutator.flip, Mutator.set) * 2, Mutator.fill, *(Mutator.number,) * 3, *(Mutator.marked,) * 5,
)  # fmt: skip
_OF_TEXT: _Kinds = (
    *_ANY, Mutator.flip, Mutator.set, *(Mutator.sign,) * 2,
    *(Mutator.value,) * 16, *(Mutator.exchange, Mutator.rename) * 5,
)  # fmt: skip
