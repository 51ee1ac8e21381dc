"""Sums over the differences of two blocks, in pieces for which all that is made of them stays in a core's own cache.

The sums are those of `difference_sums`, whose way with a whole block takes over where float32 is not enough.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from entrenar_core.measuring.difference_sums import NEGLIGIBLE, DifferenceSums
from entrenar_core.measuring.sums import DOT_VALUES, ONES

Floats32 = NDArray[np.float32]
PIECE_VALUES = 1 << 16
_ROWS = PIECE_VALUES // DOT_VALUES


class Pieces:
    """The room that pieces are worked on in. What is found of each row of a piece has its place in one array."""

    def __init__(self, most: int) -> None:
        """Room for blocks of at most so many pieces."""
        self.apart = np.empty(PIECE_VALUES, np.float32)
        self.apart_rows = self.apart.reshape(_ROWS, DOT_VALUES)
        self.flags = np.empty(PIECE_VALUES, np.bool_)
        self.found = np.empty((4, most * _ROWS), np.float32)
        self.places = [tuple(row[at : at + _ROWS] for row in self.found) for at in range(0, most * _ROWS, _ROWS)]

    def sums(
        self, number: int, decoded: Callable[[int], tuple[Floats32, Floats32]], largest: float
    ) -> DifferenceSums | None:
        """Of b − a, of so many pieces; None where float32 is not enough.

        Args:
            decoded: gives the values a and b of a piece, which may be written over when the next one is asked for.
            largest: the place of a largest difference below this is not looked for, and is then that of no value.
        """
        differing, extremes = 0, []
        with np.errstate(all="ignore"):
            for piece in range(number):
                a, b = decoded(piece)
                more, extreme = self._work(a, b, *self.places[piece])
                differing += more
                extremes.append(extreme)
            square, square_a, product, abs_sum = self.found[:, : number * _ROWS].sum(axis=1, dtype=np.float64).tolist()
        square_b, max_abs = square_a + 2 * product + square, max(extremes)
        least = NEGLIGIBLE * number * PIECE_VALUES
        if not (square_b > square_a / 4 and all(least <= one < math.inf for one in (square, square_a))):
            return None
        at = -1
        if max_abs >= largest:
            at = self._place(extremes.index(max_abs), decoded)
        return DifferenceSums(
            number * PIECE_VALUES, differing, 0, abs_sum, square, square_a, square_b, product, square_a + product,
            max_abs, at,
        )  # fmt: skip

    def _work(
        self, a: Floats32, b: Floats32, square: Floats32, square_a: Floats32, product: Floats32, abs_sum: Floats32
    ) -> tuple[int, float]:
        """Fills the sums of each row in; gives how many values differ, and the largest difference."""
        apart, rows, rows_a = self.apart, self.apart_rows, a.reshape(_ROWS, DOT_VALUES)
        np.subtract(b, a, out=apart)
        np.vecdot(rows, rows, out=square)
        np.vecdot(rows_a, rows_a, out=square_a)
        np.vecdot(rows_a, rows, out=product)
        np.not_equal(apart, 0, out=self.flags)
        np.abs(apart, out=apart)
        np.vecdot(rows, ONES, out=abs_sum)
        return int(np.count_nonzero(self.flags)), float(apart.max())

    def _place(self, piece: int, decoded: Callable[[int], tuple[Floats32, Floats32]]) -> int:
        """Of the largest difference of a piece, which is done once more."""
        a, b = decoded(piece)
        np.subtract(b, a, out=self.apart)
        np.abs(self.apart, out=self.apart)
        return piece * PIECE_VALUES + int(self.apart.argmax())


def bf16_halves(raw: NDArray[np.uint8], room: Floats32) -> Floats32:
    """The values of an even number of BF16: first every other from the first on, then the rest. For sums their order
    does not matter, and two at a time are decoded twice as fast as one by one. `room` is written over.
    """
    pairs = raw.view("<u4")
    half = len(pairs)
    bits = room[: 2 * half].view("<u4")
    np.left_shift(pairs, 16, out=bits[:half])
    np.bitwise_and(pairs, _UPPER, out=bits[half:])
    return room[: 2 * half]


def woven(at: int) -> int:
    """Where a value of `bf16_halves` of whole pieces is, by its place among these."""
    piece, inside = divmod(at, PIECE_VALUES)
    half = PIECE_VALUES // 2
    return piece * PIECE_VALUES + 2 * (inside % half) + inside // half


_UPPER = np.uint32(0xFFFF0000)
