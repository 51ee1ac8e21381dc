"""What `validate` finds out about the models: whether they are there, can do the task, and fit the losses."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teacher_rules import NO_PROBE
from entrenar_core.config.teachers import EndpointTeacher, ModelSource, ProbeFinetuning
from entrenar_core.errors import EntrenarError, FetchError, ModelError, Problem
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import (
    CAUSAL_LM,
    CLASSIFICATION,
    EMBEDDING,
    LANGUAGE,
    MASKED_LM,
    NO_MASKED_HEAD,
    TAGGING,
    UNTOLD,
    head_labels,
    headless,
    infer_task,
    predicts_masked,
)
from entrenar_core.models.layer_rules import check_layers, planned_student, wanted_layers
from entrenar_core.models.logit_rules import check_logits, selects
from entrenar_core.models.reading import reads_tokens
from entrenar_core.models.sentence_rules import check_sentences, poolings_of
from entrenar_core.models.student_rules import check_kinds, check_student
from entrenar_core.models.teacher_rules import told as told_formats
from entrenar_core.models.wants import Wants
from entrenar_core.references import HubReference, parse_reference
from entrenar_core.teachers.promises import taught
from entrenar_core.teachers.signals import unmet
from entrenar_distill.reports import Check, Vocabulary

Models = Mapping[str, ModelArtifact]
"""The models that could be looked at, as `teacher` and `student`."""


def named(config: OneTeacher) -> Iterator[tuple[str, ModelSource, str]]:
    """The models that the configuration names: the part, its section, and its `model_id`."""
    yield "teacher", config.teacher, config.teacher.model_id
    if config.student.model_id is not None:
        yield "student", config.student, config.student.model_id


def look_at(
    part: str, source: ModelSource, model_id: str, problems: list[Problem], hub: bool, *, weights_needed: bool = True
) -> tuple[Check | None, ModelArtifact | None]:
    """What a model is, where it can be looked at; a mistake is added to `problems`."""
    try:
        model = _described(source, model_id, hub, weights_needed=weights_needed)
    except FetchError as error:
        return Check(part, "skipped", f"{model_id} could not be reached: {error.message}"), None
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint, f"{part}.model_id"))
        return None, None
    if model is None:
        return Check(part, "skipped", f"what {model_id} is shows when its weights are fetched"), None
    architecture = model.architecture
    family = architecture.family or architecture.model_type
    loaded = f"; {said}" if (said := told_formats(model.format, source)) else ""
    return Check(part, "ok", f"{family}, {architecture.num_layers} layers of {architecture.hidden_size}{loaded}"), model


def _described(source: ModelSource, model_id: str, hub: bool, *, weights_needed: bool) -> ModelArtifact | None:
    """A model here, or what the config of one on the Hub says of it: then the artifact has no files."""
    from entrenar_core.hub import describe_model, fetch_model

    wanted = WeightFormat(source.format) if source.format else None
    reference = parse_reference(model_id, revision=source.revision)
    if not isinstance(reference, HubReference):
        return fetch_model(
            reference,
            format=wanted,
            files=source.files,
            allow_pickle=source.allow_pickle,
            weights_needed=weights_needed,
        )
    if not hub:
        return None
    found = describe_model(reference, format=wanted, files=source.files, allow_pickle=source.allow_pickle)
    if found is None:
        return None
    return ModelArtifact(reference, Path(), (), 0, wanted or WeightFormat.SAFETENSORS, {}, found, None)


def task_of(config: OneTeacher, models: Models, problems: list[Problem]) -> str | None:
    """The task as `run` finds it. None where it cannot be told, which is a problem once all models are known."""
    teacher = models.get("teacher")
    fitted = config.teacher.finetune is not None
    found = config.task or (infer_task(teacher, models.get("student"), fitted=fitted) if teacher else None)
    if found is not None or fitted:
        return found or CLASSIFICATION
    if teacher is not None and len(models) == len(list(named(config))):
        problems.append(Problem(*UNTOLD))
    return None


def told(config: OneTeacher, task: str | None) -> Iterator[Check]:
    """The task, as it was found."""
    if task is not None:
        yield Check("task", "ok", task if config.task else f"{task}, as the models are made for it")


def check_teaching(config: OneTeacher, task: str | None, models: Models) -> Iterator[Problem]:
    """Whether the models can do the task, and the teacher knows it or can be fitted to it."""
    finetune, teacher = config.teacher.finetune, models.get("teacher")
    if teacher is not None:
        yield from check_kinds(
            task, teacher.architecture, models["student"].architecture if "student" in models else None
        )
    if task in LANGUAGE and finetune is not None:
        yield Problem(f"`teacher.finetune` fits a classifier, and the task is {task}", "remove it", "teacher.finetune")
    if task == MASKED_LM and teacher is not None and not predicts_masked(teacher):
        yield Problem(f"{teacher.reference} {NO_MASKED_HEAD[0]}", NO_MASKED_HEAD[1], "teacher.model_id")
    if task is None or task in (*LANGUAGE, EMBEDDING):
        return
    if task == TAGGING and isinstance(finetune, ProbeFinetuning):
        yield Problem(*NO_PROBE, "teacher.finetune.method")
    if teacher is not None and finetune is None and infer_task(teacher, None) != task:
        yield Problem(*headless(teacher, task), "teacher.model_id")
    if finetune is not None and config.dataset.streaming:
        message = "`teacher.finetune` needs all labelled rows at hand"
        yield Problem(message, "remove `dataset.streaming`", "teacher.finetune")


def check_poolings(config: OneTeacher, models: Models, problems: list[Problem]) -> Iterator[Check]:
    """How both models make a vector of a sentence, and whether the vectors can be compared."""
    teacher, student = models.get("teacher"), models.get("student")
    sizes = student.architecture if student else None
    if teacher is not None and config.student.model_id is None:
        sizes = planned_student(config.student, teacher.architecture)
    problems += check_sentences(config, teacher.architecture if teacher else None, sizes)
    here = [model for model in (teacher, student) if model is not None and model.is_here]
    if teacher is None or len(here) < len(list(named(config))):
        return
    try:
        of_teacher, of_student = poolings_of(config, teacher, student)
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint))
        return
    yield Check("pooling", "ok", f"{of_teacher} of the teacher, {of_student} of the student")


def check_fit(config: OneTeacher, task: str | None, models: Models, problems: list[Problem]) -> Iterator[Check]:
    """Whether a student that is built can be built; one that is named was looked at by itself."""
    if config.student.model_id is not None or "teacher" not in models:
        return
    found = check_student(config.student, models["teacher"].architecture, task=task)
    problems += found
    if not found:
        yield Check("fit", "ok", "the student fits the teacher")


def check_layers_of(config: OneTeacher, models: Models) -> list[Problem]:
    """Mistakes in losses between layers, where both models' sizes are known."""
    if "teacher" not in models or (config.student.model_id is not None and "student" not in models):
        return []
    teacher = models["teacher"].architecture
    student = models["student"].architecture if "student" in models else planned_student(config.student, teacher)
    return check_layers(config.distillation, teacher, student)


def wanted_of(config: OneTeacher, models: Models) -> Wants | None:
    """The teacher's layers that the losses compare, where that is known and no mistake."""
    if "teacher" not in models or check_layers_of(config, models):
        return None
    student = models.get("student")
    if student is None and config.student.model_id is not None:
        return None
    teacher = models["teacher"].architecture
    shape = student.architecture if student else planned_student(config.student, teacher)
    return wanted_layers(terms_of(config.distillation), teacher, shape)


def check_logits_of(
    config: OneTeacher, task: str | None, models: Models, vocabulary: Vocabulary | None
) -> list[Problem]:
    """Mistakes in losses of logits, where it is known how many tokens or classes there are."""
    if not selects(config.distillation):  # reading a head's weights takes its time
        return []
    if task in LANGUAGE:
        tokens = vocabulary.length if vocabulary else None
        return check_logits(config.distillation, tokens, "tokens") if tokens else []
    if task in (CLASSIFICATION, TAGGING) and "teacher" in models and config.teacher.finetune is None:
        try:
            labels = head_labels(models["teacher"], task)
        except ModelError as error:
            return [Problem(error.message, error.hint, "teacher.model_id")]
        return check_logits(config.distillation, len(labels), "classes") if labels else []
    return []


def unsaid(given: DistillationConfig, config: OneTeacher, task: str | None, models: Models) -> Iterator[Problem]:
    """What the task and the losses ask for and the teacher does not say; whether a server answers, a run finds out."""
    teacher = models.get("teacher")
    signals = taught(given, config, task, teacher.format if teacher is not None else None)
    if signals is not None:
        yield from unmet(config, task, signals, wanted_of(config, models))
    if isinstance(given.teacher, EndpointTeacher) and task not in (None, CAUSAL_LM):
        yield Problem(f"`teacher.endpoint` predicts the next token, and the task is {task}", None, "teacher.endpoint")


def check_lengths(config: OneTeacher, task: str | None, models: Models) -> Iterator[Problem]:
    """Rows that are longer than a model has positions."""
    both = reads_tokens(config, task)
    for part, model in models.items():
        positions = model.architecture.max_positions
        read = part == "student" or both or config.student.model_id is None
        if read and positions is not None and config.dataset.max_length > positions:
            yield Problem(
                f"`dataset.max_length` {config.dataset.max_length} is more than the {part}'s {positions} positions",
                f"set it to {positions} or less",
                "dataset.max_length",
            )
