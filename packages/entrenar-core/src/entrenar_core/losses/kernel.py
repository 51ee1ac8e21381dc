"""Losses on logits that are never all there: from hidden states and heads, in tiles of rows, with gradients computed
in the forward pass.

A tile's logits live only as long as the tile. Soft and hard targets share them, their gradient takes their place, and
what leaves the forward pass is the gradient of the hidden states and of the head, which a backward pass only scales.
So memory grows with the tile and the head, and not with rows × vocabulary. Tiles are as large as products of matrices
like them; what is done between two products goes through a tile in blocks of rows that a CPU's caches hold.

Source: the idea of computing a head's gradient in the forward pass is that of Hsu et al. 2024 (Liger), section 3.2.

Shapes: N rows that count, H student's width, K teacher's width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entrenar_core.losses.divergence import Core, Local, value_and_gradient
from entrenar_core.losses.hard import cross_entropy_and_gradient
from entrenar_core.losses.head import Head, LogitTiles, compute_dtype, through_head_
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import Targets, TargetTiles
from entrenar_core.losses.tiles import device_type_of, tiles_of

TILE_BYTES = 256 * 2**20
"""What the buffers of one tile may take together, about."""
_BUFFERS = 8  # tensors of a block's size that are there at once, a few more with a selection; two are a tile's
_CPU_ROWS = 256  # more are no faster on a CPU
_CPU_BLOCK_BYTES = 512 * 2**10  # of one tensor of a block: a few of them fit into the cache of a core


@dataclass(frozen=True, slots=True)
class SoftTerm:
    """weight · T to a power · Σ rows D(p at T, q at T); the power is that of `soften`."""

    core: Core
    temperature: float
    weight: float
    power: int = 2


@dataclass(frozen=True, slots=True)
class HardTerm:
    """weight · Σ rows cross-entropy with the label, of which `smoothing` is spread evenly over the vocabulary."""

    weight: float
    smoothing: float = 0.0


class HeadLoss(NamedTuple):
    """The weighted total, with a graph; the sums of the terms before their weights, without."""

    total: Tensor
    soft: tuple[Tensor, ...]
    hard: Tensor


def head_loss(
    student_hidden_NH: Tensor,
    student_head: Head,
    *,
    teacher: Targets | None = None,
    labels_N: Tensor | None = None,
    soft: Sequence[SoftTerm] = (),
    hard: HardTerm | None = None,
    row_weights_N: Tensor | None = None,
    vocabulary: int | None = None,
    tile_bytes: int = TILE_BYTES,
) -> HeadLoss:
    """All losses on the logits of rows that count, in one pass over tiles of rows.

    Differentiable in the student's hidden states, head and bias, once, with the gradients computed here; under
    `no_grad`, a plain evaluation. The teacher gets no gradient.

    Args:
        student_hidden_NH: what the student's head reads.
        student_head: weights may be tied to embeddings, and of another dtype than the hidden states.
        teacher: what it says of the same rows, needed by `soft`.
        labels_N: for `hard`; a row of −100 (`IGNORED`) has none.
        soft: divergences, each with its temperature and weight.
        hard: the cross-entropy with the labels.
        row_weights_N: multiply the terms of a row, and change no denominator.
        vocabulary: how many tokens there are; heads may be padded beyond them, each to its own width.
        tile_bytes: what the buffers of a tile may take.

    Raises:
        ValueError: `soft` without a teacher, `hard` without labels, or heads of fewer tokens than `vocabulary`.
    """
    if soft and teacher is None:
        raise ValueError("a soft target needs a teacher")
    if hard is not None and labels_N is None:
        raise ValueError("a hard target needs labels")
    columns = [student_head.weight_VH.shape[0], *([] if teacher is None else [teacher.columns])]
    vocabulary = _real_vocabulary(columns, vocabulary)
    tile_rows, block_rows = _rows_at_once(vocabulary, tile_bytes, device_type_of(student_hidden_NH))
    unit = _unit([*(term.weight for term in soft), hard.weight if hard else 0.0])
    job = _Job(
        student_head,
        teacher,
        labels_N,
        tuple(replace(term, weight=term.weight / unit) for term in soft),
        None if hard is None else replace(hard, weight=hard.weight / unit),
        row_weights_N,
        vocabulary,
        tile_rows,
        block_rows,
        differentiated=torch.is_grad_enabled(),  # inside of the function it never is
    )
    total, *sums = _HeadLoss.apply(student_hidden_NH, student_head.weight_VH, student_head.bias_V, job)  # type: ignore[no-untyped-call]
    return HeadLoss(total * unit, tuple(sums[:-1]), sums[-1])


@dataclass(frozen=True, slots=True)
class _Job:
    """What does not change from tile to tile."""

    student_head: Head
    teacher: Targets | None
    labels_N: Tensor | None
    soft: tuple[SoftTerm, ...]
    hard: HardTerm | None
    row_weights_N: Tensor | None
    vocabulary: int
    tile_rows: int
    block_rows: int
    differentiated: bool


def _unit(weights: Sequence[float]) -> float:
    """A power of two near the largest weight.

    Weights are small: they hold 1 / tokens of the step. In its unit gradients are kept until `backward`, which brings
    the factor of a loss scaler with it: multiplied before, half of them would vanish in 16 bits.
    """
    largest = max(map(abs, weights))
    return math.ldexp(1.0, math.frexp(largest)[1]) if 0 < largest < math.inf else 1.0


def _real_vocabulary(sizes: Sequence[int], vocabulary: int | None) -> int:
    if vocabulary is None and len(set(sizes)) > 1:
        raise ValueError(f"the heads have {sizes[0]} and {sizes[1]} tokens: say how many are real as `vocabulary`")
    if vocabulary is not None and not 0 < vocabulary <= min(sizes):
        raise ValueError(f"`vocabulary` is {vocabulary}, and a head has {min(sizes)} tokens")
    return vocabulary or sizes[0]


def _rows_at_once(vocabulary: int, tile_bytes: int, device: str) -> tuple[int, int]:
    """Of a tile, and of a block of it: on a CPU small ones, elsewhere the whole tile."""
    if device == "cpu":
        tile_rows = min(tile_bytes // (2 * 4 * vocabulary), _CPU_ROWS)
        return max(1, tile_rows), max(1, _CPU_BLOCK_BYTES // (4 * vocabulary))
    tile_rows = max(1, tile_bytes // (_BUFFERS * 4 * vocabulary))
    return tile_rows, tile_rows


class _HeadLoss(torch.autograd.Function):
    """Total, and the sums of the terms; the gradients of the total are made on the way and kept for `backward`."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        made = _Gradients.of(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3] if job.differentiated else ())
        sums = torch.zeros(len(job.soft) + 1, dtype=torch.float64, device=hidden_NH.device)
        student = LogitTiles(hidden_NH, job.student_head, job.vocabulary)
        teacher = job.teacher.tiles(job.vocabulary) if job.teacher is not None and job.soft else None
        for start in tiles_of(range(0, len(hidden_NH), job.tile_rows)):
            tile = slice(start, min(start + job.tile_rows, len(hidden_NH)))
            logits_NV = student.logits(tile)
            if teacher is not None:
                teacher.load(tile)
            _tile_terms_(logits_NV, teacher, tile, job, sums)
            if made.wanted:
                made.add_(tile, logits_NV, hidden_NH, weight_VH)
        weights = [*(term.weight for term in job.soft), job.hard.weight if job.hard else 0.0]
        ctx.made = made
        sums = sums.to(at_least_fp32(hidden_NH).dtype)
        ctx.mark_non_differentiable(*(parts := sums.unbind()))
        return ((sums * sums.new_tensor(weights)).sum(), *parts)  # a product of matrices would be autocast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of a head loss can be asked for once: do not retain its graph")
        return (
            _scaled_(made.hidden_NH, grad_total),
            _scaled_(made.weight_VH, grad_total),
            _scaled_(made.bias_V, grad_total),
            None,
        )


@dataclass(slots=True)
class _Gradients:
    """Of hidden states, weights and bias, each where it is wanted; sums over tiles are kept in fp32 or better."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def of(cls, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, needs: Sequence[bool]) -> "_Gradients":
        hidden, weight, bias = needs or (False, False, False)
        return cls(
            torch.empty_like(hidden_NH) if hidden else None,
            _zeros(weight_VH) if weight else None,
            _zeros(bias_V) if bias and bias_V is not None else None,
        )

    @property
    def wanted(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden_NH, self.weight_VH, self.bias_V))

    def add_(self, tile: slice, gradient_NV: Tensor, hidden_NH: Tensor, weight_VH: Tensor) -> None:
        vocabulary = gradient_NV.shape[-1]
        dtype = compute_dtype(hidden_NH, weight_VH)
        operand_NV = gradient_NV.to(dtype)
        if self.hidden_NH is not None:
            self.hidden_NH[tile] = operand_NV @ weight_VH[:vocabulary].to(dtype)
        if self.weight_VH is not None:
            rows_NH = hidden_NH[tile].to(dtype)
            if dtype == self.weight_VH.dtype:
                self.weight_VH[:vocabulary].addmm_(operand_NV.T, rows_NH)
            else:
                self.weight_VH[:vocabulary] += operand_NV.T @ rows_NH
        if self.bias_V is not None:
            self.bias_V[:vocabulary] += gradient_NV.sum(0)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=at_least_fp32(like[:0]).dtype)


def _scaled_(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """In place: the gradient is there once."""
    return None if gradient is None else gradient.mul_(factor)


def _tile_terms_(student_NV: Tensor, teacher: TargetTiles | None, tile: slice, job: _Job, sums: Tensor) -> None:
    """Adds the terms of a tile to `sums`, and turns the student's logits into the gradient of their weighted total in
    what its head's matrix gives.
    """
    for start in tiles_of(range(0, len(student_NV), job.block_rows)):
        block = slice(start, min(start + job.block_rows, len(student_NV)))
        logits_NV = student_NV[block]
        gradient_NV = _block_terms(logits_NV, teacher, block, tile.start, job, sums)
        if job.differentiated:
            through_head_(gradient_NV, logits_NV, job.student_head)
            logits_NV.copy_(gradient_NV)


def _block_terms(
    logits_NV: Tensor, teacher: TargetTiles | None, block: slice, offset: int, job: _Job, sums: Tensor
) -> Tensor:
    """Adds the terms of a block of the tile that begins at the row `offset` to `sums`, and gives the gradient of their
    weighted total in the logits.
    """
    rows = slice(offset + block.start, offset + block.stop)
    weights_N = None if job.row_weights_N is None else job.row_weights_N[rows]
    total_NV: Tensor | None = None
    for index, term in enumerate(job.soft):
        assert teacher is not None, "checked"
        t = term.temperature
        at = partial(_at, teacher, term, block)
        values_N, gradient_NV = value_and_gradient(at, logits_NV if t == 1 else logits_NV / t)
        sums[index] += t**term.power * _weighted_(values_N, gradient_NV, weights_N)
        total_NV = _added(total_NV, gradient_NV, t ** (term.power - 1) * term.weight)
    if job.hard is not None:
        assert job.labels_N is not None, "checked"
        values_N, gradient_NV = cross_entropy_and_gradient(logits_NV, job.labels_N[rows], job.hard.smoothing)
        sums[-1] += _weighted_(values_N, gradient_NV, weights_N)
        total_NV = _added(total_NV, gradient_NV, job.hard.weight)
    return torch.zeros_like(logits_NV) if total_NV is None else total_NV


def _at(teacher: TargetTiles, term: SoftTerm, block: slice, log_q_NV: Tensor) -> Local:
    return teacher.local(term.core, log_q_NV, block, term.temperature)


def _weighted_(values_N: Tensor, gradient_NV: Tensor, weights_N: Tensor | None) -> Tensor:
    if weights_N is not None:
        values_N.mul_(weights_N)
        gradient_NV.mul_(weights_N.unsqueeze(-1))
    return values_N.sum(dtype=torch.float64)


def _added(total_NV: Tensor | None, gradient_NV: Tensor, weight: float) -> Tensor:
    return gradient_NV.mul_(weight) if total_NV is None else total_NV.add_(gradient_NV, alpha=weight)
