"""Sums of losses that compare the positions of a row with each other, as attention does.

Positions that no allowed query and key need are left out before anything is computed, so that neither the content of
padding nor its side or amount changes anything, to the bit. Rows that need the same positions are worked through
together, as many as stay small. The gradient is computed beside the loss: what is kept for the backward pass is one
tensor of the student's size, and nothing of the teacher's.

Shapes: B rows, T positions, N rows of one chunk, L positions that they need.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entrenar_core.losses.sums import LossSum, at_least_fp32

RowLoss = Callable[..., Tensor]
"""From a row of the student's and of the teacher's, in 32 bits or better, its allowed keys (L, L), and parameters, to
the sum over its queries. It is called under `torch.vmap`."""
_MOST = 2**18
"""Scores at a time, of all heads, where rows are small: a megabyte, which stays near the processor."""


def sum_over_rows(
    row_loss: RowLoss,
    student: Tensor,
    teacher: Tensor,
    allowed_BTT: Tensor,
    *parameters: Tensor,
    position_dims: tuple[int, ...],
    heads: int,
) -> LossSum:
    """Σ_rows of a loss, each with only those positions that are a query with a key, or a key with a query.

    Args:
        row_loss: what a row's loss is.
        student: (B, …), through which gradients flow.
        teacher: (B, …).
        allowed_BTT: which keys a query may see.
        parameters: of the loss, which are trained too.
        position_dims: the dimensions of positions in student and teacher, counted from the end.
        heads: how many times L × L numbers a row takes.

    Returns:
        the sum, once differentiable, and the number of queries with a key.
    """
    allowed_BTT = allowed_BTT != 0
    queries_BT = allowed_BTT.any(-1)
    chunks = tuple(_chunks(queries_BT | allowed_BTT.any(-2), heads))

    def of_chunk(chunk: _Chunk, student_N: Tensor, *rest: Tensor) -> Tensor:
        teacher_N = at_least_fp32(chunk.of(teacher, position_dims))
        inputs = student_N, teacher_N, chunk.of(allowed_BTT, (-1, -2))
        if len(student_N) == 1:
            return row_loss(*(one[0] for one in inputs), *rest)
        sums_N: Tensor = torch.vmap(row_loss, (0, 0, 0, *(None for _ in rest)))(*inputs, *rest)
        return sums_N.sum()

    total: Tensor = _Summed.apply(student, chunks, position_dims, of_chunk, *parameters)  # type: ignore[no-untyped-call]
    return LossSum(total, int(queries_BT.sum()))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows with the positions that all of them need."""

    rows: list[int]
    positions: list[int]

    def of(self, whole: Tensor, position_dims: tuple[int, ...]) -> Tensor:
        """Their part of a tensor, as a copy."""
        return whole[self.place(whole, position_dims)]

    def place(self, whole: Tensor, position_dims: tuple[int, ...]) -> tuple[Any, ...]:
        """Where they are in a tensor."""
        first, last = self.positions[0], self.positions[-1]
        if len(self.positions) == last - first + 1:
            index: list[Any] = [self.rows, *(slice(None) for _ in whole.shape[1:])]
            for dim in position_dims:
                index[dim] = slice(first, last + 1)
            return tuple(index)
        chosen = [self.rows, *(list(range(size)) for size in whole.shape[1:])]
        for dim in position_dims:
            chosen[dim] = self.positions
        return tuple(torch.from_numpy(one).to(whole.device) for one in np.ix_(*chosen))


def _chunks(used_BT: Tensor, heads: int) -> Iterator[_Chunk]:
    alike: dict[tuple[bool, ...], list[int]] = {}
    for row, used in enumerate(used_BT.tolist()):
        alike.setdefault(tuple(used), []).append(row)
    for used, rows in alike.items():
        positions = [place for place, needed in enumerate(used) if needed]
        if positions:
            most = max(1, _MOST // (heads * len(positions) ** 2))
            yield from (_Chunk(rows[first : first + most], positions) for first in range(0, len(rows), most))


class _Summed(torch.autograd.Function):
    """The sum over chunks, with its gradient, on which what comes after is but a factor."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        chunks: tuple[_Chunk, ...],
        position_dims: tuple[int, ...],
        of_chunk: Callable[..., Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        total = at_least_fp32(student.new_zeros(()))
        if not any(ctx.needs_input_grad):
            for chunk in chunks:
                total = total + of_chunk(chunk, at_least_fp32(chunk.of(student, position_dims)), *parameters)
            return total
        gradients = [torch.zeros_like(one, dtype=at_least_fp32(one[..., :0]).dtype) for one in (student, *parameters)]
        for chunk in chunks:
            # what computes the gradient must not be cast down either
            with torch.enable_grad(), torch.autocast(student.device.type, enabled=False):
                part = at_least_fp32(chunk.of(student.detach(), position_dims)).requires_grad_()
                inputs = [part, *(one.detach().requires_grad_() for one in parameters)]
                value = of_chunk(chunk, *inputs)
                of_part, *others = torch.autograd.grad(value, inputs, materialize_grads=True)
            gradients[0][chunk.place(student, position_dims)] = of_part
            for gradient, found in zip(gradients[1:], others, strict=True):
                gradient += found
            total = total + value.detach()
        ctx.save_for_backward(*gradients)
        ctx.dtype = student.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        of_student, *others = (gradient * upstream for gradient in ctx.saved_tensors)
        return of_student.to(ctx.dtype), None, None, None, *others
