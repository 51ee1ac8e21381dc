"""What attention looks at: the student's distributions over the keys, or the scores they are made of, as the teacher's.

A query counts once, however many keys and heads it has. Neither the content of padding nor its side or amount changes
anything, to the bit, and beside the scores themselves little is held (by_row.py).

Scores are products before the softmax and before any mask, one set for each query head (`AttentionInputs.scores`).
Where teacher and student may see different keys, as with different windows, `allowed` has those that both may see.

Shapes: B rows, T positions, d width of a head, H heads of the student, G of the teacher, P pairs of heads that are
compared.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from entrenar_core.losses.attention_heads import LearnedHeadWeights, Weighting, head_weights
from entrenar_core.losses.by_row import sum_over_rows
from entrenar_core.losses.head_mapping import HeadMap, Heads, map_heads
from entrenar_core.losses.sums import LossSum, at_least_fp32

__all__ = [
    "LearnedHeadWeights",
    "allowed_keys",
    "attention_kl",
    "attention_mse",
    "head_weights",
    "kl_per_query",
    "log_probs",
    "map_heads",
    "scaled_products",
]


def attention_kl(
    student_scores_BHTT: Tensor,
    teacher_scores_BGTT: Tensor,
    allowed_BTT: Tensor,
    *,
    heads: Heads = "auto",
    weights: Weighting | Tensor = "uniform",
) -> LossSum:
    """Σ_queries Σ_p w_p KL(teacher ‖ student) of the distributions over the allowed keys, in nats, where p are pairs of
    heads (see `map_heads`). The count is that of the queries that have an allowed key.

    Teacher heads that teach one student head together are averaged as distributions. `weights` is a kind of
    `head_weights`, or a tensor (P,), as `LearnedHeadWeights` gives it.

    Source: Wang et al. 2020 (MiniLM), eq. 3, there for the last layer.

    Raises:
        ValueError: the shapes do not fit each other, or as `map_heads`.
    """
    return _sum_over_scores(_kl_of_row, student_scores_BHTT, teacher_scores_BGTT, allowed_BTT, heads, weights)


def attention_mse(
    student_scores_BHTT: Tensor,
    teacher_scores_BGTT: Tensor,
    allowed_BTT: Tensor,
    *,
    heads: Heads = "auto",
    weights: Weighting | Tensor = "uniform",
) -> LossSum:
    """Σ_queries Σ_p w_p mean over the allowed keys of (student score − teacher score)². The count is that of the
    queries that have an allowed key.

    A softmax is indifferent to a constant added to all scores of a query; this loss is not, and the student learns
    such constants too. Teacher heads that teach one student head together are averaged as scores. `weights` as for
    `attention_kl`.

    Source: Jiao et al. 2020 (TinyBERT), eq. 7; there the mean is over all keys, padding among them.

    Raises:
        ValueError: as `attention_kl`.
    """
    return _sum_over_scores(_mse_of_row, student_scores_BHTT, teacher_scores_BGTT, allowed_BTT, heads, weights)


def allowed_keys(mask_BT: Tensor, causal: bool, window: int | None = None) -> Tensor:
    """(B, T, T), true where query t may see key s: both are real tokens of the mask (1 or true); s ≤ t if `causal`;
    and with a window they lie fewer than `window` positions apart, so that a causal query sees itself and the
    window − 1 positions before it.

    Raises:
        ValueError: the window is not positive.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be positive, got {window}")
    real_BT = mask_BT != 0
    allowed_BTT = real_BT[:, :, None] & real_BT[:, None, :]
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    distance_TT = positions_T[:, None] - positions_T
    if causal:
        allowed_BTT = allowed_BTT & (distance_TT >= 0)
    return allowed_BTT if window is None else allowed_BTT & (distance_TT.abs() < window)


def scaled_products(queries_BHTd: Tensor, keys_BGTd: Tensor, scaling: float) -> Tensor:
    """scaling · q kᵀ, (B, H, T, T), in fp32 or better, under autocast too. Each H / G query heads share keys."""
    keys_BHTd = keys_BGTd.repeat_interleave(queries_BHTd.shape[-3] // keys_BGTd.shape[-3], -3)
    with torch.autocast(queries_BHTd.device.type, enabled=False):
        return at_least_fp32(queries_BHTd) @ at_least_fp32(keys_BHTd).transpose(-1, -2) * scaling


def _sum_over_scores(
    row_loss: Callable[..., Tensor],
    student_BHTT: Tensor,
    teacher_BGTT: Tensor,
    allowed_BTT: Tensor,
    heads: Heads,
    weights: Weighting | Tensor,
) -> LossSum:
    B, H, T, _ = student_BHTT.shape
    G = teacher_BGTT.shape[1]
    if (student_BHTT.shape, teacher_BGTT.shape, allowed_BTT.shape) != ((B, H, T, T), (B, G, T, T), (B, T, T)):
        raise ValueError(
            "scores must be (B, heads, T, T) over the same rows and positions, and allowed (B, T, T), got "
            f"{tuple(student_BHTT.shape)} of the student, {tuple(teacher_BGTT.shape)} of the teacher, "
            f"{tuple(allowed_BTT.shape)}"
        )
    mapped = map_heads(heads, H, G)
    if isinstance(weights, Tensor) and weights.shape != (len(mapped.student),):
        raise ValueError(f"there are {len(mapped.student)} pairs of heads, got weights {tuple(weights.shape)}")
    learnt = (weights,) if isinstance(weights, Tensor) else ()
    kind = "uniform" if isinstance(weights, Tensor) else weights
    row = partial(row_loss, mapped, kind)
    return sum_over_rows(row, student_BHTT, teacher_BGTT, allowed_BTT, *learnt, position_dims=(-1, -2), heads=max(H, G))


def _kl_of_row(
    mapped: HeadMap,
    kind: Weighting,
    student_HTT: Tensor,
    teacher_GTT: Tensor,
    allowed_TT: Tensor,
    learnt_P: Tensor | None = None,
) -> Tensor:
    log_q_PTT = log_probs(_chosen(student_HTT, mapped.student), allowed_TT)
    log_p_PTT = _mean_log_probs(mapped, teacher_GTT, allowed_TT)
    return _weighted_sum(
        kl_per_query(log_q_PTT, log_p_PTT, allowed_TT), kind, learnt_P, mapped, teacher_GTT, allowed_TT
    )


def _mse_of_row(
    mapped: HeadMap,
    kind: Weighting,
    student_HTT: Tensor,
    teacher_GTT: Tensor,
    allowed_TT: Tensor,
    learnt_P: Tensor | None = None,
) -> Tensor:
    teacher_PTT = _groups(teacher_GTT, mapped).mean(1)
    difference_PTT = (_chosen(student_HTT, mapped.student) - teacher_PTT).masked_fill(~allowed_TT, 0.0)
    values_PT = difference_PTT.square().sum(-1) / allowed_TT.sum(-1).clamp_min(1)
    return _weighted_sum(values_PT, kind, learnt_P, mapped, teacher_GTT, allowed_TT)


def log_probs(scores_HTT: Tensor, allowed_TT: Tensor) -> Tensor:
    """The logarithm of the distributions over the allowed keys; elsewhere, anything finite."""
    # with the smallest number in place of −inf, a query without a key gives no NaN
    return scores_HTT.masked_fill(~allowed_TT, torch.finfo(scores_HTT.dtype).min).log_softmax(-1)


def kl_per_query(log_q_HTT: Tensor, log_p_HTT: Tensor, allowed_TT: Tensor) -> Tensor:
    """Σ p (log p − log q) over the allowed keys, (H, T); 0 for a query without one."""
    without = ~allowed_TT | log_p_HTT.isneginf()
    return (log_p_HTT.exp() * (log_p_HTT - log_q_HTT).masked_fill(without, 0.0)).sum(-1)


def _mean_log_probs(mapped: HeadMap, teacher_GTT: Tensor, allowed_TT: Tensor) -> Tensor:
    """The logarithm of the mean distribution of each group of teacher heads."""
    log_p_PgTT = _groups(log_probs(teacher_GTT, allowed_TT), mapped)
    together = log_p_PgTT.shape[1]
    return log_p_PgTT.squeeze(1) if together == 1 else log_p_PgTT.logsumexp(1) - math.log(together)


def _groups(teacher_GTT: Tensor, mapped: HeadMap) -> Tensor:
    together = tuple(head for group in mapped.teacher for head in group)
    return _chosen(teacher_GTT, together).view(len(mapped.teacher), -1, *teacher_GTT.shape[1:])


def _chosen(heads_HTT: Tensor, chosen: tuple[int, ...]) -> Tensor:
    return heads_HTT if chosen == tuple(range(len(heads_HTT))) else heads_HTT[list(chosen)]


def _weighted_sum(
    values_PT: Tensor,
    kind: Weighting,
    learnt_P: Tensor | None,
    mapped: HeadMap,
    teacher_GTT: Tensor,
    allowed_TT: Tensor,
) -> Tensor:
    if learnt_P is None and kind == "uniform":
        return values_PT.mean(0).sum()
    weights_P = learnt_P
    if weights_P is None:
        weights_P = head_weights(_mean_log_probs(mapped, teacher_GTT, allowed_TT), allowed_TT, kind)
    return (weights_P[:, None] * values_PT).sum()  # no matrix product, which autocast would compute in half precision
