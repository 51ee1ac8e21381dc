"""BiLD: what the likeliest tokens are worth against each other, seen from both sides.

Source: Li et al. 2024, "BiLD: Bi-directional Logits Difference Loss for Large Language Model Distillation".

Shapes: V vocabulary, K likeliest tokens, P = K (K − 1) / 2 pairs of them, N rows that count.
"""

import torch
from torch import Tensor

from entrenar_core.losses.divergence import Core, Local, of_logits

_FLOOR = -1e4  # stands for a logit of −inf, of which no differences can be taken


def bild(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, top_k: int = 8) -> Tensor:
    """The sum of two divergences per row, one over the pairs of the teacher's `top_k` likeliest tokens, one over the
    pairs of the student's. Each is KL(softmax of the teacher's logit differences ‖ softmax of the student's).

    The noise of the unlikely tokens is left out, and the order of the likely ones counts most.

    Raises:
        ValueError: `top_k` is below 2.
    """
    return of_logits(bild_core(top_k), student_logits_NV, teacher_logits_NV)


def bild_core(top_k: int = 8) -> Core:
    """As `bild`: differences of logits are differences of log-probabilities."""
    if top_k < 2:
        raise ValueError(f"top_k must be at least 2, got {top_k}")

    def core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        k = min(top_k, log_q_NV.shape[-1])
        values_N, slopes_NV = log_q_NV.new_zeros(log_q_NV.shape[0]), torch.zeros_like(log_q_NV)
        for leading_NV in (log_p_NV, log_q_NV):
            tokens_NK = leading_NV.topk(k).indices
            _add_side(values_N, slopes_NV, tokens_NK, log_q_NV, log_p_NV)
        return Local(values_N, slopes_NV)

    return core


def _add_side(values_N: Tensor, slopes_NV: Tensor, tokens_NK: Tensor, log_q_NV: Tensor, log_p_NV: Tensor) -> None:
    """Adds the divergence over the pairs of some tokens, of which the first of a pair is the likelier one."""
    first, second = torch.triu_indices(tokens_NK.shape[-1], tokens_NK.shape[-1], offset=1, device=tokens_NK.device)
    log_q_NP, log_p_NP = (
        (log_NK[:, first] - log_NK[:, second]).log_softmax(-1)
        for log_NK in (log_NV.gather(-1, tokens_NK).clamp_min(_FLOOR) for log_NV in (log_q_NV, log_p_NV))
    )
    p_NP = log_p_NP.exp()
    values_N += (p_NP * (log_p_NP - log_q_NP)).sum(-1)
    slopes_NP = log_q_NP.exp_().sub_(p_NP)
    slopes_NK = torch.zeros_like(tokens_NK, dtype=slopes_NP.dtype)
    slopes_NK.index_add_(-1, first, slopes_NP).index_add_(-1, second, slopes_NP, alpha=-1)
    slopes_NV.scatter_add_(-1, tokens_NK, slopes_NK)
