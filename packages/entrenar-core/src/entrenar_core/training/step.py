"""The loss of one micro-batch, computed inside one module, so that the hooks of DDP see every forward pass.

Shapes: B rows, T positions, H width, V classes or vocabulary, N rows or positions that count.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Batch
from entrenar_core.losses import HardTerm, SoftTerm, cross_entropy, divergence_from, head_loss
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.models.calling import logits_of
from entrenar_core.models.output_layer import OutputLayer, instead_of_logits
from entrenar_core.models.recording import Record, recording
from entrenar_core.models.sentences import vectors_of
from entrenar_core.teachers.source import Said
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.objective import Now, Objective, RowTerm
from entrenar_core.training.vector_terms import VectorTerm


class StepLoss(NamedTuple):
    """The share of the step's loss, with a graph, and that of each of its terms before its weight, without."""

    loss: Tensor
    terms: Tensor


class DistillationStep(nn.Module):
    """A student with its objective: what `accelerate` prepares.

    With the student's `output` layer, its logits are made in tiles, and never all of them at once.
    """

    def __init__(self, student: nn.Module, objective: Objective, output: OutputLayer | None = None) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.output = output
        self.layers = nn.ModuleList(objective.modules)
        self.answers_itself = any(term.learn_from == "final" for term in objective.exits)
        self.wants = objective.wants(0)

    def forward(self, batch: Batch, said: Said | None, now: Sequence[Now]) -> StepLoss:
        """The micro-batch's share of the step's loss.

        Args:
            batch: rows of this rank.
            said: what the teacher says of them; None where no term with weight needs it.
            now: the objective's terms in this step. A term that nothing counts for is zero.
        """
        rows = len(self.objective.rows)
        teacher = None if said is None else said.rows
        vectors_BH: Tensor | None = None
        with recording(self.student, **self.wants.arguments()) if self.wants.anything else nullcontext() as record:
            if self.objective.pool is not None:
                vectors_BH = vectors_of(self.student, batch.input_ids_BT, batch.attention_mask_BT, self.objective.pool)
                of_rows, own = StepLoss(vectors_BH[:, :0].sum(), vectors_BH.new_zeros(0)), None
            else:
                of_rows, own = self._of_rows(batch, teacher, now[:rows])
        loss, shares = of_rows.loss, [of_rows.terms]
        for term, present in zip(self.layers, now[rows:], strict=True):
            if present.weight > 0:
                if isinstance(term, ExitTerm):
                    total = self._of_exits(term, record, batch, {"final": own, "teacher": teacher}, present)
                else:
                    total = self._total(term, record, vectors_BH, said, batch)
                loss = loss + total * present.factor
                shares.append(total.detach().reshape(1) / max(present.count, 1))
            else:  # DDP wants a gradient of every parameter in every step
                loss = loss + sum(parameter.sum() for parameter in term.parameters()) * 0.0
                shares.append(loss.new_zeros(1))
        return StepLoss(loss, torch.cat(shares))

    def _of_exits(
        self,
        term: ExitTerm,
        record: Record | None,
        batch: Batch,
        targets: Mapping[str, Targets | None],
        present: Now,
    ) -> Tensor:
        """The sum of exits, which learn from one of the targets or from labels."""
        assert record is not None, "it was asked for"
        target = targets.get(term.learn_from)
        total: Tensor = term(record, batch, self.objective.counting, self.output, target, present.temperature)
        return total

    @staticmethod
    def _total(
        term: nn.Module, record: Record | None, vectors_BH: Tensor | None, said: Said | None, batch: Batch
    ) -> Tensor:
        """The sum of a term between vectors or between layers."""
        assert said is not None, "a loss between models needs a teacher"
        if isinstance(term, VectorTerm):
            total: Tensor = term(vectors_BH, said.vectors_BK, batch)
        else:
            assert said.record is not None, "the teacher was not asked"
            total = term(record, said.record, batch)
        return total

    def _of_rows(self, batch: Batch, teacher: Targets | None, now: Sequence[Now]) -> tuple[StepLoss, Targets | None]:
        """The losses of rows, and the student's own answers where its exits learn from them."""
        if self.output is not None:
            return self._from_hidden(self.output, batch, teacher, now)
        counting = self.objective.counting
        logits = logits_of(self.student, batch.input_ids_BT, batch.attention_mask_BT, batch.packed)
        student_NV = counting.rows(logits[..., : counting.vocabulary], batch)
        own = Logits(student_NV.detach()) if self.answers_itself else None
        return self._from_logits(student_NV, batch, teacher, now), own

    def _from_logits(self, student_NV: Tensor, batch: Batch, teacher: Targets | None, now: Sequence[Now]) -> StepLoss:
        counting = self.objective.counting
        weights_N = counting.weights(batch)
        # a graph for ranks that have nothing to count; of no number, since in 16 bits a sum may be infinite
        loss = student_NV[:, :0].sum(dtype=at_least_fp32(student_NV[:0]).dtype)
        shares = loss.new_zeros(len(now))
        for index, term, present in self._present(now):
            if term.core is None:
                values_N = cross_entropy(student_NV, counting.labels(batch), smoothing=term.smoothing)
            else:
                assert teacher is not None, "a divergence needs a teacher"
                t = present.temperature
                values_N = divergence_from(teacher, term.core, student_NV, t) * t**term.power
            total = (values_N if weights_N is None else values_N * weights_N).sum()
            loss = loss + total * present.factor
            shares[index] = total.detach() / max(present.count, 1)
        return StepLoss(loss, shares)

    def _from_hidden(
        self, output: OutputLayer, batch: Batch, teacher: Targets | None, now: Sequence[Now]
    ) -> tuple[StepLoss, Targets | None]:
        """In tiles, inside the output layer's own forward pass."""
        found: list[tuple[StepLoss, Targets | None]] = []

        def use(hidden_BTH: Tensor) -> None:
            own = self._own(hidden_BTH, output, batch) if self.answers_itself else None
            found.append((self._tiled(hidden_BTH, output, batch, teacher, now), own))

        with instead_of_logits(output, use):
            logits_of(self.student, batch.input_ids_BT, batch.attention_mask_BT, batch.packed)
        return found[0]

    def _own(self, hidden_BTH: Tensor, output: OutputLayer, batch: Batch) -> Targets:
        """What the student itself says, as a target."""
        counting, head = self.objective.counting, output.head
        weight_VH, bias_V = head.weight_VH.detach(), None if head.bias_V is None else head.bias_V.detach()
        kept = replace(head, weight_VH=weight_VH, bias_V=bias_V)
        return HeadRows(counting.rows(hidden_BTH.detach(), batch), kept, counting.vocabulary)

    def _tiled(
        self, hidden_BTH: Tensor, output: OutputLayer, batch: Batch, teacher: Targets | None, now: Sequence[Now]
    ) -> StepLoss:
        counting = self.objective.counting
        soft: dict[int, SoftTerm] = {}
        hard: dict[int, HardTerm] = {}
        for index, term, present in self._present(now):
            if term.core is None:
                hard[index] = HardTerm(present.factor, term.smoothing)
            else:
                soft[index] = SoftTerm(term.core, present.temperature, present.factor, term.power)
        found = head_loss(
            counting.rows(hidden_BTH, batch),
            output.head,
            teacher=teacher,
            labels_N=counting.labels(batch),
            soft=list(soft.values()),
            hard=next(iter(hard.values()), None),
            row_weights_N=counting.weights(batch),
            vocabulary=counting.vocabulary,
        )
        shares = found.hard.new_zeros(len(now))
        for index, total in [*zip(soft, found.soft, strict=True), *((index, found.hard) for index in hard)]:
            shares[index] = total / max(now[index].count, 1)
        return StepLoss(found.total, shares)

    def _present(self, now: Sequence[Now]) -> list[tuple[int, RowTerm, Now]]:
        """The terms of rows that have weight now."""
        paired = enumerate(zip(self.objective.rows, now, strict=True))
        return [(index, term, present) for index, (term, present) in paired if present.weight > 0]
