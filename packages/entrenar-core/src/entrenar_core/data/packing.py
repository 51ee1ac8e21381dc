"""Which examples share a row, so that rows are of one length and almost nothing is padded.

Examples are put, the longest first, each into the fullest row that still has room for it. Which lengths share a row
hangs on the lengths alone, so every epoch has as many rows; which examples of these lengths they are, on seed and
epoch, too.

Source: best fit decreasing, Johnson et al. 1974; for sequences, Krell et al. 2021, "Efficient Sequence Packing without
Cross-contamination".

Shapes: N examples.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import torch

from entrenar_core.data.chance import mixed


class Packing:
    """Rows of at most `capacity` tokens for examples of these lengths.

    Raises:
        ValueError: an example is longer than a row.
    """

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.lengths_N = torch.tensor(lengths, dtype=torch.long)
        longest_first = self.lengths_N.sort(descending=True).values.tolist()
        self.row_of_N = best_fit(longest_first, capacity)
        """The row of the n-th longest example."""
        self.capacity = capacity
        self.filled: list[int] = [0] * (1 + max(self.row_of_N, default=-1))
        """How many tokens each row has."""
        for length, row in zip(longest_first, self.row_of_N, strict=True):
            self.filled[row] += length

    def __len__(self) -> int:
        return len(self.filled)

    @property
    def fill(self) -> float:
        """The share of all places that hold a token; 1 where there is no row."""
        return sum(self.filled) / (len(self) * self.capacity) if self.filled else 1.0

    def rows(self, *, seed: int, epoch: int) -> list[list[int]]:
        """The examples of each row: every one in one of them."""
        generator = torch.Generator().manual_seed(mixed(seed, f"company of epoch {epoch}"))
        order_N = torch.randperm(len(self.lengths_N), generator=generator)
        longest_first_N = order_N[self.lengths_N[order_N].argsort(descending=True, stable=True)]
        rows: list[list[int]] = [[] for _ in range(len(self))]
        for example, row in zip(longest_first_N.tolist(), self.row_of_N, strict=True):
            rows[row].append(example)
        return rows


def best_fit(lengths: Iterable[int], capacity: int) -> list[int]:
    """The number of the row that each length goes into: the fullest with room for it, or else a new one.

    Raises:
        ValueError: a length is more than the capacity.
    """
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of `with_room`, in order
    found: list[int] = []
    rows = 0
    for length in lengths:
        if length > capacity:
            raise ValueError(f"an example of {length} tokens does not fit into a row of {capacity}")
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        else:
            room, row, rows = capacity, rows, rows + 1
        found.append(row)
        left = room - length
        if left and left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        if left:
            with_room[left].append(row)
    return found
