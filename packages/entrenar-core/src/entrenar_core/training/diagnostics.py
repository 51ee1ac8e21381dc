"""Looks at a training from inside, every so many optimiser steps: how gradients flow, and how far the student is from
its teacher. Changes no bit of it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from entrenar_core.data.collating import Batch
from entrenar_core.diagnosis.comparing import Beside
from entrenar_core.diagnosis.distributions import TILE, entropy, moments
from entrenar_core.diagnosis.troubles import find_troubles
from entrenar_core.losses.targets import Dense
from entrenar_core.models.rows import Rows, read_rows
from entrenar_core.models.sentences import vectors_of
from entrenar_core.models.wants import Wants
from entrenar_core.reports import Scores
from entrenar_core.teachers.sentences import SentenceTeacher
from entrenar_core.teachers.source import TeacherSource
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.gradients import gradient_norms, parameter_groups
from entrenar_core.training.layer_terms import LayerTerm
from entrenar_core.training.objective import Now, RowTerm
from entrenar_core.training.sentence_scores import mean_cosine, rank_correlation
from entrenar_core.training.step import DistillationStep
from entrenar_core.training.vector_terms import VectorTerm

MOST_ROWS = 1024
"""Rows or tokens of a micro-batch that are compared, evenly spaced."""


class Diagnostics(Callback):
    """Measures every `every` optimiser steps, for metrics.jsonl, and tells a trouble once, when it is recognised.

    Args:
        every: optimiser steps between two looks.
        step: the student with its objective.
        teacher: what the student is compared with; None where it learns from labels alone.
        accelerator: where the models are.
        note: is told of troubles.
        lines: what metrics.jsonl says already, such as before a run was resumed.
    """

    def __init__(
        self,
        every: int,
        step: DistillationStep,
        teacher: TeacherSource | SentenceTeacher | None,
        accelerator: Accelerator,
        note: Callable[[str], None],
        lines: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.every, self.step, self.teacher, self.accelerator, self.note = every, step, teacher, accelerator, note
        self.lines = list(lines)
        self.told = {(trouble.name, trouble.subject) for trouble in find_troubles(self.lines, ended=False)}

    def on_gradients(self, step: int, batches: Sequence[Batch], now: Sequence[Now]) -> Mapping[str, Any] | None:
        """Of the whole step its gradients, of its last micro-batch the distributions or the vectors."""
        if step != 1 and step % self.every:
            return None
        objective = self.step.objective
        weighed = [
            term for term, at in zip(objective.modules, now[len(objective.rows) :], strict=True) if at.weight > 0
        ]
        found: dict[str, Any] = {"gradient_norms": gradient_norms(parameter_groups(self.step.student, weighed))}
        counting = [batch for batch in batches if not batch.blank and batch.num_soft]
        if self.teacher is not None and counting:
            found |= self._beside_teacher(counting[-1].to(self.accelerator.device), self.teacher, weighed, now)
        self.lines.append({"step": step, "diagnostics": found})
        self._tell()
        return found

    def on_step(self, metrics: StepMetrics) -> None:
        """Remembers the steps that it looks at."""
        if metrics.step == 1 or metrics.step % self.every == 0:
            self.lines.append(asdict(metrics))

    def on_evaluate(self, step: int, scores: Scores) -> None:
        """Remembers it."""
        self.lines.append({"step": step, "evaluation": asdict(scores)})
        self._tell()

    def _tell(self) -> None:
        for trouble in find_troubles(self.lines, ended=False):
            if (trouble.name, trouble.subject) not in self.told:
                self.told.add((trouble.name, trouble.subject))
                self.note(str(trouble))

    @torch.no_grad()
    def _beside_teacher(
        self,
        batch: Batch,
        teacher: TeacherSource | SentenceTeacher,
        weighed: Sequence[VectorTerm | LayerTerm | ExitTerm],
        now: Sequence[Now],
    ) -> dict[str, Any]:
        if isinstance(teacher, SentenceTeacher):
            return self._vectors(batch, teacher, [term for term in weighed if isinstance(term, VectorTerm)])
        return self._distributions(batch, teacher, now)

    def _distributions(self, batch: Batch, teacher: TeacherSource, now: Sequence[Now]) -> dict[str, Any]:
        said = teacher.rows(batch)
        assert isinstance(said, Dense), "checked before training"
        stride = math.ceil(len(said) / MOST_ROWS)
        beside = Beside()
        beside.add(self._student_rows(batch), said, stride)
        entropies = _entropies(said, stride, self._temperatures(now))
        return {**asdict(beside.found()), "classes": said.of(slice(0, 1)).shape[-1], "teacher_entropy": entropies}

    def _vectors(self, batch: Batch, teacher: SentenceTeacher, terms: Sequence[VectorTerm]) -> dict[str, Any]:
        """How near the vectors of rows are to the teacher's, by each loss that compares row by row, after its
        projection; and whether pairs of rows are alike to both models in the same order.
        """
        said, pool = teacher.listening(Wants())(batch).vectors_BK, self.step.objective.pool
        assert said is not None, "it says vectors"
        assert pool is not None, "the student of a sentence encoder is one"
        stride = math.ceil(batch.num_soft / MOST_ROWS)
        theirs_NK = said[batch.targets][::stride]
        with self._at_rest() as student:
            vectors_BH = vectors_of(student, batch.input_ids_BT, batch.attention_mask_BT, pool)
            ours_NH = vectors_BH[batch.targets][::stride]
            cosines = {term.label: mean_cosine(term.projected(ours_NH), theirs_NK) for term in terms if term.row_by_row}
        return {"rows": len(ours_NH), "cosines": cosines, "rank_correlation": rank_correlation(ours_NH, theirs_NK)}

    def _student_rows(self, batch: Batch) -> Rows:
        with self._at_rest() as student:
            return read_rows(student, batch, self.step.objective.counting, self.step.output)

    @contextmanager
    def _at_rest(self) -> Iterator[nn.Module]:
        """The student without dropout, and without a draw from the generators of the training."""
        student = self.step.student
        training = student.training
        student.eval()
        try:
            with torch.random.fork_rng(), self.accelerator.autocast():
                yield student
        finally:
            student.train(training)

    def _temperatures(self, now: Sequence[Now]) -> list[float]:
        rows = zip(self.step.objective.rows, now, strict=False)
        return sorted({1.0, *(at.temperature for term, at in rows if _softens(term) and at.weight > 0)})


def _softens(term: RowTerm) -> bool:
    return term.core is not None


def _entropies(rows: Dense, stride: int, temperatures: Sequence[float]) -> dict[str, float]:
    """Mean entropy in nats by temperature, of every `stride`th row."""
    sums = torch.zeros(len(temperatures), dtype=torch.float64)
    for start in range(0, len(rows), TILE * stride):
        tile_NV = rows.of(slice(start, start + TILE * stride, stride))
        for place, (temperature, at) in enumerate(zip(temperatures, moments(tile_NV, temperatures), strict=True)):
            sums[place] += entropy(at, temperature).double().sum().cpu()
    means = (sums / math.ceil(len(rows) / stride)).tolist()
    return {f"{temperature:g}": mean for temperature, mean in zip(temperatures, means, strict=True)}
