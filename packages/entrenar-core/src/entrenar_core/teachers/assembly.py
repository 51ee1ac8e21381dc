"""The teacher of a run, as the configuration describes it: loaded, fitted if asked, and scored.

Shapes: N texts, C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.config.schema import ProbeFinetuning
from entrenar_core.errors import ModelError
from entrenar_core.models.calling import logits_of
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import load_model
from entrenar_core.models.token_map import MappedTeacher
from entrenar_core.reports import Scores
from entrenar_core.teachers.finetuning import (
    already_finetuned,
    finetuned_model,
    probe_classifier,
    readable_length,
)
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.precomputed import PrecomputedTeacher, classify
from entrenar_core.teachers.sentences import SentenceTeacher, sentence_teacher
from entrenar_core.teachers.source import TeacherSource
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.evaluation import OnBatch, score_logits
from entrenar_core.training.signals import StopRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class ReadyTeacher:
    """A teacher with its scores on the evaluation rows. `model` is what a student may copy layers from, if loaded."""

    source: TeacherSource | SentenceTeacher
    scores: Scores
    parameters: int
    model: "PreTrainedModel | None"


def make_teacher(
    prepared: "Preparation",
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    stop: StopRequest,
    *,
    evaluate: Callable[[nn.Module], Scores],
    on_batch: OnBatch,
    looking: bool = False,
) -> ReadyTeacher:
    """Loads or fits the teacher. `evaluate` scores a model that reads the student's tokens. When only `looking`, it
    reads no training rows to teach them, and keeps no probe and trains no teacher that was not kept before.

    Raises:
        UsageError: only looking, and the teacher would have to be trained.
        ModelError: it cannot be loaded, or says what are no numbers.
        Interrupted, TrainingError: while it was fitted.
    """
    if prepared.config.teacher.cache is not None and not looking:
        return _cached(prepared, prepared.config.teacher.cache, accelerator, on_batch)
    if prepared.task == EMBEDDING:
        model = _loaded(prepared)
        source, scores = sentence_teacher(prepared, model, accelerator, on_batch, looking=looking)
        return ReadyTeacher(source, scores, parameter_count(model), model)
    if isinstance(prepared.config.teacher.finetune, ProbeFinetuning):
        body = _loaded(prepared).base_model.to(accelerator.device)
        classifier, kept = probe_classifier(prepared, body, accelerator, on_batch, keep=not looking)
        _note(callbacks, "reusing the probe fitted before" if kept else "fitted a probe to the labelled rows")
        if prepared.teacher_reads_tokens:
            live = LiveTeacher(classifier, accelerator, prepared.counting)
            return ReadyTeacher(live, _sound(evaluate(classifier), prepared), parameter_count(classifier), None)
        teacher, scores = _precomputed(prepared, accelerator, classifier, on_batch, looking)
        return ReadyTeacher(teacher, _sound(scores, prepared), parameter_count(classifier), None)
    if prepared.config.teacher.finetune is not None:
        model, kept = (
            (already_finetuned(prepared, accelerator), True)
            if looking
            else finetuned_model(prepared, accelerator, callbacks, stop)
        )
        if kept:
            _note(callbacks, "reusing the teacher fitted before")
    else:
        model = _loaded(prepared)
    reader = _reader(prepared, model)
    if prepared.teacher_reads_tokens:
        live = LiveTeacher(reader, accelerator, prepared.counting, prepared.output_layer(reader))
        return ReadyTeacher(live, _sound(evaluate(reader), prepared), parameter_count(model), model)
    model.to(accelerator.device).eval().requires_grad_(False)
    teacher, scores = _precomputed(
        prepared,
        accelerator,
        lambda input_ids, attention_mask: logits_of(model, input_ids, attention_mask),
        on_batch,
        looking,
    )
    return ReadyTeacher(teacher, _sound(scores, prepared), parameter_count(model), model)


def _cached(prepared: "Preparation", folder: Path, accelerator: Accelerator, on_batch: OnBatch) -> ReadyTeacher:
    """A teacher of a cache. Its model is loaded where the student is made of it, and not beyond."""
    from entrenar_core.teachers.cache.opening import open_cache
    from entrenar_core.teachers.cache.scoring import score_cached

    source, manifest = open_cache(folder, accelerator.device)
    model = _loaded(prepared) if prepared.config.student.init_from is not None else None
    scores = _sound(score_cached(prepared, source, accelerator, on_batch), prepared)
    return ReadyTeacher(source, scores, int(manifest.teacher["parameters"]), model)


def _reader(prepared: "Preparation", model: nn.Module) -> nn.Module:
    """The model, reading the student's ids."""
    token_map = prepared.token_map
    return model if token_map is None else MappedTeacher(model, token_map, over_tokens=prepared.over_tokens)


def _sound(scores: Scores, prepared: "Preparation") -> Scores:
    if scores.cross_entropy is None or not math.isfinite(scores.cross_entropy):
        raise ModelError(
            f"the logits of the teacher {prepared.teacher.reference} are not all finite numbers",
            "load it with `teacher.dtype: float32`, without `training.mixed_precision`, or check its weights",
        )
    return scores


def _note(callbacks: Sequence[Callback], text: str) -> None:
    for callback in callbacks:
        callback.on_note(text)


def _loaded(prepared: "Preparation") -> "PreTrainedModel":
    settings = prepared.config.teacher
    return load_model(
        prepared.teacher,
        prepared.task,
        dtype=settings.dtype,
        label_names=prepared.label_names,
        trust_remote_code=settings.trust_remote_code,
        seed=prepared.config.training.seed,
        pad_token_id=prepared.teacher_tokenizer.pad_token_id,
    )


def _precomputed(
    prepared: "Preparation",
    accelerator: Accelerator,
    forward: Callable[..., Tensor],
    on_batch: OnBatch,
    looking: bool,
) -> tuple[PrecomputedTeacher, Scores]:
    rows, training = prepared.rows, prepared.config.training
    taught = not looking and any(term.needs_teacher for term in prepared.terms)
    train = rows.train if taught else rows.train.select([])
    both = [*train, *rows.evaluation]
    logits_NC = classify(
        forward,
        prepared.teacher_tokenizer,
        [row["text"] for row in both],
        batch_size=training.evaluation_batch_size,
        max_length=readable_length(prepared),
        accelerator=accelerator,
        on_batch=on_batch,
    )
    labels_N = torch.tensor([row["label"] for row in rows.evaluation])
    return PrecomputedTeacher([row["row"] for row in both], logits_NC), score_logits(logits_NC[len(train) :], labels_N)
