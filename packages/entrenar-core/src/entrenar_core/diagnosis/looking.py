"""Both models and the data of a configuration, looked at before anything is trained."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teachers import TeacherConfig
from entrenar_core.diagnosis.comparing import Beside
from entrenar_core.diagnosis.distributions import TeacherStudy
from entrenar_core.diagnosis.findings import Diagnosis, Layers, OnLabels, SentenceDiagnosis, Trouble
from entrenar_core.diagnosis.layers import compare_layers
from entrenar_core.diagnosis.sentences import collapse, describe
from entrenar_core.diagnosis.troubles import flatness
from entrenar_core.errors import DataError, ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import CLASSIFICATION, EMBEDDING
from entrenar_core.models.placing import placed
from entrenar_core.models.rows import Rows, read_rows
from entrenar_core.models.sentences import SentenceEncoder
from entrenar_core.models.token_map import MappedTeacher, TokenMap
from entrenar_core.models.tokenizer_facts import facts_of
from entrenar_core.models.vocabulary import VocabularyFinding
from entrenar_core.models.vocabulary import diagnose as compare_vocabularies
from entrenar_core.reports import Scores
from entrenar_core.teachers.assembly import make_teacher
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.loading import load_whole, placing_of
from entrenar_core.teachers.precomputed import PrecomputedTeacher
from entrenar_core.teachers.ready import ReadyTeacher
from entrenar_core.teachers.sentences import LiveSentences, SentenceTeacher, judged
from entrenar_core.training.assembly import make_accelerator, make_student
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.evaluation import evaluate, length_sorted_batches
from entrenar_core.training.losses import sizes_of
from entrenar_core.training.names import student_name
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.preparing import prepare
from entrenar_core.training.sentence_evaluation import score_sentences
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.verdict import interval, majority_accuracy
from entrenar_core.units import percent

_SAMPLED = 64
"""Rows over whose tokens layers are compared."""


def look(
    config: DistillationConfig,
    *,
    rows: int = 256,
    callbacks: Sequence[Callback] = (),
    download_progress: Callable[[Any], None] | None = None,
) -> tuple[Diagnosis | SentenceDiagnosis, VocabularyFinding]:
    """Both models on the first `rows` evaluation rows, and how their vocabularies fit. Trains no model and writes
    nothing; downloads what is missing. A probe that no run has kept is fitted for the occasion.

    Args:
        config: what a run would do.
        rows: at most so many evaluation rows.
        callbacks: watch what is going on.
        download_progress: is told how far downloads are.

    Raises:
        EntrenarError: of the kind that fits, as a run would raise it before its first step.
        UsageError: the teacher would have to be trained first.
        ValueError: `rows` is not positive.
    """
    if rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    if not isinstance(config.teacher, TeacherConfig):
        raise UsageError(
            "`diagnose` looks into one teacher that is a model here, and the configuration has another kind",
            "name the model with --teacher",
        )
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": None})})
    accelerator = make_accelerator(config)
    prepared = _first_rows(prepare(config, download_progress), rows)
    return _Looking(prepared, accelerator, callbacks).look()


def _first_rows(prepared: Preparation, rows: int) -> Preparation:
    count = min(rows, len(prepared.rows.evaluation))
    evaluation = prepared.rows.evaluation.select(range(count))
    first = dataclasses.replace(
        prepared,
        rows=dataclasses.replace(prepared.rows, evaluation=evaluation),
        eval_tokens=prepared.eval_tokens.select(range(count)),
    )
    if prepared.task == EMBEDDING and count < len(prepared.rows.evaluation):
        try:
            _ = first.questions
        except DataError as error:
            raise DataError(f"of the first {count} rows, {error.message}", "look at more (`--rows`)") from None
    return first


class _Looking:
    def __init__(self, prepared: Preparation, accelerator: Accelerator, callbacks: Sequence[Callback]) -> None:
        self.prepared, self.accelerator, self.callbacks = prepared, accelerator, callbacks

    def look(self) -> tuple[Diagnosis | SentenceDiagnosis, VocabularyFinding]:
        prepared = self.prepared
        finding = prepared.finding or _vocabularies(prepared)
        self._phase("teacher")
        ready = make_teacher(
            prepared,
            self.accelerator,
            self.callbacks,
            StopRequest(),
            evaluate=self._sound,
            on_batch=self._watch,
            looking=True,
        )
        self._phase("student")
        student = make_student(prepared, ready.model).to(self.accelerator.device).eval()
        if prepared.task == EMBEDDING:
            return self._vectors(ready, student, finding), finding
        return self._logits(ready, student, finding), finding

    def _logits(self, ready: ReadyTeacher, student: nn.Module, finding: VocabularyFinding) -> Diagnosis:
        prepared = self.prepared
        self._phase("distributions")
        temperatures = configured_temperatures(prepared.config.distillation)
        study, beside = self._distributions(ready, student, temperatures)
        self._phase("layers")
        layers, skipped = self._layers(ready, student, finding)
        entropies = study.entropies()
        return Diagnosis(
            task=prepared.task,
            teacher=prepared.teacher_name,
            student=student_name(prepared.config),
            dataset=prepared.rows.name,
            rows=len(prepared.rows.evaluation),
            targets=study.targets,
            classes=study.classes,
            on_labels=study.on_labels(),
            by_temperature=study.by_temperature(),
            configured_temperatures=temperatures,
            advice=study.advice(),
            student_before=beside.found(),
            layers=layers,
            layers_skipped=skipped,
            troubles=(
                *_weakness(prepared, study.on_labels()),
                *flatness({t: entropies[t] for t in (1.0, *temperatures)}, study.classes),
            ),
        )

    def _vectors(self, ready: ReadyTeacher, student: nn.Module, finding: VocabularyFinding) -> SentenceDiagnosis:
        prepared, source, questions = self.prepared, ready.source, self.prepared.questions
        assert isinstance(source, SentenceTeacher), "it says vectors"
        assert prepared.poolings is not None
        self._phase("vectors")
        vectors_NH = judged(prepared, student, self.accelerator, self._watch)
        scores = score_sentences(vectors_NH, questions, source.judged_NK)
        teacher = describe(source.judged_NK, questions.whole, ready.scores, prepared.poolings[0])
        self._phase("layers")
        layers, skipped = self._layers(ready, student, finding)
        return SentenceDiagnosis(
            task=prepared.task,
            teacher=prepared.teacher_name,
            student=student_name(prepared.config),
            dataset=prepared.rows.name,
            rows=questions.whole,
            queries=scores.targets,
            labelled=not questions.halved,
            teacher_encoder=teacher,
            student_before=describe(vectors_NH, questions.whole, scores, prepared.poolings[1]),
            rank_correlation=scores.rank_correlation,
            cosine=scores.cosine,
            layers=layers,
            layers_skipped=skipped,
            troubles=tuple(collapse(teacher, questions.whole)),
        )

    @torch.no_grad()
    def _distributions(
        self, ready: ReadyTeacher, student: nn.Module, temperatures: Sequence[float]
    ) -> tuple[TeacherStudy, Beside]:
        prepared = self.prepared
        study, beside, output = TeacherStudy(temperatures), Beside(), prepared.output_layer(student)
        size = prepared.config.training.evaluation_batch_size
        total = math.ceil(len(prepared.eval_tokens) / size)
        for done, cpu_batch in enumerate(length_sorted_batches(prepared.eval_tokens, prepared.collator, size)):
            self._watch(done, total)
            batch = cpu_batch.to(self.accelerator.device)
            assert isinstance(ready.source, PrecomputedTeacher | LiveTeacher), "it says logits"
            said: Rows = ready.source.rows(batch)
            study.add(said, prepared.counting.labels(batch))
            with self.accelerator.autocast():
                ours = read_rows(student, batch, prepared.counting, output)
            beside.add(ours, said)
        return study, beside

    def _layers(
        self, ready: ReadyTeacher, student: nn.Module, finding: VocabularyFinding
    ) -> tuple[Layers | None, str | None]:
        """Over the student's tokens, which the teacher must know."""
        if finding.difference is not None:
            return None, "the vocabularies differ, so the models do not read the same tokens"
        prepared = self.prepared
        if prepared.teacher.format is WeightFormat.ONNX:
            return None, "the teacher is ONNX, which shows none"
        count = range(min(_SAMPLED, len(prepared.eval_tokens)))
        batch = prepared.collator([prepared.eval_tokens[index] for index in count])
        try:
            teacher = self._reader(ready, finding)
            sizes = sizes_of(student), sizes_of(teacher)
            return compare_layers(student, teacher, batch, sizes[0].num_layers, sizes[1].num_layers), None
        except (ModelError, ValueError) as error:
            return None, str(error)

    def _reader(self, ready: ReadyTeacher, finding: VocabularyFinding) -> nn.Module:
        """The teacher as a model that reads the student's tokens, also where it has read the texts by itself."""
        if isinstance(ready.source, LiveTeacher | LiveSentences):
            return ready.source.model
        prepared, model = self.prepared, ready.model
        if model is None:  # of a probe, the body; its layers are those of the model that was loaded for it
            model = load_whole(prepared, placing_of(prepared, self.accelerator))
        reader = placed(model, self.accelerator.device).eval()
        ids = finding.teacher_ids
        if ids is None:
            return reader
        if prepared.poolings is not None:  # what it says is its vectors
            reader = SentenceEncoder(reader, prepared.poolings[0])
        return MappedTeacher(reader, TokenMap.of(ids), over_tokens=False)

    def _sound(self, model: nn.Module) -> Scores:
        """Of one row: whether the teacher gives numbers. All rows are read once, beside the student."""
        return evaluate(
            placed(model, self.accelerator.device),
            self.prepared.eval_tokens.select([0]),
            collator=self.prepared.collator,
            batch_size=1,
            counting=self.prepared.counting,
            accelerator=self.accelerator,
            output=self.prepared.output_layer(model, self.accelerator.device),
        )

    def _phase(self, name: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(name)

    def _watch(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_batch(done, total)


def _vocabularies(prepared: Preparation) -> VocabularyFinding:
    """How they fit, where the run does not need to know."""
    theirs, student = facts_of(prepared.teacher_tokenizer), prepared.student
    return compare_vocabularies(
        theirs,
        facts_of(prepared.tokenizer) if student is not None else theirs,
        teacher_rows=prepared.teacher.architecture.vocab_size,
        student_rows=None if student is None else student.architecture.vocab_size,
    )


def configured_temperatures(section: DistillationSection) -> tuple[float, ...]:
    """The temperatures that a training would use: of a schedule, its ends."""
    found: set[float] = set()
    for term in terms_of(section):
        if isinstance(term.temperature, Schedule):
            ends = (term.temperature.warmup_from, term.temperature.start, term.temperature.end)
            found |= {float(value) for value in ends if value is not None}
        elif term.temperature is not None:
            found.add(float(term.temperature))
    return tuple(sorted(found))


def _weakness(prepared: Preparation, found: OnLabels | None) -> Iterator[Trouble]:
    """A classifier that knows less than which class is the commonest, beyond what chance does on so many labels."""
    if found is None or prepared.task != CLASSIFICATION:
        return
    labels = [label for label in prepared.eval_tokens["labels"] if label >= 0]
    commonest = majority_accuracy(labels, labels)
    if interval(found.accuracy, found.labels)[1] < commonest:
        yield Trouble(
            "weak teacher",
            f"it is right on {percent(found.accuracy)} of the labels, the commonest class on {percent(commonest)}",
            "fit it to the labels (`teacher.finetune`), look at the order of its classes, or take another one",
        )
