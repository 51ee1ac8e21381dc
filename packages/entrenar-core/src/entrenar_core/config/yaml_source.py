"""YAML with the place of every key, read by the rules of YAML 1.2 where 1.1 surprises.

`no` and `on` are words, only `true` and `false` are switches; `1e-4` is a number; a key given twice is a mistake.
What aliases repeat is counted, so that a small file cannot become a large value.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from entrenar_core.errors import Problem

Path = tuple[str | int, ...]
MOST_NODES = 100_000
MOST_DEEP = 32


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain values, and where each key or list item stands, as `file.yaml:14:3`."""

    values: dict[str, Any]
    places: dict[Path, str]
    problems: tuple[Problem, ...] = field(default=())


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's notion of switches and numbers, and no other types than JSON has."""


def _constructor(pattern: str, convert: Callable[[str], object]) -> Callable[[_Loader, Any], object]:
    """An explicit tag (`!!int x`) reaches a constructor with text that its pattern has not seen."""

    def construct(loader: _Loader, node: Any) -> object:
        text = loader.construct_scalar(node)
        if not re.fullmatch(pattern, text):
            raise yaml.constructor.ConstructorError(
                None, None, f"`{text}` is not of the type {node.tag}", node.start_mark
            )
        return convert(text)

    return construct


_KEPT = ("merge", "null")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(_KEPT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.endswith((":map", ":seq", ":str", ":null"))
}
for _name, _pattern, _first, _convert in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]{1,4000}", "-+0123456789", int),  # Python refuses to convert more digits than that
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _constructor(_pattern, _convert))


def parse_scalar(text: str) -> Any:
    """The value that `text` has in YAML, such as `3`, `1e-4`, `true`, `[a, b]` or a word.

    Raises:
        ValueError: it is not YAML.
    """
    node, value, _, problems = _read(text, "")
    if problems:
        raise ValueError(problems[0].message)
    return None if node is None else value


def parse_document(text: str, name: str) -> Document:
    """Reads a YAML mapping. Mistakes of form are returned as problems; `values` is then what could be read."""
    node, values, places, problems = _read(text, name)
    if node is None and not problems:
        problems = [Problem("the file is empty", "`teacher`, `student` and `dataset` are needed", name)]
    elif node is not None and not isinstance(node, yaml.MappingNode):
        problems = [_at(node, name, "a configuration is a mapping of `section:` to settings")]
    return Document(values if isinstance(values, dict) else {}, places, tuple(problems))


def _read(text: str, name: str) -> tuple[yaml.Node | None, Any, dict[Path, str], list[Problem]]:
    nothing: dict[Path, str] = {(): name}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None, nothing, []
            places, problems = _places(node, name)
            if not places:
                return node, None, nothing, problems
            return node, _unshared(loader.construct_document(node)), places, problems
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        return None, None, nothing, [Problem(f"not YAML: {error.problem}", _syntax_hint(text), where)]
    except yaml.YAMLError as error:
        return None, None, nothing, [Problem(f"not YAML: {str(error).splitlines()[0]}", where=name)]
    except RecursionError:
        return None, None, nothing, [_too_deep(name)]


def _unshared(value: Any) -> Any:
    """Aliases give one object in two places; a change to one setting must not reach another."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _places(root: yaml.Node, name: str) -> tuple[dict[Path, str], list[Problem]]:
    """Where each key stands, and keys given twice. No places: there is more than may be read."""
    places: dict[Path, str] = {(): name}
    problems: list[Problem] = []
    seen = 0
    stack: list[tuple[yaml.Node, Path, bool]] = [(root, (), False)]
    while stack:
        node, path, merged = stack.pop()
        if len(path) > MOST_DEEP:
            return {}, [_too_deep(name)]
        children = list(_children(node))
        seen += len(children)
        if seen > MOST_NODES:
            return {}, [Problem(f"more than {MOST_NODES:,} values, counting what aliases repeat", where=name)]
        stack += [(child, path, True) for key, _, child in children if key is None]
        for key, place, child in _fresh(children, path, places if merged else {}):
            if (*path, key) in places:
                problems.append(_at(place, name, f"`{key}` is given twice"))
            places.setdefault((*path, key), _where(place, name))
            stack.append((child, (*path, key), False))
    return places, problems


def _fresh(
    children: list[tuple[str | int | None, yaml.Node, yaml.Node]], path: Path, taken: dict[Path, str]
) -> list[tuple[str | int, yaml.Node, yaml.Node]]:
    """The children that have a key of their own, without those that it is `taken` from: beside a merge, a key wins."""
    return [(key, place, child) for key, place, child in children if key is not None and (*path, key) not in taken]


def _children(node: yaml.Node) -> Iterator[tuple[str | int | None, yaml.Node, yaml.Node]]:
    """Key, the node that stands for its place, and value; the key is None for what `<<` merges in."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _entries(key, value)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield index, item, item


def _entries(key: yaml.Node, value: yaml.Node) -> Iterator[tuple[str | None, yaml.Node, yaml.Node]]:
    if key.tag.endswith(":merge"):
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            yield None, key, source
        return
    if isinstance(key, yaml.ScalarNode):
        key.tag = "tag:yaml.org,2002:str"  # the name of a setting is a text, also `1:` and `null:`
    yield str(key.value), key, value


def _where(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _at(node: yaml.Node, name: str, message: str) -> Problem:
    return Problem(message, where=_where(node, name))


def _too_deep(name: str) -> Problem:
    return Problem(f"settings are nested more than {MOST_DEEP} deep", where=name)


def _syntax_hint(text: str) -> str | None:
    return "indent with spaces: YAML does not take tabs" if "\t" in text else None
