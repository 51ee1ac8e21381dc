"""What a run says of itself in the end."""

import math
from dataclasses import dataclass
from pathlib import Path

from entrenar_core.data.tags import flat_labels
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.reports import ModelFacts, RunReport, Scores
from entrenar_core.teachers.ready import ReadyTeacher
from entrenar_core.training.checkpoints import Progress
from entrenar_core.training.names import student_name
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.run_folder import read_metrics
from entrenar_core.training.verdict import (
    larger,
    majority_accuracy,
    perplexity_ratio,
    retention,
    troubles,
    warnings,
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A student before training and after it, and the same one trained without a teacher, if that was asked for."""

    before: Scores
    student: Scores
    baseline: Scores | None


def run_report(
    prepared: Preparation, folder: Path, progress: Progress, judged: Judged, teacher: ReadyTeacher, parameters: int
) -> RunReport:
    """The report of a run that is over, without the files of its result.

    Args:
        prepared: what it was made of.
        folder: where its metrics are.
        progress: how far the student came.
        judged: how good it is.
        teacher: of the student.
        parameters: of the student.
    """
    rows, training = prepared.rows, prepared.config.training
    assert progress.initial_loss is not None, "a run has a step"
    assert progress.final_loss is not None, "a run has a step"
    classifies = not prepared.over_tokens and prepared.task != EMBEDDING
    majority = majority_of(prepared) if classifies else None
    best = progress.best_step if training.select == "best" else None
    return RunReport(
        task=prepared.task,
        output_dir=folder,
        dataset=rows.name,
        train_rows=rows.num_train_rows,
        labelled_rows=rows.num_labelled_rows,
        eval_rows=len(rows.evaluation),
        seed=training.seed,
        steps=progress.step,
        selected_step=best or progress.step,
        initial_loss=progress.initial_loss,
        final_loss=progress.final_loss,
        teacher=ModelFacts(prepared.teacher_name, teacher.parameters, prepared.teacher_bytes),
        student=ModelFacts(student_name(prepared.config), parameters, 0),
        teacher_scores=teacher.scores,
        members=teacher.members,
        student_before=judged.before,
        student_scores=judged.student,
        baseline_scores=judged.baseline,
        majority_accuracy=majority,
        retention=retention(judged.student, teacher.scores, prepared.task),
        perplexity_ratio=perplexity_ratio(judged.student, teacher.scores),
        train_s=progress.train_s,
        examples_per_s=progress.examples / max(progress.train_s, 1e-9),
        files=(),
        warnings=(
            *prepared.warnings,
            *larger(parameters, teacher.parameters or math.inf),
            *warnings(prepared.config, judged.student, judged.baseline, teacher.scores, majority, judged.before),
            *troubles(prepared.config, read_metrics(folder / "metrics.jsonl")),
        ),
    )


def majority_of(prepared: Preparation) -> float:
    """The accuracy of the commonest class among the labels that tokens carry: words that were cut off do not count."""
    evaluation = prepared.eval_tokens["labels"]
    known = evaluation if prepared.config.dataset.streaming else prepared.train_tokens["labels"]
    return majority_accuracy(flat_labels(evaluation), flat_labels(known))  # a stream is not read for this
