"""YAML with the place of every key, read by the rules of YAML 1.2 where 1.1 surprises.

`no` and `on` are words, only `true` and `false` are switches; `1e-4` is a number; a key given twice is a mistake.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from entrenar_core.errors import Problem

Path = tuple[str | int, ...]
MOST_NODES = 100_000


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain values, and where each key or list item stands, as `file.yaml:14:3`."""

    values: dict[str, Any]
    places: dict[Path, str]
    problems: tuple[Problem, ...] = field(default=())


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's notion of switches and numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(node.value))


def parse_scalar(text: str) -> Any:
    """The value that `text` has in YAML, such as `3`, `1e-4`, `true`, `[a, b]` or a word."""
    return yaml.load(text, Loader=_Loader)


def parse_document(text: str, name: str) -> Document:
    """Reads a YAML mapping. Mistakes of form are returned as problems; `values` is then what could be read."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document({}, {(): name}, (Problem("the file is empty", where=name),))
            if not isinstance(node, yaml.MappingNode):
                return Document(
                    {}, {(): name}, (_at(node, name, "a configuration is a mapping of `section:` to settings"),)
                )
            places, problems = _places(node, name)
            values: dict[str, Any] = loader.construct_document(node) if places else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        return Document({}, {(): name}, (Problem(f"not YAML: {error.problem}", _syntax_hint(text), where),))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Document({}, {(): name}, (Problem(f"not YAML: {str(error).splitlines()[0]}", where=name),))
    return Document(values, places, tuple(problems))


def _places(root: yaml.Node, name: str) -> tuple[dict[Path, str], list[Problem]]:
    places: dict[Path, str] = {(): name}
    problems: list[Problem] = []
    seen = 0
    stack: list[tuple[yaml.Node, Path]] = [(root, ())]
    while stack:
        node, path = stack.pop()
        seen += 1
        if seen > MOST_NODES:
            return {}, [Problem(f"more than {MOST_NODES:,} values, counting what aliases repeat", where=name)]
        for key, place, child in _children(node):
            if isinstance(node, yaml.MappingNode) and (*path, key) in places and not isinstance(key, int):
                problems.append(_at(place, name, f"`{key}` is given twice"))
            places[(*path, key)] = _where(place, name)
            stack.append((child, (*path, key)))
    return places, problems


def _children(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag.endswith(":merge"):
                continue
            yield str(key.value), key, value
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield index, item, item


def _where(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _at(node: yaml.Node, name: str, message: str) -> Problem:
    return Problem(message, where=_where(node, name))


def _syntax_hint(text: str) -> str | None:
    return "indent with spaces: YAML does not take tabs" if "\t" in text else None
