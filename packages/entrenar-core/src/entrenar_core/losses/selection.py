"""Which of the teacher's tokens and rows a divergence looks at. Each selection makes a divergence of a divergence.

A gate multiplies values and never changes what they are divided by: were it otherwise, the gradient of a row would
depend on which other rows are in its batch.

Shapes: V classes or vocabulary, K selected tokens, N rows that count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.losses.divergence import Core, Local, cross_entropy_hard_core


@dataclass(frozen=True, slots=True)
class TopK:
    """A core of another one over the teacher's likeliest `k` tokens, and over the `tail` of all others as one more."""

    core: Core
    k: int
    tail: bool = True

    def __call__(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        """As a `Core`."""
        if self.k >= log_q_NV.shape[-1]:
            return self.core(log_q_NV, log_p_NV)
        log_p_NK, tokens_NK = log_p_NV.topk(self.k)
        if not self.tail:
            return renormalised(self.core, log_q_NV, tokens_NK, log_p_NK)
        tail_p_N1 = log_p_NV.scatter_(-1, tokens_NK, -torch.inf).logsumexp(-1, keepdim=True)
        return with_tail(self.core, log_q_NV, tokens_NK, log_p_NK, tail_p_N1)


@dataclass(frozen=True, slots=True)
class Gated:
    """A core of another one on rows where the teacher's entropy is above the threshold; zero on others."""

    core: Core
    threshold: float

    def __call__(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        """As a `Core`."""
        below_N = torch.special.entr(log_p_NV.exp()).sum(-1) <= self.threshold
        local = self.core(log_q_NV, log_p_NV)
        return Local(
            local.values_N.masked_fill_(below_N, 0.0), local.slopes_NV.masked_fill_(below_N.unsqueeze(-1), 0.0)
        )


def top_k(core: Core, k: int, *, tail: bool = True) -> TopK:
    """Looks only at the `k` tokens that the teacher finds likeliest.

    With `tail`, all others are one token more, whose probability is the sum of theirs: the divergence is a lower
    bound of the whole one, and pulls on probability that the student spends elsewhere. Without it, both
    distributions are renormalised over the k, and what the student does elsewhere is not seen at all.

    Raises:
        ValueError: `k` is not positive; or is 1 without a tail, where there is nothing to compare; or the divergence is
            `cross_entropy_hard`, which looks at the likeliest token alone, and would take the tail for a token.
    """
    if core is cross_entropy_hard_core:
        raise ValueError("cross_entropy_hard has no top_k: it looks at the teacher's likeliest token alone")
    if k < 1 or (k == 1 and not tail):
        raise ValueError(f"top_k must be at least {1 if tail else 2}{'' if tail else ' without a tail'}, got {k}")
    return TopK(core, k, tail)


def where_uncertain(core: Core, threshold: float) -> Gated:
    """Only rows on which the teacher's entropy, −Σ p log p in nats, is above `threshold`; others give zero.

    Raises:
        ValueError: `threshold` is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"an entropy threshold must be at least 0, got {threshold}")
    return Gated(core, threshold)


def with_tail(core: Core, log_q_NV: Tensor, tokens_NK: Tensor, log_p_NK: Tensor, tail_p_N1: Tensor) -> Local:
    """A divergence over some tokens and one more, which all others are together: `tail_p_N1` is its log-probability."""
    log_q_NK = log_q_NV.gather(-1, tokens_NK)
    others_q_NV = log_q_NV.scatter(-1, tokens_NK, -torch.inf)
    tail_q_N1 = others_q_NV.logsumexp(-1, keepdim=True)
    local = core(torch.cat([log_q_NK, tail_q_N1], -1), torch.cat([log_p_NK, tail_p_N1], -1))
    # the slope of the tail is shared by its tokens as their probability is: ∂log q_tail/∂log q_v = q_v / q_tail
    share_NV = others_q_NV.sub_(tail_q_N1.clamp_min(torch.finfo(tail_q_N1.dtype).min)).exp_()
    slopes_NV = share_NV.mul_(local.slopes_NV[:, -1:])
    return Local(local.values_N, slopes_NV.scatter_(-1, tokens_NK, local.slopes_NV[:, :-1]))


def renormalised(core: Core, log_q_NV: Tensor, tokens_NK: Tensor, log_p_NK: Tensor) -> Local:
    """A divergence over some tokens, as if there were no others."""
    log_q_NK = log_q_NV.gather(-1, tokens_NK).log_softmax(-1)
    local = core(log_q_NK, log_p_NK.log_softmax(-1))
    # what is renormalised is indifferent to the others: the slopes of a row add up to zero
    own_NK = local.slopes_NV - log_q_NK.exp() * local.slopes_NV.sum(-1, keepdim=True)
    return Local(local.values_N, torch.zeros_like(log_q_NV).scatter_(-1, tokens_NK, own_NK))
