"""What is missing of a zip file that was cut short, as far as its start tells.

The directory of a zip is at its end, so a file that is cut has none. But before each entry stands its name, and often
its size; of a file of torch.save the size stands after the data, and its pickle, the first entry, says how large the
others are. So the entries are walked from the first one to the one that the file ends in.

Source: as `zips`.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.zips import (
    CENTRAL,
    CENTRAL_MAGIC,
    DESCRIBED,
    END,
    END_64,
    END_64_MAGIC,
    FULL_32,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR_64,
    MAX_ENTRIES,
    ZIP64_FIELD,
)

DESCRIPTOR_MAGIC = b"PK\x07\x08"
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR_64_BYTES = 24
_MOST_HEADER_BYTES = 4096
_MOST_SEARCHED = 4096, 32_000_000
"""How far ahead the end of an entry is looked for that does not say its size; and of the pickle."""

Lengths = Callable[[bytes], Mapping[str, int]]
"""How many bytes entries have at least, by their names in the folder of the zip, from what its pickle says."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """An entry as its own header has it; `size` is None where that stands after the data."""

    name: str
    data_at: int
    size: int | None
    described: bool

    @property
    def key(self) -> str:
        """Its name in the folder of the zip."""
        return self.name.partition("/")[2]


def missing_bytes(source: FileSource, pickle: str, lengths: Lengths) -> str:
    """What can be said of a zip without its end, as the end of a sentence that says so; nothing where its start says
    nothing. `pickle` is the name of the entry that `lengths` reads.
    """
    known: dict[str, int] = {}
    seen = set[str]()
    at = 0
    for _ in range(MAX_ENTRIES):
        begun = _begun(source, at)
        if begun is None or begun.key in seen:
            return _nothing_more(source, at, _left(known, seen), len(seen))
        _look_up(source, begun, begun.key == pickle, known, lengths)
        if begun.key not in known:
            return ""
        end = begun.data_at + known[begun.key]
        seen.add(begun.key)
        if end > source.size_bytes:
            lacking = end - source.size_bytes + _left(known, seen)
            return f": at least {lacking:,} bytes are missing, and its entry {begun.name[:80]} goes on to byte {end:,}"
        at = _after_descriptor(source, end) if begun.described else end
    return ""


def _look_up(source: FileSource, begun: _Begun, is_pickle: bool, known: dict[str, int], lengths: Lengths) -> None:
    """Adds the size of an entry, if it is found: where it stands after the data, by a search."""
    if begun.size is not None:
        known[begun.key] = begun.size
    elif begun.key not in known:
        data = _up_to_descriptor(source, begun.data_at, _MOST_SEARCHED[is_pickle])
        if data is not None:
            known |= {**(lengths(data) if is_pickle else {}), begun.key: len(data)}


def _left(known: Mapping[str, int], seen: set[str]) -> int:
    """The bytes of the entries that were not come upon."""
    return sum(size for name, size in known.items() if name not in seen)


def _nothing_more(source: FileSource, at: int, left: int, entries: int) -> str:
    """What is said where no entry begins, after so many."""
    if left:
        return f": at least {left:,} bytes are missing after byte {min(at, source.size_bytes):,}"
    is_directory = at + 4 <= source.size_bytes and source.read(at, 4) == CENTRAL_MAGIC
    if not is_directory or (lacking := _end_of_directory(source, at, entries) - source.size_bytes) <= 0:
        return ""
    return f": its entries are whole, and at least {lacking:,} bytes of the directory after them are missing"


def _end_of_directory(source: FileSource, at: int, entries: int) -> int:
    """Where a zip ends at least whose directory starts at a byte; each entry in it says how long it is."""
    block = source.read(at, min(_MOST_SEARCHED[1], source.size_bytes - at))
    place = 0
    while block.startswith(CENTRAL_MAGIC, place) and place + CENTRAL.size <= len(block):
        place += CENTRAL.size + sum(CENTRAL.unpack_from(block, place)[10:13])  # its name, extra fields and comment
        entries -= 1
    wide = END_64.size + LOCATOR_64.size if block.startswith(END_64_MAGIC, place) else 0
    return at + place + max(entries, 0) * CENTRAL.size + wide + END.size


def _begun(source: FileSource, at: int) -> _Begun | None:
    """The entry whose header starts at a byte; None where none does."""
    block = source.read(at, max(min(_MOST_HEADER_BYTES, source.size_bytes - at), 0)) if at < source.size_bytes else b""
    if len(block) < LOCAL.size or not block.startswith(LOCAL_MAGIC):
        return None
    _, _, flags, method, _, _, _, packed, _, name_bytes, extra_bytes = LOCAL.unpack_from(block)
    name_end = LOCAL.size + name_bytes
    name = block[LOCAL.size : name_end].decode(errors="replace")
    if packed == FULL_32:
        packed = _wide(block[name_end : name_end + extra_bytes])
    unknown = packed is None or (flags & DESCRIBED and not packed)
    if method or not name.isprintable():
        return None  # not as torch writes it
    return _Begun(name, at + name_end + extra_bytes, None if unknown else packed, bool(flags & DESCRIBED))


def _wide(extra: bytes) -> int | None:
    """The packed size in the field of zip64, which comes after the other size."""
    kind, length = struct.unpack_from("<2H", extra) if len(extra) >= 20 else (0, 0)
    return int.from_bytes(extra[12:20], "little") if kind == ZIP64_FIELD and length >= 16 else None


def _up_to_descriptor(source: FileSource, start: int, most_bytes: int) -> bytes | None:
    """The data that is followed by a descriptor that says how long it is; None if there is none."""
    if start >= source.size_bytes:
        return None
    data = source.read(start, min(most_bytes, source.size_bytes - start))
    found = data.find(DESCRIPTOR_MAGIC)
    while 0 <= found <= len(data) - _DESCRIPTOR.size:
        if _DESCRIPTOR.unpack_from(data, found)[2:] == (found, found):
            return data[:found]
        found = data.find(DESCRIPTOR_MAGIC, found + 1)
    return None


def _after_descriptor(source: FileSource, end: int) -> int:
    """Where the descriptor at a byte ends: its sizes take four bytes each, or eight in a large file."""
    wide = end + _DESCRIPTOR_64_BYTES
    follows = source.read(wide, 4) if wide + 4 <= source.size_bytes else b""
    return wide if follows in (LOCAL_MAGIC, CENTRAL_MAGIC) else end + _DESCRIPTOR.size
