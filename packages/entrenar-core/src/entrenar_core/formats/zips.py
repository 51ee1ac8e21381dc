"""Reads the directory of a zip file whose entries lie in it as they are, so that their bytes can be read in place.

A zip says everything twice, in its directory and before each entry, and readers differ in which they believe. A file
in which two readers could see two things is refused: entries that overlap or leave holes, that the directory and their
headers tell apart, that are compressed or encrypted, and names that differ in case alone, which torch does not tell
apart.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from entrenar_core.errors import ModelError
from entrenar_core.formats.sources import FileSource, Source

MAX_ENTRIES = 40_000
MAX_DIRECTORY_BYTES = 8_000_000
TAIL_BYTES = 65_536
"""Of the end, read at once: its records, and of most files the directory."""

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR_64 = struct.Struct("<4sIQI")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END_64_MAGIC, LOCATOR_64_MAGIC = b"PK\x06\x06", b"PK\x06\x07"
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF
"""Where these stand, a longer number stands in a field or a record of zip64."""
ZIP64_FIELD = 1
DESCRIBED, UTF_8 = 0x0008, 0x0800
"""Flags: a descriptor with the sizes follows the data; the name is UTF-8."""
_DESCRIPTOR_BYTES, _DESCRIPTOR_64_BYTES = 16, 24
_BRIDGED_BYTES, _WINDOW_BYTES = 4096, 1 << 20
_MOST_EXTRA_BYTES, _READ_EXTRA_BYTES, _MOST_FIELDS = 0xFFFF, 1024, 16
_MAX_NAME_LETTERS = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a zip: its header is at byte `header`, its `size_bytes` bytes are from `offset` on."""

    name: str
    flags: int
    method: int
    checksum: int
    packed_bytes: int
    size_bytes: int
    header: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The first byte after its data."""
        return self.offset + self.size_bytes

    @property
    def data_from(self) -> int:
        """Where its data starts at the earliest."""
        return self.header + LOCAL.size + len(self.name.encode())


class Archive:
    """The entries of a zip, by their names in the one folder that they all are in."""

    def __init__(
        self,
        source: Source,
        fail: Callable[[str], ModelError],
        expect: Callable[[Sequence[str]], None],
        missing: Callable[[], str],
    ) -> None:
        """Reads the directory. `expect` is shown all names before anything is said of the entries: it may refuse.
        `missing` says what is missing where the end of the file is, as the end of a sentence that says so.

        Of a file on this machine every header is held against it. Elsewhere, where each would be a request, the places
        of the data follow from the directory, since entries leave no holes; `read` checks the header of what it reads.

        Raises:
            ModelError: it is no zip, or not one that every reader reads alike.
        """
        self.source, self.fail, self.missing = source, fail, missing
        start, directory, count = self._directory()
        entries = sorted(self._listed(directory, count), key=lambda entry: entry.header)
        expect([entry.name for entry in entries])
        self.folder = entries[0].name.partition("/")[0]
        self._require_plain(entries)
        if entries[0].header:
            raise fail(f"{entries[0].header:,} bytes lie before its first entry")
        ends = [*(entry.header for entry in entries[1:]), start]
        headers = self._headers(entries) if isinstance(source, FileSource) else iter([None] * count)
        placed = [self._placed(*found) for found in zip(entries, ends, headers, strict=True)]
        self.entries: Mapping[str, Entry] = {entry.name[len(self.folder) + 1 :]: entry for entry in placed}

    def read(self, name: str, most_bytes: int) -> bytes:
        """The bytes of an entry, held against its header and its checksum.

        Raises:
            ModelError: it is larger than `most_bytes`, or damaged.
        """
        entry = self.entries[name]
        if entry.size_bytes > most_bytes:
            raise self.fail(f"{entry.name} has {entry.size_bytes:,} bytes, and at most {most_bytes:,} are read")
        block = self.source.read(entry.header, entry.end - entry.header)
        if entry.header + self._header_bytes(entry, block) != entry.offset:
            raise self.fail(f"the header of {entry.name} has another length than the directory leaves for it")
        data = block[entry.offset - entry.header :]
        if entry.checksum and zlib.crc32(data) != entry.checksum:  # torch writes 0 where it was told not to sum
            raise self.fail(f"{entry.name} is damaged: its checksum is another")
        return data

    def _directory(self) -> tuple[int, bytes, int]:
        """Where the directory starts, its bytes, and how many entries it has."""
        size = self.source.size_bytes
        if size < END.size:
            raise self.fail(f"it has {size} bytes")
        tail_start = size - min(size, TAIL_BYTES)
        tail = self.source.read(tail_start, size - tail_start)
        magic, *short, comment = END.unpack(tail[-END.size :])
        numbers: Sequence[int] = short
        if magic != END_MAGIC or comment:
            if 0 <= tail.find(END_MAGIC) <= len(tail) - END.size:
                raise self.fail("bytes follow its end record")
            raise self.fail(f"it has no end record; it may be cut short{self.missing()}")
        end = size - END.size
        locator = len(tail) - END.size - LOCATOR_64.size
        if locator >= END_64.size and tail.startswith(LOCATOR_64_MAGIC, locator):
            end -= LOCATOR_64.size + END_64.size
            numbers = self._end_64(tail[locator - END_64.size : -END.size], end, short)
        disk, first_disk, count_here, count, directory_bytes, start = numbers
        if disk or first_disk or count_here != count:
            raise self.fail("it is one of several parts")
        if start + directory_bytes != end:
            raise self.fail("its directory does not reach up to its end record")
        if not 0 < count <= MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
            raise self.fail(f"a directory of {count:,} entries in {directory_bytes:,} bytes")
        inside = start >= tail_start
        directory = tail[start - tail_start : end - tail_start] if inside else self.source.read(start, directory_bytes)
        return start, directory, count

    def _end_64(self, records: bytes, start: int, short: Sequence[int]) -> Sequence[int]:
        """The numbers of the end record of zip64 at byte `start`; those of the short one must not contradict them."""
        magic, rest, _, _, *wide = END_64.unpack(records[: END_64.size])
        _, disk, place, disks = LOCATOR_64.unpack(records[END_64.size :])
        if (magic, rest, place, disk) != (END_64_MAGIC, END_64.size - 12, start, 0) or disks > 1:
            raise self.fail("the two parts of its end record do not fit")
        full = (*[FULL_16] * 4, *[FULL_32] * 2)
        if any(told not in (number, limit) for told, number, limit in zip(short, wide, full, strict=True)):
            raise self.fail("the two parts of its end record contradict each other")
        return wide

    def _listed(self, directory: bytes, count: int) -> Iterator[Entry]:
        """The entries as the directory has them; where their data lies it does not say."""
        at = 0
        for _ in range(count):
            if len(directory) - at < CENTRAL.size:
                raise self.fail("its directory ends too early")
            fields = CENTRAL.unpack_from(directory, at)
            name_bytes, extra_bytes, comment_bytes, disk = fields[10:14]
            name_at, extra_at = at + CENTRAL.size, at + CENTRAL.size + name_bytes
            at = extra_at + extra_bytes
            if fields[0] != CENTRAL_MAGIC or at > len(directory):
                raise self.fail("its directory is damaged")
            if disk or comment_bytes:
                raise self.fail("its directory has comments, or speaks of other disks")
            yield self._entry(directory[name_at:extra_at], fields, directory[extra_at:at])
        if at != len(directory):
            raise self.fail("its directory goes on after its last entry")

    def _entry(self, raw: bytes, fields: Sequence[int], extra: bytes) -> Entry:
        flags, method, checksum, packed, size, header = (fields[place] for place in (3, 4, 7, 8, 9, 16))
        try:
            name = raw.decode("utf-8" if flags & UTF_8 else "ascii")
        except UnicodeDecodeError as error:
            raise self.fail(f"the name {ascii(raw)[:80]} of an entry is not UTF-8") from error
        size, packed, header = self._widened((size, packed, header), extra)
        return Entry(name, flags, method, checksum, packed, size, header)

    def _widened(self, numbers: Sequence[int], extra: bytes) -> Sequence[int]:
        """The numbers; those that did not fit are in the zip64 field among the extra ones."""
        missing = sum(number == FULL_32 for number in numbers)
        if not missing:
            return numbers
        at, wide = 0, list[int]()
        for _ in range(_MOST_FIELDS):
            if wide or at + 4 > len(extra):
                break
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == ZIP64_FIELD:
                wide = [number for (number,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            at += 4 + length
        if len(wide) < missing:
            raise self.fail("the size or the place of an entry is missing")
        following = iter(wide)
        return [next(following) if number == FULL_32 else number for number in numbers]

    def _headers(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The header of each entry without its extra fields; those that lie near each other are read at once."""
        groups: list[list[tuple[int, int]]] = []
        for entry in entries:
            start, end = entry.header, entry.data_from
            near = groups and start - groups[-1][-1][1] <= _BRIDGED_BYTES and end - groups[-1][0][0] <= _WINDOW_BYTES
            if near:
                groups[-1].append((start, end))
            else:
                groups.append([(start, end)])
        for group in groups:
            first = group[0][0]
            block = self.source.read(first, max(end for _, end in group) - first)
            yield from (block[start - first : end - first] for start, end in group)

    def _placed(self, entry: Entry, end: int, block: bytes | None) -> Entry:
        """The entry with the place of its data, which must fill what there is up to `end`."""
        if block is None:
            long = max(entry.size_bytes, entry.header) >= FULL_32
            described = entry.flags & DESCRIBED and entry.size_bytes
            after = (_DESCRIPTOR_64_BYTES if long else _DESCRIPTOR_BYTES) if described else 0
            offset = end - after - entry.size_bytes
        else:
            offset = entry.header + self._header_bytes(entry, block)
            after = end - offset - entry.size_bytes
        if after < 0 or offset < entry.data_from:
            raise self.fail(f"{entry.name} overlaps what follows it")
        lengths = (_DESCRIPTOR_BYTES, _DESCRIPTOR_64_BYTES) if entry.flags & DESCRIBED else (0,)
        hole = after not in lengths and (after or entry.size_bytes)
        if hole or offset - entry.data_from > _MOST_EXTRA_BYTES:
            raise self.fail(f"bytes that belong to no entry lie between {entry.name} and what follows it")
        return replace(entry, offset=offset)

    def _header_bytes(self, entry: Entry, block: bytes) -> int:
        """How long the header of an entry is, which must say what the directory says."""
        magic, _, flags, method, _, _, checksum, packed, size, name_bytes, extra_bytes = LOCAL.unpack_from(block)
        name = entry.name.encode()
        if (magic, flags, method) != (LOCAL_MAGIC, entry.flags, 0):
            raise self.fail(f"{entry.name} has no header where the directory says, or a different one")
        if name_bytes != len(name) or block[LOCAL.size : LOCAL.size + name_bytes] != name:
            raise self.fail(f"{entry.name} has another name in its header")
        length: int = LOCAL.size + name_bytes + extra_bytes
        told_after = flags & DESCRIBED and not (checksum or packed or size)
        sizes: Sequence[int] = size, packed
        if FULL_32 in sizes:
            sizes = self._widened(sizes, self.source.read(entry.data_from, min(extra_bytes, _READ_EXTRA_BYTES)))
        if not told_after and (checksum, *sizes) != (entry.checksum, entry.size_bytes, entry.size_bytes):
            raise self.fail(f"{entry.name} has another size or checksum in its header")
        return length

    def _require_plain(self, entries: Sequence[Entry]) -> None:
        """Entries whose bytes lie there as they are, with names that no reader confuses; torch's ignores case."""
        seen: set[str] = set()
        for entry in entries:
            name, parts = entry.name, entry.name.split("/")
            odd = not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(parts)
            if odd or len(parts) < 2 or parts[0] != self.folder or len(name) > _MAX_NAME_LETTERS:
                raise self.fail(f"the entry {ascii(name)[:80]} is not inside its one folder")
            if entry.flags & 1:
                raise self.fail(f"{name} is encrypted")
            if entry.method or entry.packed_bytes != entry.size_bytes:
                raise self.fail(f"{name} is compressed, so that its bytes cannot be read where they lie")
            if entry.flags & ~(DESCRIBED | UTF_8):
                raise self.fail(f"{name} has the flags {entry.flags:#x}, which no plain entry has")
            if name.lower() in seen:
                raise self.fail(f"{name} comes twice")
            seen.add(name.lower())
