"""What the schema refuses, in plain words: which setting, what is wrong with it, and what would be right."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from entrenar_core.config.schema import DistillationConfig, Section
from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import Problem


def problems_of(error: ValidationError, places: Mapping[Path, str]) -> Iterator[Problem]:
    """Every mistake that the schema found, with its place where it has one."""
    details = error.errors(include_url=False)
    places_wrong = [entry["loc"] for entry in details]
    for entry in details:
        loc = entry["loc"]
        inside = any(len(other) > len(loc) and other[: len(loc)] == loc for other in places_wrong)
        if not (entry["type"] == "too_short" and inside):  # the list is short because an item was refused
            yield _problem(entry, places)


def place(path: Path, places: Mapping[Path, str]) -> str | None:
    """Where a setting stands, or the nearest group that would hold it."""
    while path not in places and path:
        path = path[:-1]
    return places.get(path)


def place_given(path: Path, places: Mapping[Path, str]) -> str | None:
    """Where a setting was given, by itself or in a whole group of a flag; None where it has its default."""
    near = path
    while near and near not in places:
        near = near[:-1]
    where = places.get(near) if near else None
    return where if near == path or where == f"--set {dotted(near)}" else None


def dotted(path: Path) -> str:
    """`student.init_from`, `output.formats[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _problem(details: ErrorDetails, places: Mapping[Path, str]) -> Problem:
    path, section = _walk(details["loc"])
    field = section.model_fields.get(_last_name(path)) if section else None
    shown = _shown(details["input"])
    match details["type"]:
        case "extra_forbidden" | "invalid_key":
            message, hint = "is not a setting", _suggestion(path, section)
        case "missing":
            message, hint = "is missing", _meaning(field)
        case "union_tag_not_found":
            path, message, hint = (*path, "method"), "is missing", f"choose {_methods(field)}"
        case "union_tag_invalid":
            path, shown = (*path, "method"), _shown(details["ctx"]["tag"])
            message, hint = f"cannot be {shown}", f"choose {_methods(field)}"
        case "literal_error":
            message, hint = f"cannot be {shown}", f"choose {details['ctx']['expected']}"
        case "value_error":
            message, hint = f"{details['ctx']['error']}, not {shown}", _meaning(field)
        case "model_type" | "model_attributes_type" | "dict_type":
            message, hint = f"is a group of settings, not {shown}", _meaning(field)
        case _:
            message, hint = f"should be {_wanted(field, path)}, not {shown}", _meaning(field)
    return Problem(f"`{dotted(path)}` {message}", hint, place(path, places))


def _walk(loc: tuple[str | int, ...]) -> tuple[Path, type[Section] | None]:
    """The path as a user writes it, without the tags of unions, and the section that its last name belongs to."""
    path: Path = ()
    owners: list[type[Section]] = [DistillationConfig]
    inside: list[type[Section]] = [DistillationConfig]
    for part in loc:
        if chosen := _tagged(inside, part):
            inside = chosen
            continue
        path = (*path, part)
        if isinstance(part, str):
            owners = inside
            inside = _inside(owners, part)
    return path, owners[0] if owners else None


def _tagged(sections: list[type[Section]], tag: str | int) -> list[type[Section]]:
    return [section for section in sections if len(sections) > 1 and tag in _tags(section)]


def _inside(owners: list[type[Section]], name: str) -> list[type[Section]]:
    return [kind for owner in owners for kind in _sections(owner.model_fields.get(name))]


def _sections(field: FieldInfo | None) -> list[type[Section]]:
    found: list[type[Section]] = []
    pending: list[Any] = [] if field is None else [field.annotation]
    while pending:
        kind = pending.pop(0)
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append(kind)
        pending += get_args(kind)
    return found


def _tags(section: type[Section]) -> tuple[Any, ...]:
    field = section.model_fields.get("method")
    return () if field is None else get_args(field.annotation)


def _methods(field: FieldInfo | None) -> str:
    *most, last = (f"'{tag}'" for section in _sections(field) for tag in _tags(section))
    return f"{', '.join(most)} or {last}"


def _last_name(path: Path) -> str:
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _wanted(field: FieldInfo | None, path: Path) -> str:
    """The title of the type: a whole number, at least 1. Types are titled where the schema defines them."""
    titles = [] if field is None else [field.title, *_titles(field.annotation)]
    given = [title for title in titles if title]
    if not given:
        return "of another type"
    return given[-1] if isinstance(path[-1], int) else given[0]


def _titles(annotation: Any) -> Iterator[str | None]:
    for note in getattr(annotation, "__metadata__", ()):
        yield getattr(note, "title", None)
    for inner in get_args(annotation):
        yield from _titles(inner)


def _meaning(field: FieldInfo | None) -> str | None:
    """What the setting is for, from its description, or that of its group; as a hint it starts in lower case."""
    if field is None:
        return None
    text = field.description or next((section.__doc__ for section in _sections(field) if section.__doc__), "")
    first, space, rest = text.removesuffix(".").partition(" ")
    return (first if any(map(str.isupper, first[1:])) else first.lower()) + space + rest or None


def _suggestion(path: Path, section: type[Section] | None) -> str | None:
    if section is None:
        return None
    name = str(path[-1])
    near = difflib.get_close_matches(name, section.model_fields, n=1)
    if near:
        return f"did you mean `{'.'.join([*map(str, path[:-1]), near[0]])}`?"
    elsewhere = [
        f"`{group}.{name}`"
        for group, field in DistillationConfig.model_fields.items()
        if any(name in inner.model_fields for inner in _sections(field))
    ]
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else f"it has {', '.join(section.model_fields)}"


def _shown(value: object) -> str:
    """A value as YAML spells it, cut where it is long."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}…"
