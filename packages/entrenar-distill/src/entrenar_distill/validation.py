"""`validate`: what can be known about a configuration without training, without torch, and with few bytes fetched.

What `run` would refuse before its first step is found here with the place of the setting, all of it at once. What
only weights and rows tell is left to `run`.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config import DistillationConfig
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.loading import in_order
from entrenar_core.config.one_teacher import OneTeacher, each_teacher, needs_weights
from entrenar_core.config.packing import check_packing
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DatasetConfig
from entrenar_core.config.sentences import check_task, for_task
from entrenar_core.config.teachers import EndpointTeacher, EnsembleTeacher, MovingAverageTeacher
from entrenar_core.config.wording import path_of, place_given
from entrenar_core.config.yaml_source import Path as SettingPath
from entrenar_core.data.builtin import BUILTIN_DATASETS
from entrenar_core.data.columns import check_columns, check_splits, peek_columns, source_of
from entrenar_core.errors import ConfigError, DataError, EntrenarError, OutputError, Problem, UsageError
from entrenar_core.exporting.preflight import output_problems
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.teacher_rules import check_loading
from entrenar_core.teachers.promises import promised
from entrenar_core.teachers.signals import unmet_together
from entrenar_distill.model_checks import (
    check_fit,
    check_layers_of,
    check_lengths,
    check_logits_of,
    check_poolings,
    check_teaching,
    look_at,
    named,
    task_of,
    told,
    unsaid,
)
from entrenar_distill.reports import Check, ValidationReport, Vocabulary
from entrenar_distill.vocabularies import compare


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
    first, *others = each_teacher(config)
    task, models, vocabulary, found = _models(first, hub, problems)
    checks += [_of_kind(check, config) for check in found]
    checks += _cache(first, problems)
    problems += unsaid(config, for_task(first, task), task, models)
    problems = [_of_teacher(problem, config, 0) for problem in problems]
    for place, one in enumerate(others, start=1):
        own: list[Problem] = []
        checks += _beside(one, place, task, models, hub, own)
        problems += [_of_teacher(problem, config, place) for problem in own]
    if others:
        problems += unmet_together([promised(config, one, task, None) for one in (first, *others)])
    checks += _schedule(first)
    checks += _data(config.dataset, task, problems)
    checks += _output(config, problems)
    problems += output_problems(config, task, *(_settings_of(models.get(part)) for part in ("student", "teacher")))
    if problems:
        raise ConfigError(in_order(_placed(problem, name, places or {}) for problem in problems))
    return ValidationReport(name, tuple(checks), vocabulary)


def _models(
    config: OneTeacher, hub: bool, problems: list[Problem]
) -> tuple[str | None, dict[str, ModelArtifact], Vocabulary | None, list[Check]]:
    """The task, the teacher and the student, how their vocabularies fit, and what was looked at."""
    models: dict[str, ModelArtifact] = {}
    checks: list[Check] = []
    for part, source, model_id in named(config):
        needed = part != "teacher" or needs_weights(config)
        check, model = look_at(part, source, model_id, problems, hub, weights_needed=needed)
        checks += [check] if check else []
        models |= {part: model} if model else {}
    task = task_of(config, models, problems)
    checks += told(config, task)
    problems += [*check_task(config, task), *check_packing(config, task), *check_teaching(config, task, models)]
    config = for_task(config, task)
    if task == EMBEDDING:
        checks += check_poolings(config, models, problems)
    checks += check_fit(config, task, models, problems)
    problems += check_loading(config, task, models.get("teacher"), models.get("student"))
    problems += check_layers_of(config, models)
    vocabulary = None
    if "teacher" in models and ("student" in models or config.student.model_id is None):
        check, vocabulary = compare(config, task, models["teacher"], models.get("student"), problems)
        checks += [check] if check else []
    problems += check_logits_of(config, task, models, vocabulary)
    problems += check_lengths(config, task, models)
    return task, models, vocabulary, checks


def _beside(
    config: OneTeacher,
    place: int,
    task: str | None,
    models: Mapping[str, ModelArtifact],
    hub: bool,
    problems: list[Problem],
) -> Iterator[Check]:
    """Another teacher: whether it can do the task, and reads what the student reads."""
    name = f"teacher {place + 1}"
    needed = needs_weights(config)
    check, teacher = look_at("teacher", config.teacher, config.teacher.model_id, problems, hub, weights_needed=needed)
    if check is not None:
        yield replace(check, name=name)
    if teacher is None:
        return
    both = {**models, "teacher": teacher}
    problems += check_teaching(config, task, both)
    problems += (found for found in check_loading(config, task, teacher, None) if found.where != "student.init_from")
    student = models.get("student") if config.student.model_id is not None else models.get("teacher")
    if student is not None:
        check, _ = compare(config, task, teacher, student, problems)
        if check is not None:
            yield replace(check, name=f"vocabulary of {name}")
    problems += check_lengths(config, task, both)
    yield from _cache(config, problems)


def _settings_of(model: ModelArtifact | None) -> Mapping[str, Any] | None:
    """The config.json of a model that is known."""
    return None if model is None or model.format is WeightFormat.GGUF else model.config or None


def _of_kind(check: Check, config: DistillationConfig) -> Check:
    """What is said of the teacher, where the student stands in for it."""
    match config.teacher:
        case EndpointTeacher(endpoint=url, model=model) if check.name == "teacher":
            return Check("teacher", "skipped", f"{model} at {url}: a run finds out whether it answers")
        case MovingAverageTeacher() if check.name == "teacher":
            return Check("teacher", "ok", "the moving average of the student")
    return check


_OF_THE_SERVER = ("teacher.endpoint", "teacher.cache")


def _of_teacher(problem: Problem, config: DistillationConfig, place: int) -> Problem:
    """A problem of one of several teachers at its place in the list; of the student's own average, at the student's."""
    match config.teacher:
        case EnsembleTeacher():
            there = f"teacher.members[{place}]."
        case MovingAverageTeacher() | EndpointTeacher():
            there = "student."
        case _:
            return problem
    if problem.where is None or not problem.where.startswith("teacher.") or problem.where in _OF_THE_SERVER:
        return problem
    return Problem(problem.message.replace("`teacher.", f"`{there}"), problem.hint, there + problem.where[8:])


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


def _cache(config: OneTeacher, problems: list[Problem]) -> Iterator[Check]:
    """Whether there is a cache that is complete; whether it is of this teacher, a run compares."""
    use = config.teacher.cache
    if use is None or use.dir is None:
        return
    from entrenar_core.teachers.cache.manifest import check_manifest, read_manifest

    try:
        manifest = read_manifest(use.dir)
    except DataError as error:
        problems.append(Problem(error.message, error.hint, "teacher.cache"))
        return
    found = check_manifest(manifest, use.dir)
    problems += found
    if not found:
        yield Check("cache", "ok", f"{manifest.kind['name']} of {manifest.rows:,} rows; a run compares what it is of")


def _schedule(config: OneTeacher) -> Iterator[Check]:
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
