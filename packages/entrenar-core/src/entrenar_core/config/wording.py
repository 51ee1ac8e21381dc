"""What the schema refuses, in plain words: which setting, what is wrong with it, and what would be right."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import Discriminator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.types import Section
from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import Problem


def problems_of(
    error: ValidationError, places: Mapping[Path, str], schema: type[Section] = DistillationConfig
) -> Iterator[Problem]:
    """Every mistake that the schema found, with its place where it has one."""
    details = error.errors(include_url=False)
    places_wrong = [entry["loc"] for entry in details]
    for entry in details:
        loc = entry["loc"]
        inside = any(len(other) > len(loc) and other[: len(loc)] == loc for other in places_wrong)
        if not (entry["type"] == "too_short" and inside):  # the list is short because an item was refused
            yield _problem(entry, places, schema)


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


def path_of(name: str) -> Path:
    """The reverse of `dotted`."""
    return tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", name))


def _problem(details: ErrorDetails, places: Mapping[Path, str], schema: type[Section]) -> Problem:
    path, section = _walk(details["loc"], schema)
    field = section.model_fields.get(_last_name(path)) if section else None
    shown = _shown(details["input"])
    match details["type"]:
        case "extra_forbidden" | "invalid_key":
            message, hint = "is not a setting", _suggestion(path, section, schema)
        case "missing":
            message, hint = "is missing", _meaning(field)
        case "union_tag_not_found":
            path = (*path, details["ctx"]["discriminator"].strip("'"))
            message, hint = "is missing", f"choose {_kinds(field)}"
        case "union_tag_invalid":
            key = _discriminator(details)
            path, tag = (*path, key), details["input"][key]
            message, hint = f"cannot be {_shown(tag)}", _near(tag, _kind_names(field)) or f"choose {_kinds(field)}"
        case "literal_error":
            expected = details["ctx"]["expected"]
            near = _near(details["input"], re.findall(r"'([^']+)'", expected))
            message, hint = f"cannot be {shown}", near or f"choose {expected}"
        case "value_error":
            message, hint = f"{details['ctx']['error']}, not {shown}", _meaning(field)
        case "model_type" | "model_attributes_type" | "dict_type":
            message, hint = f"is a group of settings, not {shown}", _meaning(field)
        case "less_than" if _wanted(field, path).endswith(("at least 0", "at least 1")):  # which tell no bound above
            message, hint = f"should be below {details['ctx']['lt']:,}, not {shown}", _meaning(field)
        case _:
            message, hint = f"should be {_wanted(field, path)}, not {shown}", _meaning(field)
    return Problem(f"`{dotted(path)}` {message}", hint, place(path, places))


def _discriminator(details: ErrorDetails) -> str:
    """The setting that tells kinds of a section apart; where a function looks for it, it is the `method`."""
    name = str(details["ctx"]["discriminator"]).strip("'")
    return "method" if name.endswith("()") else name


def _walk(loc: tuple[str | int, ...], schema: type[Section]) -> tuple[Path, type[Section] | None]:
    """The path as a user writes it, without the tags of unions, and the section that its last name belongs to."""
    path: Path = ()
    owners: list[type[Section]] = [schema]
    inside: list[type[Section]] = [schema]
    tag_follows = False
    for part in loc:
        if isinstance(part, int):
            path = (*path, part)
        elif tag_follows:
            inside = [section for section in inside if part in _tags(section)] or inside
            tag_follows = False
        else:
            path, owners = (*path, part), inside
            inside = _inside(owners, part)
            tag_follows = any(_is_union(owner.model_fields.get(part)) for owner in owners)
    return path, owners[0] if owners else None


def _is_union(field: FieldInfo | None) -> bool:
    """Whether the places of what it holds name the member of a union, by a tag or by a discriminating setting."""
    return field is not None and (field.discriminator is not None or _discriminated(field))


def _discriminated(annotated: Any) -> bool:
    notes = annotated.metadata if isinstance(annotated, FieldInfo) else getattr(annotated, "__metadata__", ())
    if any(isinstance(note, Discriminator) or getattr(note, "discriminator", None) for note in notes):
        return True
    inner = [annotated.annotation] if isinstance(annotated, FieldInfo) else get_args(annotated)
    return any(_discriminated(part) for part in inner)


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
    """What a section is told apart by: its tag, or the values of its `method` or `name`."""
    if (tag := getattr(section, "TAG", None)) is not None:
        return (tag,)
    fields = [section.model_fields[name] for name in ("method", "name") if name in section.model_fields]
    return get_args(fields[0].annotation) if fields else ()


def _kind_names(field: FieldInfo | None) -> list[str]:
    return [tag for section in _sections(field) for tag in _tags(section)]


def _kinds(field: FieldInfo | None) -> str:
    *most, last = (f"'{tag}'" for tag in _kind_names(field))
    return f"{', '.join(most)} or {last}"


def _near(value: object, choices: list[str]) -> str | None:
    near = difflib.get_close_matches(str(value).lower(), choices, n=1)
    return f"did you mean '{near[0]}'?" if near else None


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


def _mark(section: type[Section]) -> str:
    """By what a kind of section is told from others: its method, or the first setting that must be given."""
    if "method" in section.model_fields:
        return f"method: {_tags(section)[0]}"
    return next(name for name, field in section.model_fields.items() if field.is_required())


def _mark_of_another(path: Path, section: type[Section], schema: type[Section]) -> str | None:
    """That of another kind of the same section, which has the setting."""
    if len(path) != 2 or path[0] not in schema.model_fields:
        return None
    others = (one for one in _sections(schema.model_fields[str(path[0])]) if one is not section)
    return next((_mark(one) for one in others if path[1] in one.model_fields), None)


def _suggestion(path: Path, section: type[Section] | None, schema: type[Section]) -> str | None:
    if section is None:
        return None
    name = str(path[-1])
    near = difflib.get_close_matches(name, section.model_fields, n=1)
    if near:
        return f"did you mean `{dotted((*path[:-1], near[0]))}`?"
    if (mark := _mark_of_another(path, section, schema)) is not None:
        return f"it is a setting of a `{path[0]}` with `{mark}`, and this one has `{_mark(section)}`"
    elsewhere = [
        f"`{group}.{name}`"
        for group, field in schema.model_fields.items()
        if any(name in inner.model_fields for inner in _sections(field))
    ]
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else f"it has {', '.join(section.model_fields)}"


def _shown(value: object) -> str:
    """A value as YAML spells it, cut where it is long."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}…"
