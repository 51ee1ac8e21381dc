"""The loss of one micro-batch, computed inside one module, so that the hooks of DDP see every forward pass.

Shapes: B rows, T positions, V classes or vocabulary, N rows or positions that count.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from entrenar_core.data.collating import Batch
from entrenar_core.losses import Core, hard_sum, of_logits, soften, sum_over
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.models.calling import logits_of


@dataclass(frozen=True, slots=True)
class Objective:
    """loss = alpha · T² · D(teacher, student at T) / soft count + (1 − alpha) · CE / hard count.

    `divergence` is D, and `smoothing` that of the labels in CE. `vocabulary` is how many tokens the tokenizer has:
    heads are often padded beyond them, to different widths.

    Source: Hinton, Vinyals & Dean 2015. `alpha` 0 needs no teacher, 1 no labels.
    """

    causal: bool
    alpha: float
    temperature: float = 1.0
    divergence: Core = forward_kl_core
    smoothing: float = 0.0
    vocabulary: int | None = None


class Counts(NamedTuple):
    """What the losses of a whole optimiser step are divided by, over all its micro-batches and ranks."""

    soft: int
    hard: int


class StepLoss(NamedTuple):
    """The share of the step's loss, with a graph, and its two parts, detached."""

    loss: Tensor
    soft: Tensor
    hard: Tensor


class DistillationStep(nn.Module):
    """A student with its objective: what `accelerate` prepares."""

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, teacher_logits: Tensor | None, counts: Counts) -> StepLoss:
        """The micro-batch's share of the step's loss.

        Args:
            batch: rows of this rank.
            teacher_logits: (B, V) or (B, T, V); None where alpha is 0.
            counts: of the whole optimiser step. A term that nothing counts for is zero.
        """
        logits = logits_of(self.student, batch.input_ids_BT, batch.attention_mask_BT)
        student_NV, labels_N = counted(logits, batch, self.objective.causal, self.objective.vocabulary)
        soft = hard = student_NV.sum() * 0.0  # a graph for ranks that have nothing to count
        if self.objective.alpha > 0:
            assert teacher_logits is not None, "alpha > 0 needs a teacher"
            teacher_NV = counted(teacher_logits, batch, self.objective.causal, self.objective.vocabulary)[0]
            divergence = soften(partial(of_logits, self.objective.divergence), self.objective.temperature)
            soft = soft + sum_over(divergence, student_NV, teacher_NV).total / max(counts.soft, 1)
        if self.objective.alpha < 1:
            found = hard_sum(student_NV, labels_N, smoothing=self.objective.smoothing)
            hard = hard + found.total / max(counts.hard, 1)
        loss = self.objective.alpha * soft + (1 - self.objective.alpha) * hard
        return StepLoss(loss, soft.detach(), hard.detach())


def counted(logits: Tensor, batch: Batch, causal: bool, vocabulary: int | None = None) -> tuple[Tensor, Tensor]:
    """The logits (N, V) and labels (N,) of what counts; V is the real vocabulary, without the padding of the head.

    For a causal model, position t − 1 predicts token t.
    """
    if not causal:
        return logits[batch.targets], batch.labels[batch.targets]
    targets_BT = batch.targets[:, 1:]
    return logits[:, :-1, :vocabulary][targets_BT], batch.labels[:, 1:][targets_BT]
