"""JSON that strangers wrote, measured before objects are made of it.

An object of one small value takes thirty times the memory of its text. So that no text costs more than a file of its
kind may, what it will take is worked out first, from how often each sign comes in it, which takes next to no time. A
text of many parts can be walked part by part: where each starts and ends is told without making objects of any.

Source: RFC 8259; what values take was measured with CPython 3.11 and is what they take there at most.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

MAX_BUILT_BYTES = 150_000_000
"""Of memory, for a text and all that is made of it."""
MAX_SIGNS = 8_000_000
"""Brackets and quotes in a text that is walked; a tokenizer of 256,000 tokens has three million."""
MAX_DEPTH = 24
"""How deep values may be nested in a text that is walked."""

_COSTS = {b"{": 200, b"[": 80, b",": 20, b":": 100, b'"': 28}
"""Bytes of memory by sign: a dict and a list, a place in a list, a place in a dict, half of a string."""
_NUMBER_BYTES = 28
_MOST_PARTS, _LONG_BYTES = 50_000, 1_000_000
_FOLLOWING = bytes(range(0x80, 0xC0))  # every character has one byte that is none of these
_WIDE, _VERY_WIDE = re.compile(rb"[\xc4-\xff]"), re.compile(rb"[\xf0-\xff]")
_VERY_WIDE_STRING = re.compile(rb'"[^"\xf0-\xff]*+[\xf0-\xff][^"]*+"')
_VERY_WIDE_ESCAPE = re.compile(rb"\\u[dD][89abAB]")

_TEXT = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_SCALAR = rb'[^"\[\]{},:\s]++'
_BLANK = rb"[ \t\n\r]*+"


def _container(depth: int) -> bytes:
    inner = rb'[^"\[\]{}]++|' + _TEXT
    for _ in range(depth):
        inner = rb'[^"\[\]{}]++|' + _TEXT + rb"|[\[{](?:" + inner + rb")*+[\]}]"
    return inner


_LIST = rb"\[(?:" + _container(1) + rb")*+\]"
_LONG = rb"[\[{](?:" + _container(MAX_DEPTH) + rb")*+[\]}]"
_KEY = b"(" + _TEXT + b")" + _BLANK + b":" + _BLANK
_MEMBER = re.compile(
    _BLANK + _KEY + b"(" + _TEXT + b"|" + _SCALAR + b"|" + _LONG + b")" + _BLANK + rb"([,}])", re.DOTALL
)
_OPENED, _SPACES = re.compile(_BLANK + rb"\{(" + _BLANK + rb"\})?"), b" \t\n\r"
_PIECE = re.compile(b"(?:" + _BLANK + b"(?:" + _TEXT + b"|" + _SCALAR + b")" + _BLANK + b",){1,20000}+", re.DOTALL)
KEY = re.compile(_KEY, re.DOTALL)
VALUE = re.compile(b"(" + _TEXT + b"|" + _SCALAR + b"(?=.)|" + _LONG + b")", re.DOTALL)
"""A key with its colon, and a value: where they match the start of a text, no later byte changes what they are."""


class JsonError(ValueError):
    """What is wrong with a text, as the rest of a sentence that starts with what it is."""


def parse(
    data: bytes | bytearray,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constants: bool = True,
    most_built_bytes: int = MAX_BUILT_BYTES,
) -> Any:
    """The value that a text is.

    Args:
        pairs: makes an object of its members, as of `json.loads`. It may raise `JsonError`.
        constants: whether NaN and the infinities are taken, which are no JSON, although Python writes them.
        most_built_bytes: how much memory the text may take, and all that is made of it.

    Raises:
        JsonError: it is no JSON, or takes more memory than is allowed.
    """
    if (zero := data.find(0)) >= 0:
        raise JsonError(f"is not JSON: it has a zero at byte {zero:,}")
    if len(data) + built_bytes(data) > most_built_bytes:
        raise JsonError("has more values than any file of its kind")
    try:
        text = data.decode()
        del data  # a caller that has no name for it has let go of it as well
        return json.loads(text, object_pairs_hook=pairs, parse_constant=None if constants else _refused)
    except JsonError:
        raise
    except RecursionError as error:
        raise JsonError("is not JSON that can be read: it is nested too deep") from error
    except ValueError as error:
        raise JsonError(f"is not JSON: {_told(error)}") from error


def parse_object(data: bytes | bytearray, pairs: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """The object that a text is, read member by member, so that only one of them is there as text and as objects.

    Raises:
        JsonError: it is no object, or takes more memory than is allowed.
    """
    found: list[tuple[str, Any]] = []
    spent = len(data)
    for key, member in members(data, _MEMBER):
        value = member[2]
        left = MAX_BUILT_BYTES - spent
        spent += len(value) + _kept_bytes(value)
        if spent > MAX_BUILT_BYTES or len(found) >= _MOST_PARTS:
            raise JsonError("has more values than any file of its kind")
        spent -= len(value)
        pieces = [parse(piece, pairs=pairs, constants=False, most_built_bytes=left) for piece in _pieces(value)]
        found.append((key, pieces[0] if len(pieces) == 1 else list(chain.from_iterable(pieces))))
    return pairs(found)


def _pieces(value: bytes) -> Iterator[bytes]:
    """A value, or what it is cut into if it is a long list: lists of some of its values."""
    at = 1
    while value.startswith(b"[") and len(value) > _LONG_BYTES and (piece := _PIECE.match(value, at)) is not None:
        yield b"[" + piece[0][:-1] + b"]"
        at = piece.end()
    if at > 1 and value[at:].strip(_SPACES) == b"]":
        raise JsonError("is not JSON: a list ends with a comma")
    yield b"[" + value[at:] if at > 1 else value


def without_list(data: bytearray, key: str) -> None:
    """Empties the first list that stands under this key, however deep, where nobody asks what is in it."""
    if _signs(data) > MAX_SIGNS:
        return
    name = re.escape(json.dumps(key).encode())
    found = re.search(name + _BLANK + b":" + _BLANK + b"(" + _LIST + b")", data, re.DOTALL)
    if found is not None:
        data[slice(*found.span(1))] = b"[]"


def built_bytes(data: bytes | bytearray) -> int:
    """What a text takes at most as characters and as objects, in bytes of memory."""
    return _decoded_bytes(data) + _kept_bytes(data)


def _decoded_bytes(data: bytes | bytearray) -> int:
    """All characters of one text take as much as its widest."""
    wide = 4 if _VERY_WIDE.search(data) else 2 if _WIDE.search(data) else 1
    return wide * _count(data)


def _count(data: bytes | bytearray) -> int:
    return len(data) if data.isascii() else len(data.translate(None, _FOLLOWING))


def _kept_bytes(data: bytes | bytearray) -> int:
    """What is left of it: its strings, and objects."""
    strings = (2 if _WIDE.search(data) else 1) * _count(data)
    strings += 2 * sum(map(len, _VERY_WIDE_STRING.findall(data))) if _VERY_WIDE.search(data) else 0
    if b"\\u" in data:
        strings += (3 if _VERY_WIDE_ESCAPE.search(data) else 1) * len(data)
    numbers = max(0, data.count(b",") + data.count(b":") - data.count(b'"') // 2)
    return strings + numbers * _NUMBER_BYTES + sum(cost * data.count(sign) for sign, cost in _COSTS.items())


def members(data: bytes | bytearray, usual: re.Pattern[bytes]) -> Iterator[tuple[str, re.Match[bytes]]]:
    """The members of the object that a text is: each key, with what has its value as its second group.

    What is between the brackets of a value is not looked at, but that brackets and quotes are in pairs. `usual` matches
    most members, and more closely: it has to have a key as its first group and a comma or a bracket as its last.

    Raises:
        JsonError: the text is no object, or has no end.
    """
    if _signs(data) > MAX_SIGNS:
        raise JsonError("has more values than any file of its kind")
    opened = _OPENED.match(data)
    if opened is None:
        raise JsonError("is not JSON, or no JSON object")
    at, closed = opened.end(), opened[1] is not None
    while not closed:
        found = usual.match(data, at) or _MEMBER.match(data, at)
        if found is None:
            raise JsonError(_broken(data, at))
        yield key_of(found[1]), found
        at, closed = found.end(), found[found.lastindex or 0] == b"}"
    if after := data[at:].lstrip(_SPACES):
        raise JsonError(f"is not JSON: something follows its end at byte {len(data) - len(after):,}")


def _signs(data: bytes | bytearray) -> int:
    return sum(data.count(sign) for sign in (b"{", b"[", b'"'))


def key_of(text: bytes) -> str:
    """The key that stands between quotes.

    Raises:
        JsonError: it is not UTF-8, or no text.
    """
    if b"\\" in text:
        return str(parse(text))
    try:
        return text[1:-1].decode()
    except UnicodeDecodeError as error:
        raise JsonError("is not JSON: it is not UTF-8") from error


def _broken(data: bytes | bytearray, at: int) -> str:
    left = data[at:].lstrip(_SPACES)
    if not left:
        return f"is not JSON: it ends at byte {len(data):,}, before it is complete"
    return (
        f"is not JSON: at byte {len(data) - len(left):,} there is no key with a value, or one that has no end or is "
        f"nested more than {MAX_DEPTH} deep"
    )


def is_half(text: str) -> bool:
    """Whether there is half of a surrogate pair in a string, which JSON can escape and no text has."""
    return not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)


def _refused(name: str) -> Any:
    raise JsonError(f"is not JSON: {name} is no JSON")


def _told(error: ValueError) -> str:
    """What is wrong in words that are not about Python."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return "it starts with a byte order mark" if "BOM" in error.msg else str(error)
    return "it has a number of thousands of digits"  # beyond them Python takes none, since that is slow
