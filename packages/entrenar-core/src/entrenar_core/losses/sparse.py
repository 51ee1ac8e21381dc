"""A teacher of whom only some tokens of each row are known, as caches and servers give them.

Shapes: V vocabulary, K known tokens of a row, J temperatures, N rows that count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.losses.divergence import Core, Local, cross_entropy_hard_core, forward_kl_core
from entrenar_core.losses.selection import Gated, TopK, renormalised, with_tail
from entrenar_core.losses.targets import TargetTiles

_NOTHING = -1e4
"""A log-probability that stands for none: of its infinity nothing can be interpolated."""


@dataclass(frozen=True, slots=True)
class TopKRows:
    """The likeliest tokens of each row, the likeliest first, and what all others have together.

    `log_p_NK` are log-probabilities at temperature 1. At T they are log p / T, less the logarithm of the sum of all of
    them, to which the other tokens add Σ p^β, with β = 1/T: `log_rest_NJ` is the logarithm of that at some β. Between
    these it is interpolated by a polynomial in β, of which it is a smooth, convex function.
    """

    tokens_NK: Tensor
    log_p_NK: Tensor
    log_rest_NJ: Tensor
    betas: Sequence[float]
    vocabulary: int

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return False

    @property
    def columns(self) -> int:
        """As of `Targets`."""
        return self.vocabulary

    def __len__(self) -> int:
        return len(self.tokens_NK)

    def tiles(self, vocabulary: int) -> TargetTiles:
        """As `Targets.tiles`."""
        if vocabulary != self.vocabulary:
            raise ValueError(f"`vocabulary` is {vocabulary}, and the teacher's likeliest are of {self.vocabulary}")
        return _Likeliest(self)

    def log_rest(self, rows: slice, temperature: float) -> Tensor:
        """log Σ p^(1/T) of the tokens that are not known, (rows, 1).

        Raises:
            ValueError: it is known at another temperature alone.
        """
        if len(self.betas) == 1 and not math.isclose(self.betas[0], 1 / temperature):
            raise ValueError(f"what the other tokens have is known at temperature {1 / self.betas[0]:g} alone")
        weights_J = self.log_rest_NJ.new_tensor(interpolation(self.betas, 1 / temperature))
        return (self.log_rest_NJ[rows].clamp_min(_NOTHING) @ weights_J).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Tokens that were drawn from each row's distribution, with the share of the draws that each had, (N, K).

    The shares are an unbiased estimate of the distribution at the temperature of the draws, and so is the gradient of
    a forward KL, which is linear in it. `entropy_N`, in nats, is that of the whole distribution: with it the value is
    unbiased too.

    Source: Anshumann et al. 2025, "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs".
    """

    tokens_NK: Tensor
    shares_NK: Tensor
    entropy_N: Tensor
    preferred_N: Tensor
    temperature: float
    vocabulary: int

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return False

    @property
    def columns(self) -> int:
        """As of `Targets`."""
        return self.vocabulary

    def __len__(self) -> int:
        return len(self.tokens_NK)

    def tiles(self, vocabulary: int) -> TargetTiles:
        """As `Targets.tiles`."""
        if vocabulary < self.vocabulary:
            raise ValueError(f"`vocabulary` is {vocabulary}, and the teacher's draws are of {self.vocabulary}")
        return _Drawn(self)


class _Likeliest:
    def __init__(self, rows: TopKRows) -> None:
        self.rows, self.tile = rows, slice(0, 0)

    def load(self, tile: slice) -> None:
        self.tile = tile

    def local(self, core: Core, log_q_NV: Tensor, rows: slice, temperature: float) -> Local:
        """As `TargetTiles.local`: of a core without a selection, over all that is known, with a tail.

        Raises:
            ValueError: the divergence asks for what is not known: an entropy, or what the student's likeliest tokens
                are to the teacher.
        """
        if isinstance(core, Gated):
            raise ValueError("the entropy of a teacher whose likeliest tokens alone are known is not known")
        places = _within(self.tile, rows)
        tokens_NK, log_p_NK, tail_N1 = self._at(places, temperature, log_q_NV.dtype)
        inner, k, tail = core, tokens_NK.shape[-1], True
        if isinstance(core, TopK):
            inner, k, tail = core.core, min(core.k, k), core.tail
        if inner is cross_entropy_hard_core:
            return _preferring(log_q_NV, tokens_NK[:, :1])
        if not tail:
            return renormalised(inner, log_q_NV, tokens_NK[:, :k], log_p_NK[:, :k])
        tail_N1 = torch.cat([tail_N1, log_p_NK[:, k:]], -1).logsumexp(-1, keepdim=True)
        return with_tail(inner, log_q_NV, tokens_NK[:, :k], log_p_NK[:, :k], tail_N1)

    def _at(self, places: slice, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their log-probabilities, and that of all others, at a temperature."""
        log_p_NK = self.rows.log_p_NK[places].to(dtype) / temperature
        log_rest_N1 = self.rows.log_rest(places, temperature).to(dtype)
        total_N1 = torch.cat([log_p_NK, log_rest_N1], -1).logsumexp(-1, keepdim=True)
        return self.rows.tokens_NK[places].long(), log_p_NK - total_N1, log_rest_N1 - total_N1

    def preferred(self) -> Tensor:
        return self.rows.tokens_NK[self.tile, 0].long()


class _Drawn:
    def __init__(self, rows: SampledRows) -> None:
        self.rows, self.tile = rows, slice(0, 0)

    def load(self, tile: slice) -> None:
        self.tile = tile

    def local(self, core: Core, log_q_NV: Tensor, rows: slice, temperature: float) -> Local:
        """As `TargetTiles.local`.

        Raises:
            ValueError: the divergence is not a forward KL, or the temperature not that of the draws.
        """
        if core is not forward_kl_core:
            raise ValueError("of draws from a teacher, only a forward KL over all tokens is known without bias")
        if temperature != self.rows.temperature:
            drawn = f"{self.rows.temperature:g}"
            raise ValueError(f"the teacher's tokens were drawn at temperature {drawn}, not {temperature:g}")
        places = _within(self.tile, rows)
        tokens_NK, shares_NK = self.rows.tokens_NK[places].long(), self.rows.shares_NK[places].to(log_q_NV.dtype)
        log_q_NK = log_q_NV.gather(-1, tokens_NK)
        values_N = -(shares_NK * log_q_NK).masked_fill_(shares_NK == 0, 0.0).sum(-1) - self.rows.entropy_N[places]
        return Local(values_N, torch.zeros_like(log_q_NV).scatter_add_(-1, tokens_NK, -shares_NK))

    def preferred(self) -> Tensor:
        return self.rows.preferred_N[self.tile].long()


def interpolation(nodes: Sequence[float], at: float) -> list[float]:
    """The weights of the values at `nodes` in the value of their polynomial at a point, by Lagrange's formula.

    Raises:
        ValueError: two nodes are the same, or there is none.
    """
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f"nodes must differ, got {list(nodes)}")
    weights = []
    for node in nodes:
        weight = 1.0
        for other in nodes:
            weight *= 1.0 if other == node else (at - other) / (node - other)
        weights.append(weight)
    return weights


def _preferring(log_q_NV: Tensor, preferred_N1: Tensor) -> Local:
    slopes_NV = torch.zeros_like(log_q_NV).scatter_(-1, preferred_N1, -1.0)
    return Local(-log_q_NV.gather(-1, preferred_N1).squeeze(-1), slopes_NV)


def _within(tile: slice, rows: slice) -> slice:
    """Rows of a tile, counted from its first, as rows of all."""
    start = tile.start or 0
    stop = tile.stop if rows.stop is None else start + rows.stop
    return slice(start + (rows.start or 0), stop)
