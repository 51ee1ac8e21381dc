"""From a YAML file and overrides to a `DistillationConfig`, or to every mistake at once, each with its place."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from entrenar_core.config.broken import Broken
from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.config.rules import broken_rules, broken_tuning_rules
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.spellings import RENAMED, respell
from entrenar_core.config.types import Section
from entrenar_core.config.wording import dotted, place, problems_of
from entrenar_core.config.yaml_source import Document, Path, parse_document
from entrenar_core.errors import ConfigError, Problem, UsageError

LARGEST_BYTES = 1_000_000
_MAY_BE_NULL = ("task", "adapter")
Override = tuple[Path, Any, str]
"""Where in the configuration, the value, and what said so, such as `--set training.epochs`."""


Config = TypeVar("Config", bound=Section)
_RULES: Mapping[type[Any], Callable[[Mapping[str, Any]], Iterator[Broken]]] = {
    DistillationConfig: broken_rules,
    FineTuneConfig: broken_tuning_rules,
}


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Config]):
    """A configuration, and where its settings were given: `file.yaml:14:3`, or what said so, such as `--output`."""

    config: Config
    places: Mapping[Path, str]


def load_config(path: FilePath | str | None, overrides: Sequence[Override] = ()) -> DistillationConfig:
    """Reads a configuration; `overrides` replace what the file says. Without a file they are all there is.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        ConfigError: all mistakes in it, with `file:line:column`, in the order in which they stand there.
    """
    return load_with_places(path, overrides).config


def load_finetuning(path: FilePath | str | None, overrides: Sequence[Override] = ()) -> FineTuneConfig:
    """The configuration of a fine-tuning; as `load_config`."""
    return _load(FineTuneConfig, path, overrides).config


def load_with_places(path: FilePath | str | None, overrides: Sequence[Override] = ()) -> Loaded[DistillationConfig]:
    """The same with the places of the settings, for whoever finds more mistakes in them; raises as `load_config`."""
    return _load(DistillationConfig, path, overrides)


def _load(schema: type[Config], path: FilePath | str | None, overrides: Sequence[Override]) -> Loaded[Config]:
    document = Document({}, {}) if path is None else parse_document(_read(FilePath(path)), str(path))
    if document.problems and not document.values:
        raise ConfigError(document.problems)
    problems = list(document.problems)
    problems += respell(document.values, document.places)  # before a flag replaces what has an older name in the file
    for where, value, flag in overrides:
        problems += _override(document, where, value, flag)
    config, mistakes = _validate(schema, document.values, document.places)
    if config is None or problems:
        raise ConfigError(in_order([*problems, *mistakes]))
    return Loaded(config, document.places)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """As they stand in the file, and those of flags after them; each once, where aliases repeat a mistake."""
    return sorted(dict.fromkeys(problems), key=_line_and_column)


def parse_config(values: Mapping[str, Any]) -> DistillationConfig:
    """The same from plain values, as `load_config` makes from YAML.

    Raises:
        ConfigError: all mistakes in them.
    """
    return _parse(DistillationConfig, values)


def parse_finetuning(values: Mapping[str, Any]) -> FineTuneConfig:
    """The configuration of a fine-tuning from plain values; as `parse_config`."""
    return _parse(FineTuneConfig, values)


def _parse(schema: type[Config], values: Mapping[str, Any]) -> Config:
    config, mistakes = _validate(
        schema, {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}, {}
    )
    if config is None:
        raise ConfigError(mistakes)
    return config


def _read(path: FilePath) -> str:
    try:
        with path.open("rb") as file:  # a pipe has no size to ask for
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ConfigError([Problem("is too large to be a configuration", where=str(path))])
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        near = _near(path)
        hint = f"did you mean {near}?" if near else "give the path of a YAML configuration"
        raise UsageError(f"{path}: no such file", hint) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("is not text in UTF-8", where=str(path))]) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "give the path of a YAML configuration") from error


def _near(path: FilePath) -> FilePath | None:
    """A YAML file of the same folder with nearly that name."""
    stems: dict[str, str] = {}  # the ending alone would make any two names near
    with suppress(OSError):  # there is no such folder, or it may not be listed
        stems = {file.stem: file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")}
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return path.with_name(stems[near[0]]) if near else None


def _override(document: Document, where: Path, value: Any, flag: str) -> list[Problem]:
    renamed = RENAMED.get(dotted(where[:2]))
    where = (*renamed.split("."), *where[2:]) if renamed else where
    holder: Any = document.values
    for depth, key in enumerate(where):
        problem = _cannot_hold(key, holder, where[:depth], flag)
        if problem is not None:
            return [problem]
        if depth == len(where) - 1:
            break
        inner = holder.get(key) if isinstance(holder, dict) else holder[key]
        if inner is None and isinstance(where[depth + 1], str):  # not there, or a section with all settings left out
            inner = holder[key] = {}
            document.places.setdefault(where[: depth + 1], flag)
        holder = inner
    holder[where[-1]] = value
    for path in [path for path in document.places if path[: len(where)] == where]:
        del document.places[path]
    document.places[where] = flag
    return []


def _cannot_hold(key: str | int, holder: Any, path: Path, flag: str) -> Problem | None:
    """Why there is no such setting or entry in what the configuration has there."""
    name = dotted(path)
    if isinstance(key, str) and isinstance(holder, dict):
        return None
    if isinstance(key, int) and not isinstance(holder, list):
        return Problem(f"`{name}` is not a list in the configuration", "give the whole list", flag)
    if not isinstance(holder, list):
        return Problem(f"`{name}` is not a group of settings", where=flag)
    if isinstance(key, int) and key < len(holder):
        return None
    entries = " to ".join(f"`{name}[{index}]`" for index in dict.fromkeys((0, len(holder) - 1)) if index >= 0)
    hint = f"name an entry of it: {entries}" if entries else "give the whole list"
    return Problem(f"`{name}` is a list with {len(holder)} entries, counted from 0", hint, flag)


def _validate(
    schema: type[Config], values: dict[str, Any], places: dict[Path, str]
) -> tuple[Config | None, list[Problem]]:
    problems = respell(values, places)
    values = {key: {} if value is None and key not in _MAY_BE_NULL else value for key, value in values.items()}
    config = None
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, places, schema)
    wrong = {problem.where for problem in problems if problem.where}
    for broken in _RULES[schema](values):
        where = _place_of(broken, places)
        if broken.path[0] in values and (where is None or where not in wrong):
            problems.append(Problem(broken.message, broken.hint, where))
    return (None if problems else config), problems


def _place_of(broken: Broken, places: Mapping[Path, str]) -> str | None:
    """Where the setting stands that a rule points at, or the flag that gave another one of which the rule speaks."""
    named = [tuple(name.split(".")) for name in re.findall(r"`([a-z_.]+)(?:: [^`]*)?`", broken.message)]
    found = [place(path, places) for path in (broken.path, *named)]
    return next((where for where in found if where is not None and where.startswith("--")), found[0])


def _line_and_column(problem: Problem) -> tuple[int, int, int]:
    if problem.where is None or problem.where.startswith("--"):
        return 1, 0, 0
    match problem.where.rsplit(":", 2):
        case [_, line, column] if line.isdecimal() and column.isdecimal():
            return 0, int(line), int(column)
    return 0, 0, 0
