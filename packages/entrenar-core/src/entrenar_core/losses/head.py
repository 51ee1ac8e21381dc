"""A model's last layer: from hidden states to logits, and a gradient back through what is not linear in it.

Shapes: N rows, H width, V tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from entrenar_core.losses.sums import at_least_fp32


@dataclass(frozen=True, slots=True)
class Head:
    """From hidden states to logits: z = cap · tanh(scale · (h Wᵀ + b) / cap), the cap only where there is one."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def logits_of_rows(hidden_NH: Tensor, head: Head, vocabulary: int, *, out_NV: Tensor | None = None) -> Tensor:
    """Of the first tokens, in fp32 or better; in `out_NV`, where it is given, which is not differentiable."""
    dtype = compute_dtype(hidden_NH, head.weight_VH)
    hidden_NH, weight_VH = hidden_NH.to(dtype), head.weight_VH[:vocabulary].to(dtype)
    bias_V = None if head.bias_V is None else head.bias_V[:vocabulary].to(dtype)
    if out_NV is None:
        logits_NV = at_least_fp32(F.linear(hidden_NH, weight_VH, bias_V))
    elif out_NV.dtype != dtype:
        logits_NV = out_NV.copy_(F.linear(hidden_NH, weight_VH, bias_V))
    elif bias_V is None:
        logits_NV = torch.mm(hidden_NH, weight_VH.T, out=out_NV)
    else:
        logits_NV = torch.addmm(bias_V, hidden_NH, weight_VH.T, out=out_NV)
    if head.scale != 1:
        logits_NV.mul_(head.scale)
    if head.softcap is not None:
        logits_NV.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits_NV


class LogitTiles:
    """Logits of one tile of rows after the other, in one buffer: fresh memory costs a CPU as much as a pass over it.

    A tile that is larger than those before it takes another. What is done to the logits of a tile is gone with the
    next.
    """

    def __init__(self, hidden_NH: Tensor, head: Head, vocabulary: int) -> None:
        self.hidden_NH, self.head, self.vocabulary = hidden_NH, head, vocabulary
        self.buffer_NV: Tensor | None = None

    def logits(self, tile: slice) -> Tensor:
        """Of the tile's rows and the first tokens, in fp32 or better, not differentiable."""
        rows_NH = self.hidden_NH[tile]
        if self.buffer_NV is None or len(self.buffer_NV) < len(rows_NH):
            self.buffer_NV = logits_of_rows(rows_NH, self.head, self.vocabulary)
            return self.buffer_NV
        return logits_of_rows(rows_NH, self.head, self.vocabulary, out_NV=self.buffer_NV[: len(rows_NH)])


def through_head_(gradient_NV: Tensor, logits_NV: Tensor, head: Head) -> None:
    """Turns a gradient in the logits into one in h Wᵀ + b; d tanh = 1 − tanh²."""
    if head.softcap is not None:
        gradient_NV.mul_(logits_NV.div_(head.softcap).square_().neg_().add_(1))
    if head.scale != 1:
        gradient_NV.mul_(head.scale)


def compute_dtype(hidden_NH: Tensor, weight_VH: Tensor) -> torch.dtype:
    """What a linear layer would compute in: autocast's, else that of the weights."""
    device = hidden_NH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype
