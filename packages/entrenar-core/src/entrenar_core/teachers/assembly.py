"""The teacher of a run, as the configuration describes it: loaded, fitted if asked, and scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.config.teachers import EnsembleTeacher, ProbeFinetuning
from entrenar_core.models.calling import logits_of
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.onnx_model import OnnxModel
from entrenar_core.models.placing import placed
from entrenar_core.models.sentences import SentenceEncoder
from entrenar_core.models.token_map import MappedTeacher
from entrenar_core.reports import Scores
from entrenar_core.teachers.finetuning import (
    already_finetuned,
    finetuned_model,
    probe_classifier,
    readable_length,
)
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.loading import LoadedTeacher, load_teacher, load_whole, placing_of
from entrenar_core.teachers.precomputed import PrecomputedTeacher, classify
from entrenar_core.teachers.ready import ReadyTeacher, sound
from entrenar_core.teachers.sentences import LiveSentences, SentenceTeacher, precomputed_sentences, require_numbers
from entrenar_core.teachers.several import several_teachers
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.evaluation import OnBatch, score_logits
from entrenar_core.training.sentence_evaluation import score_sentences
from entrenar_core.training.signals import StopRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation

ReadTexts = Callable[[Sequence[str]], Tensor]
"""From texts to what a teacher says of them, (N, C), in 32 bits on the CPU."""


@dataclass(frozen=True, slots=True)
class FittedTeacher:
    """A teacher's model, ready to read. `reader` takes the student's tokens, and `forward` those of its own tokenizer.
    `model` is what a student may copy layers from, None under a probe and of a model that has no such layers.
    """

    reader: nn.Module
    forward: Callable[..., Tensor]
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
        DataError, ConfigError: its cache is damaged, or lacks what is asked of it.
        Interrupted, TrainingError: while it was fitted.
    """
    if prepared.members:
        make = partial(
            make_teacher,
            accelerator=accelerator,
            callbacks=callbacks,
            stop=stop,
            evaluate=evaluate,
            on_batch=on_batch,
            looking=looking,
        )
        return several_teachers(prepared, [make(one) for one in prepared.members], accelerator, callbacks, on_batch)
    load = partial(fitted_teacher, prepared, accelerator, callbacks, stop, on_batch, looking=looking)
    if prepared.config.teacher.cache is not None and not looking:
        from entrenar_core.teachers.cache.keeping import AskedTeacher
        from entrenar_core.teachers.cache.serving import cached_teacher

        def asked() -> AskedTeacher:
            return AskedTeacher(prepared, accelerator, load())

        return cached_teacher(prepared, accelerator, callbacks, asked, on_batch)
    fitted = load()
    read = reading_texts(prepared, fitted, accelerator, on_batch)
    if prepared.task == EMBEDDING:
        source, scores = _sentences(prepared, fitted, accelerator, read, looking=looking)
        return ReadyTeacher(source, scores, fitted.parameters, fitted.model)
    if prepared.teacher_reads_tokens:
        live = live_teacher(prepared, fitted, accelerator)
        return ReadyTeacher(live, sound(evaluate(fitted.reader), prepared), fitted.parameters, fitted.model)
    teacher, scores = precomputed(prepared, read, looking=looking)
    return ReadyTeacher(teacher, sound(scores, prepared), fitted.parameters, fitted.model)


def fitted_teacher(
    prepared: "Preparation",
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    stop: StopRequest,
    on_batch: OnBatch,
    *,
    looking: bool = False,
) -> FittedTeacher:
    """The model, fitted if asked; arguments and errors are those of `make_teacher`."""
    settings = prepared.config.teacher.finetune
    if isinstance(settings, ProbeFinetuning):
        body = placed(load_whole(prepared, placing_of(prepared, accelerator)).base_model, accelerator.device)
        classifier, kept = probe_classifier(prepared, body, accelerator, on_batch, keep=not looking)
        tell(callbacks, "reusing the probe fitted before" if kept else "fitted a probe to the labelled rows")
        return FittedTeacher(_mapped(prepared, classifier), classifier, parameter_count(classifier), None)
    if settings is not None:
        model, kept = (
            (already_finetuned(prepared, accelerator), True)
            if looking
            else finetuned_model(prepared, accelerator, callbacks, stop)
        )
        if kept:
            tell(callbacks, "reusing the teacher fitted before")
        loaded = LoadedTeacher(model, parameter_count(model), model)
    else:
        loaded = load_teacher(prepared, accelerator)
    for note in loaded.notes:
        tell(callbacks, note)
    inner = placed(loaded.model, accelerator.device).eval().requires_grad_(False)
    forward: Callable[..., Tensor] = partial(_logits, inner)
    if prepared.task == EMBEDDING:
        inner = forward = _encoder(prepared, inner)
    reader = placed(_mapped(prepared, inner), accelerator.device)
    return FittedTeacher(reader, forward, loaded.parameters, loaded.copyable)


def live_teacher(prepared: "Preparation", fitted: FittedTeacher, accelerator: Accelerator) -> LiveTeacher:
    """A teacher that reads the student's batches."""
    output = prepared.output_layer(fitted.reader, accelerator.device)
    size = prepared.config.teacher.batch_size
    return LiveTeacher(fitted.reader, accelerator, prepared.counting, output, size)


def reading_texts(
    prepared: "Preparation", fitted: FittedTeacher, accelerator: Accelerator, on_batch: OnBatch
) -> ReadTexts:
    """Reads texts with the teacher's own tokenizer, in batches fixed by the texts alone."""
    return lambda texts: classify(
        fitted.forward,
        prepared.teacher_tokenizer,
        texts,
        batch_size=prepared.teacher_batch_size,
        max_length=readable_length(prepared),
        accelerator=accelerator,
        on_batch=on_batch,
    )


def precomputed(
    prepared: "Preparation", read: ReadTexts, *, looking: bool = False
) -> tuple[PrecomputedTeacher, Scores]:
    """A classifier that has read all texts, and its scores."""
    rows = prepared.rows
    taught = not looking and (_learns_weights(prepared) or any(term.needs_teacher for term in prepared.terms))
    train = rows.train if taught else rows.train.select([])
    both = [*train, *rows.evaluation]
    logits_NC = read([row["text"] for row in both])
    labels_N = torch.tensor([row["label"] for row in rows.evaluation])
    return PrecomputedTeacher([row["row"] for row in both], logits_NC), score_logits(logits_NC[len(train) :], labels_N)


def _sentences(
    prepared: "Preparation", fitted: FittedTeacher, accelerator: Accelerator, read: ReadTexts, *, looking: bool
) -> tuple[SentenceTeacher, Scores]:
    if not prepared.teacher_reads_tokens:
        return precomputed_sentences(prepared, read, looking=looking)
    judged_NK = read(prepared.questions.texts)
    require_numbers(judged_NK, prepared)
    live = LiveSentences(fitted.reader, accelerator, judged_NK, prepared.config.teacher.batch_size)
    return live, score_sentences(judged_NK, prepared.questions)


def _encoder(prepared: "Preparation", model: nn.Module) -> nn.Module:
    """What makes vectors of sentences: some graphs do so by themselves."""
    assert prepared.poolings is not None
    pools = isinstance(model, OnnxModel) and model.gives_sentences
    return model if pools else SentenceEncoder(model, prepared.poolings[0])


def _learns_weights(prepared: "Preparation") -> bool:
    """Whether the weights of several teachers are found on training rows."""
    teacher = prepared.given.teacher
    return isinstance(teacher, EnsembleTeacher) and teacher.weighting == "learned"


def _logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return logits_of(model, input_ids, attention_mask)


def _mapped(prepared: "Preparation", model: nn.Module) -> nn.Module:
    """The model, reading the student's ids."""
    token_map = prepared.token_map
    return model if token_map is None else MappedTeacher(model, token_map, over_tokens=prepared.over_tokens)
