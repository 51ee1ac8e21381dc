"""Batches of rows of different lengths, padded in every way, for tests of losses between hidden states."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

Side = Literal["left", "right", "both"]
Rows = list[np.ndarray]


def rows(lengths: Sequence[int], width: int, seed: int = 0, scale: float = 1.0) -> Rows:
    """The real hidden states of each row, (length, width), in float64."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(length, width)) * scale for length in lengths]


class Padded(NamedTuple):
    hidden_BTH: torch.Tensor
    mask_BT: torch.Tensor


def padded(
    of_rows: Rows, side: Side = "right", extra: int = 0, filling: float = math.nan, dtype: torch.dtype = torch.float64
) -> Padded:
    """A batch of such rows, as long as the longest and `extra` positions, whose padding holds `filling`."""
    longest = max((len(row) for row in of_rows), default=0) + extra
    hidden_BTH = torch.full((len(of_rows), longest, of_rows[0].shape[1]), filling, dtype=dtype)
    mask_BT = torch.zeros(len(of_rows), longest, dtype=torch.bool)
    for index, row in enumerate(of_rows):
        space = longest - len(row)
        start = {"right": 0, "left": space, "both": space // 2}[side]
        hidden_BTH[index, start : start + len(row)] = torch.from_numpy(row).to(dtype)
        mask_BT[index, start : start + len(row)] = True
    return Padded(hidden_BTH, mask_BT)


def masks(longest: int, most_rows: int = 3) -> st.SearchStrategy[torch.Tensor]:
    """Real positions of up to so many rows, each a run of at least one, with padding on any side: (B, T)."""
    ends = st.tuples(st.integers(0, longest - 1), st.integers(1, longest))
    row = ends.map(lambda at: [at[0] <= position < at[0] + at[1] for position in range(longest)])
    return st.lists(row, min_size=1, max_size=most_rows).map(lambda found: torch.tensor(found).long())


def rotation(width: int, seed: int = 0) -> torch.Tensor:
    """A random orthogonal matrix in float64."""
    random = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(random).Q
