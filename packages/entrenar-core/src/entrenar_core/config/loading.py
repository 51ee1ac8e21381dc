"""From a YAML file and overrides to a `DistillationConfig`, or to every mistake at once, each with its place."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from entrenar_core.config.rules import broken_rules
from entrenar_core.config.schema import DistillationConfig, Section
from entrenar_core.config.spellings import respell
from entrenar_core.config.yaml_source import Document, Path, parse_document
from entrenar_core.errors import ConfigError, NotFoundError, Problem

LARGEST_BYTES = 10_000_000
Override = tuple[Path, Any, str]
"""Where in the configuration, the value, and what said so, such as `--set training.epochs`."""


def load_config(path: FilePath | str | None, overrides: Sequence[Override] = ()) -> DistillationConfig:
    """Reads a configuration; `overrides` replace what the file says. Without a file they are all there is.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: all mistakes in it, with `file:line:column`.
    """
    document = Document({}, {}) if path is None else parse_document(_read(FilePath(path)), str(path))
    if document.problems and not document.values:
        raise ConfigError(document.problems)
    problems = list(document.problems)
    for where, value, flag in overrides:
        problems += _override(document, where, value, flag)
    config, mistakes = _validate(document.values, document.places)
    if config is None or problems:
        raise ConfigError([*problems, *mistakes])
    return config


def parse_config(values: Mapping[str, Any]) -> DistillationConfig:
    """The same from plain values, as `load_config` makes from YAML.

    Raises:
        ConfigError: all mistakes in them.
    """
    config, mistakes = _validate(
        {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}, {}
    )
    if config is None:
        raise ConfigError(mistakes)
    return config


def _read(path: FilePath) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError([Problem("is too large to be a configuration", where=str(path))])
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file", "give the path of a YAML configuration") from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("is not text in UTF-8", where=str(path))]) from None
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", "give the path of a YAML configuration") from error


def _override(document: Document, where: Path, value: Any, flag: str) -> list[Problem]:
    section: Any = document.values
    for depth, key in enumerate(where[:-1]):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return [Problem(f"`{_dotted(where[: depth + 1])}` is not a group of settings", where=flag)]
    section[where[-1]] = value
    for path in [path for path in document.places if path[: len(where)] == where]:
        del document.places[path]
    document.places[where] = flag
    return []


def _validate(values: dict[str, Any], places: dict[Path, str]) -> tuple[DistillationConfig | None, list[Problem]]:
    problems = respell(values, places)
    values = {key: {} if value is None else value for key, value in values.items()}
    config = None
    try:
        config = DistillationConfig.model_validate(values)
    except ValidationError as error:
        problems += [_problem(details, places) for details in error.errors(include_url=False)]
    wrong = {problem.where for problem in problems if problem.where}
    for path, message, hint in broken_rules(values):
        where = _place(path, places)
        if path[0] in values and (where is None or where not in wrong):
            problems.append(Problem(message, hint, where))
    return (None if problems else config), problems


def _problem(details: ErrorDetails, places: dict[Path, str]) -> Problem:
    path = tuple(
        part for part in details["loc"] if not (part in ("probe", "head", "full") and "finetune" in details["loc"])
    )
    name, where = _dotted(path), _place(path, places)
    match details["type"]:
        case "extra_forbidden":
            return Problem(f"`{name}` is not a setting", _suggestion(path), where)
        case "missing":
            return Problem(f"`{name}` is missing", _description(path), where)
        case "literal_error" | "union_tag_invalid":
            choices = details.get("ctx", {})
            expected = choices.get("expected") or choices.get("expected_tags", "")
            return Problem(f"`{name}` cannot be {_shown(details['input'])}", f"choose {expected}", where)
        case "value_error":
            return Problem(f"`{name}` {details['ctx']['error']}, not {_shown(details['input'])}", None, where)
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(f"`{name}` is a group of settings, not {_shown(details['input'])}", None, where)
        case _:
            message = details["msg"].replace("Input should", "should").replace("String should", "should")
            return Problem(
                f"`{name}` {message[0].lower()}{message[1:]}, not {_shown(details['input'])}", _description(path), where
            )


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:57]}…"


def _place(path: Path, places: dict[Path, str]) -> str | None:
    """Where a setting stands, or the nearest group that would hold it."""
    while path not in places and path:
        path = path[:-1]
    return places.get(path)


def _dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _section_at(path: Path) -> type[Section] | None:
    section: Any = DistillationConfig
    for part in path:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return None
    return section  # type: ignore[no-any-return]


def _suggestion(path: Path) -> str | None:
    section = _section_at(path[:-1])
    if section is None:
        return None
    near = difflib.get_close_matches(str(path[-1]), section.model_fields, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    elsewhere = [
        f"`{name}.{path[-1]}`"
        for name in DistillationConfig.model_fields
        if path[-1] in getattr(_section_at((name,)), "model_fields", {})
    ]
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else f"it has {', '.join(section.model_fields)}"


def _description(path: Path) -> str | None:
    section = _section_at(path[:-1])
    field = section.model_fields.get(str(path[-1])) if section else None
    return field.description if field else None
