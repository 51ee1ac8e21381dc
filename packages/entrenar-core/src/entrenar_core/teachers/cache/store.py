"""A cache as one thing: its rows, and where each of them is, in shards or in memory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from entrenar_core.teachers.cache.shards import Arrays, Shard


class RowStore(Protocol):
    """Rows by their keys."""

    def __len__(self) -> int: ...

    def place(self, key: bytes) -> int | None:
        """The place of a row, None where it is not here."""
        ...

    def read(self, place: int) -> Arrays:
        """What is kept of a row.

        Raises:
            DataError: it is not what was written.
        """
        ...

    def gathered(self, places: Iterable[int]) -> Arrays:
        """Some rows, one behind the other; raises as `read`."""
        ...


class MemoryStore:
    """Rows that are held in memory."""

    def __init__(self, rows: Mapping[bytes, Arrays]) -> None:
        self._places = {key: place for place, key in enumerate(rows)}
        self._rows = list(rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, key: bytes) -> int | None:
        """As `RowStore.place`."""
        return self._places.get(key)

    def read(self, place: int) -> Arrays:
        """As `RowStore.read`."""
        return self._rows[place]

    def gathered(self, places: Iterable[int]) -> Arrays:
        """As `RowStore.gathered`."""
        return _joined([self._rows[place] for place in places]) or _nothing(self._rows[0])


class Store:
    """Rows of several shards by their keys.

    The keys are kept sorted by their first half, 24 bytes a row, and compared in full.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shards = [Shard(file) for file in files]
        keys_RK = np.concatenate([np.array(shard.keys_RK) for shard in self.shards] or [np.empty((0, 16), np.uint8)])
        halves_R2 = keys_RK.view("<u8").reshape(-1, 2)
        order = np.argsort(halves_R2[:, 0], kind="stable")
        self._first, self._second = halves_R2[order, 0], halves_R2[order, 1]
        self._places = order.astype(np.int64)
        self._ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._first)

    def place(self, key: bytes) -> int | None:
        """The place of a row, None where it is not here."""
        first, second = np.frombuffer(key, "<u8")
        at = int(np.searchsorted(self._first, first))
        while at < len(self._first) and self._first[at] == first:
            if self._second[at] == second:
                return int(self._places[at])
            at += 1
        return None

    def read(self, place: int) -> dict[str, np.ndarray]:
        """What is kept of a row, over the mapped file.

        Raises:
            DataError: it is not what was written.
        """
        shard = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return self.shards[shard].row(place - before)

    def gathered(self, places: Iterable[int]) -> dict[str, np.ndarray]:
        """Some rows, one behind the other, copied; raises as `read`."""
        return _joined([self.read(place) for place in places]) or _nothing(self.read(0))


def _joined(rows: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _nothing(form: Arrays) -> dict[str, np.ndarray]:
    """Of no rows, arrays in the form of one."""
    return {name: values[:0] for name, values in form.items()}
