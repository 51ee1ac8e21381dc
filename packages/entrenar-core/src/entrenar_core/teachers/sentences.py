"""A sentence encoder as a teacher: it says a vector of each row.

With texts at hand it reads each of them once, before training, with its own tokenizer; else, or where layers are
compared, it reads the student's batches.

Shapes: B rows, N texts, K teacher's width.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.data.collating import Batch
from entrenar_core.errors import TrainingError
from entrenar_core.models.calling import logits_of
from entrenar_core.models.recording import Record, recording
from entrenar_core.models.sentences import SentenceEncoder
from entrenar_core.models.wants import Wants
from entrenar_core.reports import Scores
from entrenar_core.teachers.cache.teacher import CachedSentences
from entrenar_core.teachers.live import Place, signals_of
from entrenar_core.teachers.numbers import not_finite
from entrenar_core.teachers.precomputed import ByRow, classify
from entrenar_core.teachers.promises import of_texts
from entrenar_core.teachers.signals import Signals
from entrenar_core.teachers.source import Said, TeacherSays
from entrenar_core.training.evaluation import OnBatch
from entrenar_core.training.sentence_evaluation import score_sentences

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


class PrecomputedSentences:
    """Vectors by row number; `judged_NK` are those of the texts that the student is judged on."""

    def __init__(self, rows: Sequence[int], vectors_NK: Tensor, judged_NK: Tensor) -> None:
        self.vectors, self.judged_NK = ByRow(rows, vectors_NK), judged_NK

    @property
    def signals(self) -> Signals:
        """What it can say."""
        return of_texts(embeds=True)

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training, where nothing can be wanted of its layers: it has read texts, not these tokens."""
        assert not wants.anything, "it has none"
        return lambda batch: Said(None, vectors_BK=self.vectors.of(batch))


class LiveSentences:
    """An encoder that reads the student's batches, at the same autocast as the student."""

    def __init__(self, model: nn.Module, accelerator: Place, judged_NK: Tensor, batch_size: int | None = None) -> None:
        self.model, self.accelerator, self.judged_NK = model, accelerator, judged_NK
        self.batch_size = batch_size

    @property
    def signals(self) -> Signals:
        """What it can say."""
        return signals_of(self.model, embeds=True)

    @torch.no_grad()
    def vectors(self, batch: Batch) -> Tensor:
        """(B, K)."""
        with self.accelerator.autocast():  # what a mapped teacher calls its logits is what its encoder gives
            return logits_of(self.model, batch.input_ids_BT, batch.attention_mask_BT)

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training: also what passes in the layers that are wanted."""

        def says(batch: Batch) -> Said:
            vectors, records = [], []
            for part in batch.parts(self.batch_size or len(batch.rows_B)):
                with recording(self.model, **wants.arguments()) as record:
                    vectors.append(self.vectors(part))
                records.append(record)
            return Said(None, Record.joined(records, batch.input_ids_BT.device), torch.cat(vectors))

        def vectors_of(batch: Batch) -> Said:
            parts = batch.parts(self.batch_size or len(batch.rows_B))
            return Said(None, vectors_BK=torch.cat([self.vectors(part) for part in parts]))

        return says if wants.anything else vectors_of


SentenceTeacher = PrecomputedSentences | LiveSentences | CachedSentences


def precomputed_sentences(
    prepared: "Preparation", read: Callable[[Sequence[str]], Tensor], *, looking: bool = False
) -> tuple[PrecomputedSentences, Scores]:
    """A teacher whose vectors of all texts are `read`, (N, K), and its own scores. When only `looking`, it reads no
    training rows to teach them.

    Raises:
        ModelError: its vectors are no numbers.
    """
    train = [] if looking else list(prepared.rows.train)
    vectors_NK = read([*(row["text"] for row in train), *prepared.questions.texts])
    require_numbers(vectors_NK, prepared)
    judged_NK = vectors_NK[len(train) :].clone()
    teacher = PrecomputedSentences([row["row"] for row in train], vectors_NK[: len(train)], judged_NK)
    return teacher, score_sentences(judged_NK, prepared.questions)


def require_numbers(vectors_NK: Tensor, prepared: "Preparation") -> None:
    """Raises ModelError where a teacher's vectors are no numbers."""
    if not vectors_NK.isfinite().all():
        raise not_finite(prepared, "vectors")


def judge(
    prepared: "Preparation", student: nn.Module, teacher: SentenceTeacher, accelerator: Accelerator, on_batch: OnBatch
) -> Scores:
    """The student's scores beside its teacher; raises as `judged`."""
    vectors_NH = judged(prepared, student, accelerator, on_batch)
    return score_sentences(vectors_NH, prepared.questions, teacher.judged_NK)


def judged(prepared: "Preparation", student: nn.Module, accelerator: Accelerator, on_batch: OnBatch) -> Tensor:
    """The student's vectors of the texts that it is judged on, (N, H), in evaluation mode; it is left in the mode that
    it was in.

    Raises:
        TrainingError: they are no numbers.
    """
    assert prepared.poolings is not None
    training = student.training
    student.to(accelerator.device).eval()
    vectors_NH = classify(
        SentenceEncoder(student, prepared.poolings[1]).eval(),
        prepared.tokenizer,
        prepared.questions.texts,
        batch_size=prepared.config.training.evaluation_batch_size,
        max_length=prepared.config.dataset.max_length,
        accelerator=accelerator,
        on_batch=on_batch,
    )
    student.train(training)
    if not vectors_NH.isfinite().all():
        raise TrainingError(
            "the student's vectors of the evaluation rows are not all finite numbers",
            "lower `training.learning_rate`, or set `training.mixed_precision: no`, and start again with --force",
        )
    return vectors_NH
