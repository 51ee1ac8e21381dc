"""From the hidden states of a batch to the vectors that a loss compares: real tokens, or one vector per row.

Real tokens are picked out before anything is computed. So what padding holds, on which side it is and how much there
is of it changes no bit of what follows, and its gradient is zero.

Masks are bool or 0/1, and may be on the CPU, as a collator makes them, while the hidden states are on a device.

Shapes: B rows, T positions, H width, N vectors, R rows that have a real token.
"""

from typing import Literal

import torch
from torch import Tensor

from entrenar_core.losses.sums import at_least_fp32

Pool = Literal["first", "last", "mean"]
"""Which vector stands for a row: that of its first real token ([CLS]), of its last, or the mean over real tokens."""

Vectors = Literal["first", "last", "mean", "tokens"]
"""What is compared: one vector per row, or every real token."""


def real_tokens(hidden_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The hidden states of the real tokens, (N, H), row after row, in fp32 or better.

    Raises:
        ValueError: the mask is of another size than the batch.
    """
    if hidden_BTH.ndim != 3 or hidden_BTH.shape[:2] != mask_BT.shape:
        raise ValueError(f"hidden states of size {tuple(hidden_BTH.shape)} and a mask of size {tuple(mask_BT.shape)}")
    positions_N = mask_BT.bool().flatten().nonzero().squeeze(-1).to(hidden_BTH.device)
    return at_least_fp32(hidden_BTH.flatten(0, 1).index_select(0, positions_N))


def real_lengths(mask_BT: Tensor) -> Tensor:
    """How many real tokens each row has, (B,).

    Raises:
        ValueError: the mask is not one of rows and positions.
    """
    if mask_BT.ndim != 2:
        raise ValueError(f"a mask of size {tuple(mask_BT.shape)} is not one of rows and positions")
    return mask_BT.bool().sum(1)


def pooled(hidden_BTH: Tensor, mask_BT: Tensor, pool: Pool) -> Tensor:
    """One vector per row, (B, H), in fp32 or better; zeros, which carry no gradient, where a row has no real token.

    Raises:
        ValueError: `pool` is none of first, last and mean; or the mask is of another size than the batch.
    """
    if pool not in ("first", "last", "mean"):
        raise ValueError(f"pool must be first, last or mean, got {pool!r}")
    tokens_NH, lengths_B = real_tokens(hidden_BTH, mask_BT), real_lengths(mask_BT)
    device = tokens_NH.device
    vectors_BH = tokens_NH.new_zeros(len(lengths_B), tokens_NH.shape[-1])
    if pool == "mean":
        sums_BH = vectors_BH.index_add(0, row_of_token(lengths_B, len(tokens_NH)).to(device), tokens_NH)
        return sums_BH / lengths_B.clamp_min(1).unsqueeze(-1).to(device)
    starts_B = lengths_B.cumsum(0) - lengths_B
    rows_R = lengths_B.nonzero().squeeze(-1)
    chosen_R = (starts_B if pool == "first" else starts_B + lengths_B - 1).index_select(0, rows_R)
    return vectors_BH.index_copy(0, rows_R.to(device), tokens_NH.index_select(0, chosen_R.to(device)))


def row_of_token(lengths_B: Tensor, tokens: int) -> Tensor:
    """The row that each of so many real tokens is of, (N,); nothing has to wait until they are counted."""
    rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
    return rows_B.repeat_interleave(lengths_B, output_size=tokens)


def compared_vectors(hidden_BTH: Tensor, mask_BT: Tensor, pool: Vectors) -> Tensor:
    """What of a batch is compared, (N, H), in its order: every real token, or a vector for each row that has one.

    Raises:
        ValueError: as `pooled`.
    """
    if pool == "tokens":
        return real_tokens(hidden_BTH, mask_BT)
    rows_N = real_lengths(mask_BT).nonzero().squeeze(-1).to(hidden_BTH.device)
    return pooled(hidden_BTH, mask_BT, pool).index_select(0, rows_N)
