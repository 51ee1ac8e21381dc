"""`validate`: what can be known about a configuration without training, without torch, and with few bytes fetched."""

from collections.abc import Iterator
from pathlib import Path

from entrenar_core.architectures import Architecture
from entrenar_core.config import DistillationConfig
from entrenar_core.config.schema import ModelSource
from entrenar_core.data.columns import check_columns, peek_columns, source_of
from entrenar_core.errors import ConfigError, EntrenarError, FetchError, OutputError, Problem, UsageError
from entrenar_core.models.student_rules import check_student
from entrenar_core.references import HubReference, parse_reference
from entrenar_distill.reports import Check, ValidationReport


def validate(config: DistillationConfig, name: str) -> ValidationReport:
    """Checks models, student, lengths, columns and the output folder against each other. `name` is what is checked.

    A Hub that cannot be reached is no mistake of the configuration: what hangs on it is skipped, and said so.

    Raises:
        ConfigError: all mistakes that were found.
    """
    problems: list[Problem] = []
    checks = [Check("settings", "ok", "every setting is known and has a value that it can have")]
    architectures: dict[str, Architecture] = {}
    for part, source, model_id in _models(config):
        check, architecture = _model(part, source, model_id, problems)
        checks += [check] if check else []
        if architecture is not None:
            architectures[part] = architecture
    task = config.task or _task(architectures.get("teacher"), config)
    teacher = architectures.get("teacher")
    if teacher is not None:
        found = check_student(config.student, teacher, task=task)
        problems += found
        checks += [] if found else [Check("student", "ok", "fits the teacher")]
    problems += _lengths(config, architectures, task)
    checks += _columns(config, task, problems)
    checks += _output(config.output.dir, problems)
    if problems:
        raise ConfigError([Problem(p.message, p.hint, f"{name}: {p.where}" if p.where else name) for p in problems])
    return ValidationReport(name, tuple(checks))


def _models(config: DistillationConfig) -> Iterator[tuple[str, ModelSource, str]]:
    yield "teacher", config.teacher, config.teacher.model_id
    if config.student.model_id is not None:
        yield "student", config.student, config.student.model_id


def _model(
    part: str, source: ModelSource, model_id: str, problems: list[Problem]
) -> tuple[Check | None, Architecture | None]:
    from entrenar_core.hub import describe_model, fetch_model

    try:
        reference = parse_reference(model_id, revision=source.revision)
        if isinstance(reference, HubReference):
            architecture = describe_model(reference)
        else:
            from entrenar_core.formats import WeightFormat

            wanted = WeightFormat(source.format) if source.format else None
            architecture = fetch_model(
                reference, format=wanted, files=source.files, allow_pickle=source.allow_pickle
            ).architecture
    except FetchError as error:
        return Check(part, "skipped", f"{model_id} could not be reached: {error.message}"), None
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint, f"{part}.model_id"))
        return None, None
    if architecture is None:
        return Check(part, "skipped", f"{model_id} has no config.json: what it is shows when it is fetched"), None
    family = architecture.family or architecture.model_type
    return Check(part, "ok", f"{family}, {architecture.num_layers} layers of {architecture.hidden_size}"), architecture


def _task(teacher: Architecture | None, config: DistillationConfig) -> str:
    names = " ".join(teacher.classes) if teacher else ""
    classifies = config.teacher.finetune is not None or "SequenceClassification" in names
    return "sequence-classification" if classifies else "causal-lm"


def _lengths(config: DistillationConfig, architectures: dict[str, Architecture], task: str) -> Iterator[Problem]:
    for part, architecture in architectures.items():
        positions = architecture.max_positions
        read = part == "student" or task == "causal-lm" or config.student.model_id is None
        if read and positions is not None and config.dataset.max_length > positions:
            yield Problem(
                f"`dataset.max_length` {config.dataset.max_length} is more than the {part}'s {positions} positions",
                f"set it to {positions} or less",
                "dataset.max_length",
            )


def _columns(config: DistillationConfig, task: str, problems: list[Problem]) -> Iterator[Check]:
    if source_of(config.dataset) == "huggingface":
        yield Check("columns", "skipped", "the columns of a Hub data set show when it is read")
        return
    try:
        columns = peek_columns(config.dataset)
        found = check_columns(config.dataset, task, columns)
    except EntrenarError as error:
        problems.append(Problem(error.message, error.hint, "dataset"))
        return
    problems += found
    if not found:
        yield Check("columns", "ok", ", ".join(columns or ()))


def _output(folder: Path, problems: list[Problem]) -> Iterator[Check]:
    from entrenar_core.training.run_folder import check_usable

    try:
        check_usable(folder, resume=False, force=False)
    except UsageError as error:
        yield Check("output", "ok", f"{error.message}: run needs --resume or --force")
    except OutputError as error:
        problems.append(Problem(error.message, error.hint, "output.dir"))
    else:
        yield Check("output", "ok", f"{folder} can be written")
