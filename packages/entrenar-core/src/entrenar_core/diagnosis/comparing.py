"""A student beside its teacher on the same rows.

Shapes: N rows that count, V classes or vocabulary, K likeliest of them.
"""

import torch
from torch import Tensor

from entrenar_core.diagnosis.distributions import TILE
from entrenar_core.diagnosis.findings import Comparison
from entrenar_core.losses import forward_kl, jsd
from entrenar_core.losses.targets import Dense

TOP_K = 10


def shared_top_k(student_NV: Tensor, teacher_NV: Tensor, k: int) -> Tensor:
    """Of each row, the share of the teacher's likeliest k that are among the student's likeliest k, (N,).

    Raises:
        ValueError: k is not from 1 to V.
    """
    if not 1 <= k <= student_NV.shape[-1]:
        raise ValueError(f"k must be from 1 to {student_NV.shape[-1]}, got {k}")
    ours_NK, theirs_NK = student_NV.topk(k, -1).indices, teacher_NV.topk(k, -1).indices
    return (theirs_NK.unsqueeze(-1) == ours_NK.unsqueeze(-2)).any(-1).float().mean(-1)


class Beside:
    """Adds up, over any number of batches, how far the student is from the teacher. Sums are in 64 bits."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.rows = self.top_k = 0

    @torch.no_grad()
    def add(self, student: Dense, teacher: Dense, step: int = 1) -> None:
        """The rows of a batch that count, or every `step`th of them, in tiles."""
        for start in range(0, len(teacher), TILE * step):
            tile = slice(start, start + TILE * step, step)
            self._add(student.of(tile), teacher.of(tile))

    def _add(self, student_NV: Tensor, teacher_NV: Tensor) -> None:
        classes = teacher_NV.shape[-1]
        self.top_k = min(TOP_K, max(classes // 2, 1))
        of_rows = [
            forward_kl(student_NV, teacher_NV),
            jsd(student_NV, teacher_NV),
            student_NV.argmax(-1) == teacher_NV.argmax(-1),
            shared_top_k(student_NV, teacher_NV, self.top_k),
        ]
        self.sums += torch.stack([values.float() for values in of_rows]).cpu().double().sum(1)
        self.rows += len(teacher_NV)

    def found(self) -> Comparison:
        """The means over all rows so far."""
        kl, js, agreement, shared = (self.sums / max(self.rows, 1)).tolist()
        return Comparison(self.rows, kl, js, agreement, self.top_k, shared)
