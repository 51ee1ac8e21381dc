"""`validate`: what can be known about a configuration without training, without torch, and with few bytes fetched.

What `run` would refuse before its first step is found here with the place of the setting, all of it at once. What
only weights and rows tell is left to `run`.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config import DistillationConfig
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.loading import in_order
from entrenar_core.config.rules import NO_PROBE
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DatasetConfig, ModelSource, ProbeFinetuning
from entrenar_core.config.sentences import check_task, for_task
from entrenar_core.config.wording import path_of, place_given
from entrenar_core.config.yaml_source import Path as SettingPath
from entrenar_core.data.builtin import BUILTIN_DATASETS
from entrenar_core.data.columns import check_columns, check_splits, peek_columns, source_of
from entrenar_core.errors import ConfigError, EntrenarError, FetchError, OutputError, Problem, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import (
    CLASSIFICATION,
    EMBEDDING,
    LANGUAGE,
    MASKED_LM,
    NO_MASKED_HEAD,
    TAGGING,
    UNTOLD,
    headless,
    infer_task,
    predicts_masked,
)
from entrenar_core.models.layer_rules import check_layers, planned_student
from entrenar_core.models.reading import reads_tokens
from entrenar_core.models.sentence_rules import check_sentences, poolings_of
from entrenar_core.models.student_rules import check_kinds, check_student
from entrenar_core.references import HubReference, parse_reference
from entrenar_distill.reports import Check, ValidationReport
from entrenar_distill.vocabularies import compare

Models = Mapping[str, ModelArtifact]
"""The models that could be looked at, as `teacher` and `student`."""


def validate(
    config: DistillationConfig, name: str, places: Mapping[SettingPath, str] | None = None, *, hub: bool = True
) -> ValidationReport:
    """Checks models, student, lengths, columns and the output folder against each other.

    A Hub that cannot be reached is no mistake of the configuration: what hangs on it is skipped, and said so.

    Args:
        config: what is checked.
        name: what it is called, such as its file.
        places: where its settings were given, for the messages.
        hub: whether to ask the Hub about models of its own; `run` will, when it fetches them.

    Raises:
        ConfigError: all mistakes that were found.
    """
    problems: list[Problem] = []
    checks = [Check("settings", "ok", "every setting is known and has a value that it can have")]
    models: dict[str, ModelArtifact] = {}
    for part, source, model_id in _named(config):
        check, model = _model(part, source, model_id, problems, hub)
        checks += [check] if check else []
        models |= {part: model} if model else {}
    task = _task(config, models, problems)
    problems += [*check_task(config, task), *_teaching(config, task, models)]
    config = for_task(config, task)
    if task == EMBEDDING:
        checks += _sentences(config, models, problems)
    checks += _fit(config, task, models, problems)
    problems += _layers(config, models)
    vocabulary = None
    if "teacher" in models and ("student" in models or config.student.model_id is None):
        check, vocabulary = compare(config, task, models["teacher"], models.get("student"), problems)
        checks += [check] if check else []
    problems += _lengths(config, task, models)
    checks += _schedule(config)
    checks += _data(config.dataset, task, problems)
    checks += _output(config, problems)
    if problems:
        raise ConfigError(in_order(_placed(problem, name, places or {}) for problem in problems))
    return ValidationReport(name, tuple(checks), vocabulary)


def _placed(problem: Problem, name: str, places: Mapping[SettingPath, str]) -> Problem:
    """A problem of a setting as one of its place, which names the setting once."""
    if problem.where is None:
        return Problem(problem.message, problem.hint, name)
    where = place_given(path_of(problem.where), places) or name
    message = problem.message.removeprefix(f"`{problem.where}`: ")
    # a flag of its own, such as --output, names its setting; `--set` of a whole section does not
    names_it = where == f"--set {problem.where}" or (where.startswith("--") and not where.startswith("--set "))
    if not names_it and f"`{problem.where}`" not in message:
        message = f"`{problem.where}`: {message}"
    return Problem(message, problem.hint, where)


def _named(config: DistillationConfig) -> Iterator[tuple[str, ModelSource, str]]:
    yield "teacher", config.teacher, config.teacher.model_id
    if config.student.model_id is not None:
        yield "student", config.student, config.student.model_id


def _model(
    part: str, source: ModelSource, model_id: str, problems: list[Problem], hub: bool
) -> tuple[Check | None, ModelArtifact | None]:
    try:
        model = _described(source, model_id, hub)
    except FetchError as error:
        return Check(part, "skipped", f"{model_id} could not be reached: {error.message}"), None
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint, f"{part}.model_id"))
        return None, None
    if model is None:
        return Check(part, "skipped", f"what {model_id} is shows when its weights are fetched"), None
    architecture = model.architecture
    family = architecture.family or architecture.model_type
    return Check(part, "ok", f"{family}, {architecture.num_layers} layers of {architecture.hidden_size}"), model


def _described(source: ModelSource, model_id: str, hub: bool) -> ModelArtifact | None:
    """A model here, or what the config of one on the Hub says of it: then the artifact has no files."""
    from entrenar_core.hub import describe_model, fetch_model

    wanted = WeightFormat(source.format) if source.format else None
    reference = parse_reference(model_id, revision=source.revision)
    if not isinstance(reference, HubReference):
        return fetch_model(reference, format=wanted, files=source.files, allow_pickle=source.allow_pickle)
    if not hub:
        return None
    found = describe_model(reference, format=wanted, files=source.files, allow_pickle=source.allow_pickle)
    if found is None:
        return None
    return ModelArtifact(reference, Path(), (), 0, wanted or WeightFormat.SAFETENSORS, {}, found, None)


def _task(config: DistillationConfig, models: Models, problems: list[Problem]) -> str | None:
    """The task as `run` finds it. None where it cannot be told, which is a problem once all models are known."""
    teacher = models.get("teacher")
    fitted = config.teacher.finetune is not None
    found = config.task or (infer_task(teacher, models.get("student"), fitted=fitted) if teacher else None)
    if found is not None or fitted:
        return found or CLASSIFICATION
    if teacher is not None and len(models) == len(list(_named(config))):
        problems.append(Problem(*UNTOLD))
    return None


def _teaching(config: DistillationConfig, task: str | None, models: Models) -> Iterator[Problem]:
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


def _sentences(config: DistillationConfig, models: Models, problems: list[Problem]) -> Iterator[Check]:
    """How both models make a vector of a sentence, and whether the vectors can be compared."""
    teacher, student = models.get("teacher"), models.get("student")
    sizes = student.architecture if student else None
    if teacher is not None and config.student.model_id is None:
        sizes = planned_student(config.student, teacher.architecture)
    problems += check_sentences(config, teacher.architecture if teacher else None, sizes)
    here = [model for model in (teacher, student) if model is not None and model.weight_files]
    if teacher is None or len(here) < len(list(_named(config))):
        return
    try:
        of_teacher, of_student = poolings_of(config, teacher, student)
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint))
        return
    yield Check("pooling", "ok", f"{of_teacher} of the teacher, {of_student} of the student")


def _fit(config: DistillationConfig, task: str | None, models: Models, problems: list[Problem]) -> Iterator[Check]:
    """Whether a student that is built can be built; one that is named was looked at by itself."""
    if config.student.model_id is not None or "teacher" not in models:
        return
    found = check_student(config.student, models["teacher"].architecture, task=task)
    problems += found
    if not found:
        yield Check("fit", "ok", "the student fits the teacher")


def _layers(config: DistillationConfig, models: Models) -> list[Problem]:
    """Mistakes in losses between layers, where both models' sizes are known."""
    if "teacher" not in models or (config.student.model_id is not None and "student" not in models):
        return []
    teacher = models["teacher"].architecture
    student = models["student"].architecture if "student" in models else planned_student(config.student, teacher)
    return check_layers(config.distillation, teacher, student)


def _lengths(config: DistillationConfig, task: str | None, models: Models) -> Iterator[Problem]:
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


def _schedule(config: DistillationConfig) -> Iterator[Check]:
    """Warm-ups that a run of so many steps does not see the end of."""
    steps, warmup = config.training.max_steps, config.training.warmup_steps
    if steps is None:
        return
    if steps < warmup:
        detail = f"the warm-up of {warmup:,} steps is longer than the run of {steps:,}: the rate stays below its peak"
        yield Check("schedule", "ok", detail)
    for term in terms_of(config.distillation):
        for setting, value in (("weight", term.weight), ("temperature", term.temperature)):
            if isinstance(value, Schedule) and value.warmup_steps >= steps:
                detail = f"the {setting} of {term.label} is still warming up when the run of {steps:,} steps ends"
                yield Check("schedule", "ok", detail)


def _data(config: DatasetConfig, task: str | None, problems: list[Problem]) -> Iterator[Check]:
    try:
        found = check_splits(config)
        columns = None if found else peek_columns(config)
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint, "dataset.path" if config.path else "dataset.name"))
        return
    found += check_columns(config, task, columns) if task is not None else []
    problems += found
    if columns is None and not found:
        yield Check("columns", "skipped", _unseen(config))
    elif task is None and not found:
        yield Check("columns", "skipped", f"{', '.join(columns or ())}: which of them are read hangs on the task")
    elif not found:
        yield Check("columns", "ok", ", ".join(columns or ()))


def _unseen(config: DatasetConfig) -> str:
    if source_of(config) != "huggingface":
        return "the columns of a .zst file show when it is read"
    detail, name = "the columns of a Hub data set show when it is read", config.name or ""
    near = difflib.get_close_matches(name, BUILTIN_DATASETS, n=1, cutoff=0.8) if config.source is None else []
    return f"{detail}; did you mean the built-in `{near[0]}`?" if near and "/" not in name else detail


def _output(config: DistillationConfig, problems: list[Problem]) -> Iterator[Check]:
    from entrenar_core.training.run_folder import check_apart, check_usable, named_models

    folder = config.output.dir
    problems += check_apart(folder, named_models(config))
    try:
        check_usable(folder, resume=False, force=True)
    except (UsageError, OutputError) as error:
        problems.append(Problem(error.message, error.hint, "output.dir"))
        return
    try:
        check_usable(folder, resume=False, force=False)
    except UsageError as error:
        yield Check("output", "ok", f"{error.message}: run needs --resume or --force")
    else:
        yield Check("output", "ok", f"{folder} can be written")
