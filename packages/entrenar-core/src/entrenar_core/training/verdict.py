"""What a report concludes from its scores."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.losses import LabelLoss, SoftLoss
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.diagnosis.series import Lines
from entrenar_core.diagnosis.troubles import find_troubles
from entrenar_core.models.heads import CAUSAL_LM
from entrenar_core.reports import Scores
from entrenar_core.training.schedules import moves
from entrenar_core.units import percent

FEW_ROWS = 200


def majority_accuracy(evaluation: Sequence[int], train: Sequence[int]) -> float:
    """Accuracy on the evaluation labels of always answering with the commonest of the training labels."""
    commonest = Counter(label for label in train if label >= 0).most_common(1)
    return sum(label == commonest[0][0] for label in evaluation) / len(evaluation) if commonest else 0.0


def interval(accuracy: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was measured on so many rows.

    Source: Wilson 1927, the score interval.
    """
    z2 = 1.96**2
    middle = (accuracy + z2 / (2 * rows)) / (1 + z2 / rows)
    half = 1.96 / (1 + z2 / rows) * math.sqrt(accuracy * (1 - accuracy) / rows + z2 / (4 * rows**2))
    return middle - half, middle + half


def quality(scores: Scores, *, language: bool) -> float:
    """What models are compared by, more is better: of language models −cross-entropy, of sentence encoders mean average
    precision, else entity F1 or accuracy.
    """
    if language:
        return -math.inf if scores.cross_entropy is None else -scores.cross_entropy
    found = (scores.mean_average_precision, scores.entity_f1, scores.accuracy)
    return next(value for value in found if value is not None)


def retention(scores: Scores, teacher: Scores, task: str) -> float | None:
    """Student ÷ teacher in what the report shows as kept; None for causal-lm, which has a ratio of perplexities."""
    mine, theirs = (quality(of, language=False) for of in (scores, teacher))
    return mine / theirs if task != CAUSAL_LM and theirs else None


def perplexity_ratio(scores: Scores, teacher: Scores) -> float | None:
    """Student ÷ teacher; None for a classifier."""
    return scores.perplexity / teacher.perplexity if scores.perplexity and teacher.perplexity else None


def troubles(config: DistillationConfig, lines: Lines) -> Iterator[str]:
    """What the metrics of a training that is over show clearly, each with its remedy."""
    for trouble in find_troubles(lines):
        if trouble.name != "overfitting" or config.training.select != "best":  # which is its remedy
            yield str(trouble)


def warnings(
    config: DistillationConfig,
    student: Scores,
    baseline: Scores | None,
    teacher: Scores,
    majority: float | None,
    before: Scores | None = None,
) -> Iterator[str]:
    """What a reader should know before believing the scores. `majority` is the accuracy of the commonest class, and
    `before` what the student was before training.
    """
    language = majority is None and student.mean_average_precision is None
    yield from _of_losses(config, student, majority)
    if majority is not None and teacher.accuracy <= majority:
        yield "the teacher is no better than always giving the commonest class"
    elif before is not None and quality(teacher, language=language) <= quality(before, language=language):
        yield "the teacher is no better than the student was before training"
    if majority is not None and student.examples < FEW_ROWS:
        yield few_rows(student)
    if baseline is not None:
        taught, own, rival = (quality(of, language=language) for of in (teacher, student, baseline))
        if taught <= rival:
            yield "the teacher is no better than the student trained without it: distilling from it is not worth while"
        elif own <= rival:
            yield "the distilled student is no better than the one trained without a teacher"
        yield "one seed: differences of a few points can be chance"
    if config.training.select == "best":
        yield "the weights were selected on the evaluation rows, so the student's score is optimistic"


def _of_losses(config: DistillationConfig, student: Scores, majority: float | None) -> Iterator[str]:
    """What the losses mean for the scores, and for the loss itself."""
    terms = terms_of(config.distillation)
    if any(moves(term.weight) or (term.temperature is not None and moves(term.temperature)) for term in terms):
        yield "schedules move the loss: its values in two steps cannot be compared"
    vectors = student.mean_average_precision is not None
    if not vectors and not any(isinstance(term.entry, SoftLoss | LabelLoss) for term in terms):
        yield (
            "no loss looks at the student's answers, so its head is not trained and its scores say nothing: "
            "it is a start for a run that trains them"
        )
    elif majority is not None and student.accuracy <= majority:
        yield "the student is no better than always giving the commonest class"


def larger(student: int, teacher: float) -> Iterator[str]:
    """What to know of a student of so many parameters beside its teacher's."""
    if student > teacher:
        yield f"the student has {student / teacher:.2g} times the parameters of its teacher"


def few_rows(scores: Scores, part: str = "student") -> str:
    """What an accuracy on few rows is worth."""
    rows = f"{scores.examples} evaluation rows are few"
    if scores.targets > scores.examples:  # words of one row hang together
        return f"{rows}: on others the scores may be some points away"
    low, high = interval(scores.accuracy, scores.examples)
    return f"{rows}: the {part}'s accuracy lies between {percent(low)} and {percent(high)} (95 % interval)"
