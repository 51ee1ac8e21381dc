"""Divergences between the teacher's and the student's distributions over classes or tokens.

Every divergence takes rows of logits and returns one value per row. Which rows count, and what the sum is divided
by, is the caller's (see `LossSum`), so that a gradient does not depend on how a batch was cut.

Shapes: V classes or vocabulary, N rows that count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Divergence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before division: `total / count` is its mean, and the sums of two batches add up."""

    total: Tensor
    count: int

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(self.total + other.total, self.count + other.count)


def forward_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """KL(teacher ‖ student) per row: Σ_v p_T (log p_T − log p_S), in nats, in fp32 or better.

    Covers the teacher's modes; zero exactly when the distributions agree. A token that the teacher rules out
    (logit −inf) contributes nothing.

    It is differentiable in the student alone, once.

    Source: Hinton, Vinyals & Dean 2015, eq. 2, without its T², which `soften` applies.
    """
    student_NV, teacher_NV = at_least_fp32(student_logits_NV), at_least_fp32(teacher_logits_NV)
    return _ForwardKL.apply(student_NV, teacher_NV)  # type: ignore[no-any-return, no-untyped-call]


class _ForwardKL(torch.autograd.Function):
    """The gradient in the student's logits is p_S − p_T, which is at hand when the value is: nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        student_log_p_NV, teacher_log_p_NV = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
        teacher_p_NV = teacher_log_p_NV.exp()
        terms_NV = teacher_log_p_NV.sub_(student_log_p_NV).mul_(teacher_p_NV).masked_fill_(teacher_p_NV == 0, 0.0)
        ctx.save_for_backward(student_log_p_NV.exp_().sub_(teacher_p_NV))
        return terms_NV.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (difference_NV,) = ctx.saved_tensors
        return difference_NV * grad_N.unsqueeze(-1), None


def soften(divergence: Divergence, temperature: float) -> Divergence:
    """The divergence at a temperature, scaled by T² so that its gradient keeps the size that it has at T = 1.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return lambda student_NV, teacher_NV: (
        divergence(at_least_fp32(student_NV) / temperature, at_least_fp32(teacher_NV) / temperature) * temperature**2
    )


def sum_over(divergence: Divergence, student_NV: Tensor, teacher_NV: Tensor) -> LossSum:
    """Sums a divergence over rows that count. The teacher's rows carry no gradient.

    Without a row the total is zero and still has a graph, so that every rank can call backward.
    """
    return LossSum(divergence(student_NV, teacher_NV.detach()).sum(), student_NV.shape[0])


def at_least_fp32(logits: Tensor) -> Tensor:
    """Half precision loses a third of a KL over 32k tokens; float64 stays what it is."""
    return logits if logits.dtype == torch.float64 else logits.float()
