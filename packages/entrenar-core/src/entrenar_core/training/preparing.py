"""Everything that a run needs before its first step, with every mistake found here or not at all."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.one_teacher import OneTeacher, each_teacher, needs_weights
from entrenar_core.config.schema import DistillationConfig, Task
from entrenar_core.config.sentences import for_task
from entrenar_core.config.teachers import (
    EnsembleTeacher,
    ModelSource,
    MovingAverageTeacher,
)
from entrenar_core.data.collating import Collator
from entrenar_core.data.masking import Masking
from entrenar_core.data.sources import load_rows
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import ConfigError, ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.hub import fetch_model
from entrenar_core.models.heads import (
    CLASSIFICATION,
    EMBEDDING,
    MASKED_LM,
    UNTOLD,
    infer_task,
)
from entrenar_core.models.reading import reads_tokens
from entrenar_core.models.sentence_rules import poolings_of
from entrenar_core.references import parse_reference
from entrenar_core.teachers.promises import promised
from entrenar_core.teachers.signals import unmet_together
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.requirements import (
    check_beside,
    check_labels,
    check_losses,
    check_models,
    check_outputs,
    check_pad_token,
    check_room,
    check_selections,
    check_signals,
    check_teaching,
    known_labels,
    longest,
    one_vocabulary,
    require_adaptable,
    require_masked_head,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fetch(source: ModelSource, model_id: str, progress: Any = None, *, weights_needed: bool = True) -> ModelArtifact:
    """The files of a model named in the configuration, fetched if need be; raises as `fetch_model`."""
    return fetch_model(
        parse_reference(model_id, revision=source.revision),
        format=WeightFormat(source.format) if source.format else None,
        files=source.files,
        allow_pickle=source.allow_pickle,
        trust_remote_code=source.trust_remote_code,
        weights_needed=weights_needed,
        progress=progress,
    )


def prepare(config: DistillationConfig, progress: Any = None, *, of: int | None = None) -> Preparation:
    """Fetches, reads and checks. Downloads what is missing, and writes nothing else.

    Args:
        config: what is prepared.
        progress: is told how far downloads are.
        of: of several teachers, the only one whose weights are needed.

    Raises:
        EntrenarError: of the kind that fits; nothing has been trained or written.
    """
    first, *others = each_teacher(config)
    prepared = _prepare(config, first, progress, weights=needs_weights(first) and of in (None, 0))
    if others:
        if problems := list(unmet_together([promised(config, one, prepared.task, None) for one in (first, *others)])):
            raise ConfigError(problems)
        prepared = _together(
            [
                prepared,
                *(
                    _beside(prepared, one, progress, weights=needs_weights(one, copied=False) and of in (None, place))
                    for place, one in enumerate(others, start=1)
                ),
            ]
        )
    for one in prepared.members or (prepared,):
        if one.config.teacher.cache is not None:
            from entrenar_core.teachers.cache.opening import require_cache

            require_cache(one, one.config.teacher.cache)
    return prepared


def _prepare(given: DistillationConfig, config: OneTeacher, progress: Any, *, weights: bool) -> Preparation:
    teacher = fetch(config.teacher, config.teacher.model_id, progress, weights_needed=weights)
    student = fetch(config.student, config.student.model_id, progress) if config.student.model_id else None
    task = _task(config, teacher, student)
    check_models(config, task, teacher, student)
    config = for_task(config, task)
    check_losses(config, task, teacher, student)
    if student is not None and config.student.adapter is not None:
        require_adaptable(student, config.student.adapter, task, config.student)
    check_signals(given, config, task, teacher, student)
    check_outputs(given, task, teacher, student)
    poolings = poolings_of(config, teacher, student) if task == EMBEDDING else None
    teacher_tokenizer = tokenizer_of(teacher, config.teacher)
    tokenizer = tokenizer_of(student, config.student) if student else teacher_tokenizer
    masking = masking_of(config, tokenizer, teacher, student) if task == MASKED_LM else None
    # the student's own average reads what the student reads
    reads = reads_tokens(config, task) or isinstance(given.teacher, MovingAverageTeacher)
    finding = one_vocabulary(config, task, teacher, teacher_tokenizer, student, tokenizer) if reads else None
    rows = load_rows(
        config.dataset, task=task, seed=config.training.seed, label_names=known_labels(config, task, teacher)
    )
    check_teaching(config, task, teacher, rows)
    check_selections(config, task, rows, finding)
    length = longest(config, teacher, student, reads)
    check_room(config, teacher_tokenizer, tokenizer, task)
    tokenized = {
        name: tokenize_rows(data, tokenizer, task=task, config=config.dataset, max_length=length)
        for name, data in (("train", rows.train), ("evaluation", rows.evaluation))
    }
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "load_tokenizer gives a pad token"
    return Preparation(
        given=given,
        config=config,
        task=task,
        teacher=teacher,
        student=student,
        teacher_tokenizer=teacher_tokenizer,
        tokenizer=tokenizer,
        rows=rows,
        train_tokens=tokenized["train"],
        eval_tokens=tokenized["evaluation"],
        collator=Collator(pad, masking=masking),
        teacher_reads_tokens=reads,
        finding=finding,
        poolings=poolings,
    )


def _together(members: Sequence[Preparation]) -> Preparation:
    """Several teachers, over the tokens that all of them have.

    Raises:
        DataError: a row has no teacher.
    """
    from entrenar_core.teachers.ensemble import routes

    lengths = [one.finding.length for one in members if one.finding is not None]
    shared = tuple(dataclasses.replace(one, fewest_tokens=min(lengths, default=None)) for one in members)
    prepared = dataclasses.replace(shared[0], members=shared)
    ensemble = prepared.given.teacher
    assert isinstance(ensemble, EnsembleTeacher), "who has members"
    if prepared.config.dataset.route_column is not None:
        routes(prepared, ensemble)
    return prepared


def _beside(first: Preparation, config: OneTeacher, progress: Any, *, weights: bool) -> Preparation:
    """Another teacher of the same student, on the same rows."""
    task, student = first.task, first.student
    teacher = fetch(config.teacher, config.teacher.model_id, progress, weights_needed=weights)
    check_beside(config, task, teacher, student)
    tokenizer = tokenizer_of(teacher, config.teacher)
    if task == MASKED_LM:
        require_masked_head(teacher)
    reads, finding = first.teacher_reads_tokens, None
    if reads:
        finding = one_vocabulary(config, task, teacher, tokenizer, student or first.teacher, first.tokenizer)
    check_labels(config, task, teacher, first.rows)
    check_teaching(config, task, teacher, first.rows)
    longest(config, teacher, student, reads)
    check_room(config, tokenizer, first.tokenizer, task)
    return dataclasses.replace(
        first, config=config, teacher=teacher, teacher_tokenizer=tokenizer, finding=finding, members=(), copied=False
    )


def tokenizer_of(artifact: ModelArtifact, source: ModelSource) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model whose configuration can be read: a mistake in that is not told as one in a tokenizer."""
    from entrenar_core.models.loading import load_config as load_model_config
    from entrenar_core.models.tokenizers import load_tokenizer

    load_model_config(artifact, trust_remote_code=source.trust_remote_code)
    tokenizer = load_tokenizer(artifact, trust_remote_code=source.trust_remote_code)
    check_pad_token(artifact, tokenizer)
    return tokenizer


def _task(config: OneTeacher, teacher: ModelArtifact, student: ModelArtifact | None) -> Task:
    fitted = config.teacher.finetune is not None
    found = config.task or infer_task(teacher, student, fitted=fitted) or (CLASSIFICATION if fitted else None)
    if found is None:
        raise UsageError(*UNTOLD)
    return TypeAdapter(Task).validate_python(found)


def masking_of(
    config: OneTeacher,
    tokenizer: "PreTrainedTokenizerBase",
    teacher: ModelArtifact,
    student: ModelArtifact | None,
) -> Masking:
    require_masked_head(teacher)
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"the tokenizer of {(student or teacher).reference} has no mask token",
            "take a model that was trained on masked tokens, such as a BERT, or name its token as `mask_token` in its "
            "tokenizer_config.json",
        )
    return Masking.of(tokenizer, probability=config.dataset.mask_probability, seed=config.training.seed)
