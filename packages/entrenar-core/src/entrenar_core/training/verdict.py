"""What a report concludes from its scores."""

from collections import Counter
from collections.abc import Iterator, Sequence

from entrenar_core.config.schema import DistillationConfig
from entrenar_core.reports import Scores


def majority_accuracy(evaluation: Sequence[int], train: Sequence[int]) -> float:
    """Accuracy of always answering with the commonest label of the training rows."""
    commonest = Counter(label for label in train if label >= 0).most_common(1)
    return sum(label == commonest[0][0] for label in evaluation) / len(evaluation) if commonest else 0.0


def perplexity_ratio(scores: Scores, teacher: Scores) -> float | None:
    """Student ÷ teacher; None for a classifier."""
    return scores.perplexity / teacher.perplexity if scores.perplexity and teacher.perplexity else None


def warnings(config: DistillationConfig, student: Scores, baseline: Scores | None, teacher: Scores) -> Iterator[str]:
    """What a reader should know before believing the scores."""
    if baseline is not None:
        # compared by what the report shows: accuracy of classes, cross-entropy of tokens
        causal = student.perplexity is not None
        teacher_wins = (
            teacher.cross_entropy < baseline.cross_entropy if causal else teacher.accuracy > baseline.accuracy
        )
        student_wins = (
            student.cross_entropy < baseline.cross_entropy if causal else student.accuracy > baseline.accuracy
        )
        if not teacher_wins:
            yield "the teacher is no better than the student trained without it: distilling from it is not worth while"
        elif not student_wins:
            yield "the distilled student is no better than the one trained without a teacher"
        yield "one seed: differences of a few points can be chance"
    if config.training.select == "best":
        yield "the weights were selected on the evaluation rows, so the student's score is optimistic"
