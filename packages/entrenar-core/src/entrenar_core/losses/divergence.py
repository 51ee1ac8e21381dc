"""Divergences between the teacher's distribution p and the student's q over classes or tokens.

Each is written once, as a `Core`: from log q and log p to its value per row and its slope in log q. Everything else
follows from that: the functions of logits below, which autograd differentiates, selection of the teacher's likeliest
tokens (selection.py), and the kernel that computes gradients in the forward pass (kernel.py).

Which rows count, and what a sum is divided by, is the caller's (`LossSum`), so that a gradient does not depend on how
a batch was cut.

Shapes: V classes or vocabulary, N rows that count.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entrenar_core.losses.sums import LossSum, at_least_fp32

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the logits of the student and of the teacher, (N, V), to one value per row, in nats, in fp32 or better."""


class Local(NamedTuple):
    """A divergence at some q: its values and its slopes ∂D/∂log q, as if the log q of a row were free.

    Slopes may differ by a multiple of q in each row, to which the gradient in logits is indifferent.
    """

    values_N: Tensor
    slopes_NV: Tensor


Core = Callable[[Tensor, Tensor], Local]
"""From log q and log p to `Local`. Either may hold −inf; log p may be overwritten."""
At = Callable[[Tensor], Local]
"""A divergence from a teacher that is held: from log q to `Local`."""

_FAR = 80.0  # nats; e⁸⁰ is finite in 32 bits


def forward_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p (log p − log q). Covers the teacher's modes; zero exactly where the distributions agree.

    A token that the teacher rules out (logit −inf) contributes nothing.

    Source: Hinton, Vinyals & Dean 2015, eq. 2, without its T², which `soften` applies.
    """
    return of_logits(forward_kl_core, student_logits_NV, teacher_logits_NV)


def reverse_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ_v q (log q − log p). Seeks the teacher's modes; infinite where the teacher rules out a token that
    the student does not: select the teacher's tokens, or use `skew_reverse_kl` or `jsd`, which stay finite.

    Source: Gu et al. 2024 (MiniLLM), here as an exact expectation over the vocabulary.
    """
    return of_logits(reverse_kl_core, student_logits_NV, teacher_logits_NV)


def jeffreys(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, forward: float = 0.5, reverse: float = 0.5
) -> Tensor:
    """`forward` · KL(p ‖ q) + `reverse` · KL(q ‖ p). With both 1 it is the divergence of Jeffreys 1946; with both ½,
    the default, it keeps the size of a KL.
    """
    return of_logits(jeffreys_core(forward, reverse), student_logits_NV, teacher_logits_NV)


def jsd(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, beta: float = 0.5, normalised: bool = False) -> Tensor:
    """Generalised Jensen-Shannon divergence: β KL(p ‖ m) + (1 − β) KL(q ‖ m), with m = β p + (1 − β) q.

    β is the weight of the teacher, as in Agarwal et al. 2024 (GKD). It vanishes as β → 0 or 1; divided by
    β (1 − β), which `normalised` does, it tends to KL(p ‖ q) as β → 0 and to KL(q ‖ p) as β → 1, and β = 0 and 1 give
    just those. Never above the entropy of β, and finite whatever a teacher rules out.

    Raises:
        ValueError: β is not between 0 and 1, or is 0 or 1 without `normalised`, where the divergence is always zero.
    """
    return of_logits(jsd_core(beta, normalised), student_logits_NV, teacher_logits_NV)


def skew_forward_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(p ‖ λ p + (1 − λ) q): finite gradients where q vanishes. λ = 0 is `forward_kl`.

    Source: Ko et al. 2024 (DistiLLM), where λ is called α.
    """
    return of_logits(skew_forward_kl_core(skew), student_logits_NV, teacher_logits_NV)


def skew_reverse_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(q ‖ λ q + (1 − λ) p): finite where p vanishes. λ = 0 is `reverse_kl`.

    Source: Ko et al. 2024 (DistiLLM), where λ is called α.
    """
    return of_logits(skew_reverse_kl_core(skew), student_logits_NV, teacher_logits_NV)


def total_variation(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """½ Σ_v |p − q|, from 0 to 1; `soften` it with power 1. Source: Wen et al. 2023 (f-distill)."""
    return of_logits(total_variation_core, student_logits_NV, teacher_logits_NV)


def cross_entropy_hard(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """−log q of the token that the teacher prefers, the first of equals. Temperature softens the student alone;
    `soften` it with power 1.

    Source: Touvron et al. 2021 (DeiT), hard-label distillation, there at T = 1.
    """
    return of_logits(cross_entropy_hard_core, student_logits_NV, teacher_logits_NV)


def forward_kl_core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
    """As `forward_kl`. ∂/∂log q = −p."""
    p_NV = log_p_NV.exp()
    values_N = _expected(p_NV, log_p_NV.sub_(log_q_NV)).sum(-1)
    return Local(values_N, p_NV.neg_())


def reverse_kl_core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
    """As `reverse_kl`. ∂/∂log q = q (log q − log p), and q."""
    slopes_NV = _expected(log_q_NV.exp(), torch.sub(log_q_NV, log_p_NV, out=log_p_NV))
    return Local(slopes_NV.sum(-1), slopes_NV)


def jeffreys_core(forward: float = 0.5, reverse: float = 0.5) -> Core:
    """As `jeffreys`: the sum of both, weighted."""

    def core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        there, back = forward_kl_core(log_q_NV, log_p_NV.clone()), reverse_kl_core(log_q_NV, log_p_NV)
        return Local(
            there.values_N.mul_(forward).add_(back.values_N, alpha=reverse),
            there.slopes_NV.mul_(forward).add_(back.slopes_NV, alpha=reverse),
        )

    return core


def jsd_core(beta: float = 0.5, normalised: bool = False) -> Core:
    """As `jsd`. ∂/∂log q = (1 − β) q (log q − log m): what the other terms give cancels.

    m is never made: with δ = log p − log q, log m − log q = log1p(β expm1 δ), which keeps its digits where β is tiny
    and where the distributions agree; above ½ the same from the teacher's side.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta}")
    if beta in (0, 1):
        if not normalised:
            raise ValueError(f"with beta {beta:g} the divergence is always zero; its normalised form is a KL")
        return forward_kl_core if beta == 0 else reverse_kl_core
    scale = 1 / (beta * (1 - beta)) if normalised else 1.0

    def core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        if beta <= 0.5:
            to_teacher_NV, to_student_NV = _to_mixture(torch.sub(log_p_NV, log_q_NV, out=log_p_NV), beta)
        else:
            to_student_NV, to_teacher_NV = _to_mixture(torch.sub(log_q_NV, log_p_NV, out=log_p_NV), 1 - beta)
        slopes_NV = q_NV.mul_(to_student_NV).mul_((1 - beta) * scale)
        return Local(p_NV.mul_(to_teacher_NV).sum(-1).mul_(beta * scale).add_(slopes_NV.sum(-1)), slopes_NV)

    return core


def skew_forward_kl_core(skew: float = 0.1) -> Core:
    """As `skew_forward_kl`. ∂/∂log q = −p · (1 − λ) q / m."""
    if _require_skew(skew) == 0:
        return forward_kl_core

    def core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        m_NV = _mixture(p_NV, q_NV, skew)
        share_NV = q_NV.mul_(1 - skew).div_(m_NV)
        values_N = _expected_in_mixture(p_NV, log_p_NV.sub_(m_NV.log_())).sum(-1)
        return Local(values_N, share_NV.mul_(p_NV).neg_())

    return core


def skew_reverse_kl_core(skew: float = 0.1) -> Core:
    """As `skew_reverse_kl`. ∂/∂log q = q (log q − log m − λ q / m), and q."""
    if _require_skew(skew) == 0:
        return reverse_kl_core

    def core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
        q_NV = log_q_NV.exp()
        m_NV = _mixture(q_NV, log_p_NV.exp_(), skew)
        share_NV = torch.div(q_NV, m_NV, out=log_p_NV).mul_(skew)
        slopes_NV = _expected_in_mixture(q_NV, torch.sub(log_q_NV, m_NV.log_(), out=m_NV))
        values_N = slopes_NV.sum(-1)
        return Local(values_N, slopes_NV.sub_(share_NV.mul_(q_NV)))

    return core


def total_variation_core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
    """As `total_variation`. ∂/∂log q = ½ q sign(q − p)."""
    q_NV = log_q_NV.exp()
    difference_NV = q_NV - log_p_NV.exp_()
    return Local(difference_NV.abs().sum(-1).mul_(0.5), difference_NV.sign_().mul_(q_NV).mul_(0.5))


def cross_entropy_hard_core(log_q_NV: Tensor, log_p_NV: Tensor) -> Local:
    """As `cross_entropy_hard`. ∂/∂log q is −1 at the preferred token."""
    preferred_N1 = log_p_NV.argmax(-1, keepdim=True)
    slopes_NV = torch.zeros_like(log_q_NV).scatter_(-1, preferred_N1, -1.0)
    return Local(-log_q_NV.gather(-1, preferred_N1).squeeze(-1), slopes_NV)


def value_and_gradient(at: At, student_logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of every row, (N,), and its gradient in the student's logits, (N, V).

    With h = ∂D/∂log q, ∂D/∂z = h − q Σ_v h.
    """
    log_q_NV = at_least_fp32(student_logits_NV).log_softmax(-1)
    local = at(log_q_NV)
    total_N1 = local.slopes_NV.sum(-1, keepdim=True)
    return local.values_N, local.slopes_NV.addcmul_(log_q_NV.exp_(), total_N1, value=-1)


def of_logits(core: Core, student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """The divergence of every row, (N,), once differentiable in the student's logits and not in the teacher's.

    Raises:
        ValueError: the logits differ in size.
    """
    if student_logits_NV.shape != teacher_logits_NV.shape:
        raise ValueError(f"logits of sizes {tuple(student_logits_NV.shape)} and {tuple(teacher_logits_NV.shape)}")
    teacher_NV = teacher_logits_NV.detach()
    return differentiable(lambda log_q_NV: core(log_q_NV, at_least_fp32(teacher_NV).log_softmax(-1)), student_logits_NV)


def differentiable(at: At, student_logits_NV: Tensor) -> Tensor:
    """The values of `value_and_gradient`, (N,), with a graph to the student's logits, once differentiable."""
    return _Divergence.apply(student_logits_NV, at)  # type: ignore[no-any-return, no-untyped-call]


class _Divergence(torch.autograd.Function):
    """The gradient is at hand when the value is: nothing else is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, at: At) -> Tensor:
        values_N, gradient_NV = value_and_gradient(at, student_NV)
        ctx.save_for_backward(gradient_NV)
        ctx.dtype = student_NV.dtype
        return values_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (gradient_NV,) = ctx.saved_tensors
        return (gradient_NV * grad_N.unsqueeze(-1)).to(ctx.dtype), None


def soften(divergence: Divergence, temperature: float, power: int = 2) -> Divergence:
    """The divergence at a temperature T, times T to a power that lets its gradient keep its size as T grows.

    Gradients in logits shrink as 1/T, and once more where they are made of differences between p and q, which shrink
    as 1/T too: hence T². Those of `total_variation` and `cross_entropy_hard` are not: theirs is T (`Entry.power`).

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return lambda student_NV, teacher_NV: (
        divergence(at_least_fp32(student_NV) / temperature, at_least_fp32(teacher_NV) / temperature)
        * temperature**power
    )


def sum_over(divergence: Divergence, student_NV: Tensor, teacher_NV: Tensor) -> LossSum:
    """Sums a divergence over rows that count. The teacher's rows carry no gradient.

    Without a row the total is zero and still has a graph, so that every rank can call backward.
    """
    return LossSum(divergence(student_NV, teacher_NV.detach()).sum(), student_NV.shape[0])


def _expected(p_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """p · log ratio, in place of the latter: a token without probability adds nothing, whatever the ratio."""
    return log_ratio_NV.mul_(p_NV).masked_fill_(p_NV == 0, 0.0)


def _mixture(a_NV: Tensor, b_NV: Tensor, share: float) -> Tensor:
    """share · a + (1 − share) · b, but never 0: where both are next to nothing, nothing of it reaches a divergence."""
    return torch.lerp(b_NV, a_NV, share).clamp_min_(torch.finfo(a_NV.dtype).tiny)


def _to_mixture(log_ratio_NV: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """For log a − log b and m = share · a + (1 − share) · b: log a − log m and log b − log m, the former in place.

    Beyond `_FAR` the rarer of the two has no weight, and its ratio need only be finite.
    """
    log_ratio_NV.nan_to_num_(nan=0.0).clamp_(-_FAR, _FAR)  # of two impossible tokens there is no ratio
    to_b_NV = torch.expm1(log_ratio_NV).mul_(share).log1p_()
    return log_ratio_NV.sub_(to_b_NV), to_b_NV.neg_()


def _expected_in_mixture(p_NV: Tensor, log_ratio_NV: Tensor) -> Tensor:
    """As `_expected`, for ratios to a mixture that holds p: they are infinite only where p is 0."""
    return log_ratio_NV.clamp_min_(torch.finfo(log_ratio_NV.dtype).min).mul_(p_NV)


def _require_skew(skew: float) -> float:
    if not 0 <= skew < 1:
        raise ValueError(f"skew must be at least 0 and below 1, got {skew}")
    return skew
