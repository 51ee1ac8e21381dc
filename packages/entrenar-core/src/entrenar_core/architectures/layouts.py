"""Layouts: what the tensors of a family's models are called and how their shapes hang together, from `layouts.toml`.

The names are those that transformers writes with `save_pretrained`. Supporting another layout means adding a table.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Kind = Literal["body", "option", "one_of", "head"]
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Expression:
    """One dimension of a shape: Σ multiple · size + constant. `terms` are sizes by name with their multiples."""

    terms: tuple[tuple[str, int], ...] = ()
    constant: int = 0

    def value(self, sizes: Mapping[str, int]) -> int | None:
        """None where a size is not known."""
        if any(size not in sizes for size, _ in self.terms):
            return None
        return self.constant + sum(multiple * sizes[size] for size, multiple in self.terms)


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A tensor of a layout, once for each of its indices.

    `pattern` is its name with `*` for every number, `numbers` what stands there: a number that is part of the name, or
    None for an index. `axes` are the counts that these indices run to. `shape` reads as the table has it. An `optional`
    tensor may be missing by itself.
    """

    name: str
    pattern: str
    numbers: tuple[int | None, ...]
    axes: tuple[str, ...]
    shape: str
    dimensions: tuple[Expression, ...]
    optional: bool

    def at(self, indices: Sequence[int]) -> str:
        """Its name with these indices."""
        given = iter(indices)
        return "".join(str(next(given)) if part == "*" else part for part in re.split(r"(\*)", self.name))


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Templates that belong together: the body, an option, a head, or one of the choices that layers have by a name."""

    kind: Kind
    name: str
    templates: tuple[Template, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One table of layouts.toml, which explains the fields. `body` and `heads` are its templates by pattern."""

    name: str
    families: tuple[str, ...]
    prefixes: tuple[str, ...]
    counts: Mapping[str, str]
    groups: tuple[Group, ...]
    body: Mapping[str, tuple[Template, ...]]
    heads: Mapping[str, tuple[Template, ...]]
    distinguishing: tuple[tuple[str, ...], ...]
    embeddings: tuple[str, ...] = ()
    never: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    usual: Mapping[str, int] = field(default_factory=dict)
    unequal: tuple[tuple[str, ...], ...] = ()
    bridges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tower: str | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def templates(self) -> Iterator[Template]:
        return (template for group in self.groups for template in group.templates)


@dataclass(frozen=True, slots=True)
class Anywhere:
    """What may lie beside the weights of any layout, which the table `anywhere` explains.

    `last_parts` are those of the names of what belongs to quantised weights.
    """

    companions: tuple[str, ...]
    packed: tuple[str, ...]
    hiding: tuple[str, ...]
    buffers: tuple[str, ...]
    older: Mapping[str, str]
    last_parts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Variant:
    """A name for models of a family that have these sizes, and one of these numbers of layers."""

    name: str
    family: str
    sizes: Mapping[str, int]
    layers: tuple[int, ...]


@cache
def layouts() -> tuple[Layout, ...]:
    """Every layout, in the order of layouts.toml."""
    return tuple(_layout(name, table) for name, table in _tables().items() if name not in ("anywhere", "variants"))


@cache
def layout_named(name: str) -> Layout:
    """The layout of a table of layouts.toml."""
    return next(layout for layout in layouts() if layout.name == name)


@cache
def anywhere() -> Anywhere:
    """What may lie beside weights."""
    table = _tables()["anywhere"]
    endings = (*table["companions"], *table["packed"])
    return Anywhere(
        tuple(table["companions"]),
        tuple(table["packed"]),
        tuple(table["hiding"]),
        tuple(table["buffers"]),
        table["older"],
        frozenset(ending.rpartition(".")[2] for ending in endings),
    )


@cache
def variants() -> tuple[Variant, ...]:
    """Names for models of known sizes."""
    rows = _tables()["variants"]
    return tuple(Variant(name, row["family"], row["sizes"], tuple(row["layers"])) for name, row in rows.items())


@cache
def _tables() -> Mapping[str, Any]:
    return tomllib.loads(files(__package__).joinpath("layouts.toml").read_text("utf-8"))


def _layout(name: str, table: Mapping[str, Any]) -> Layout:
    counts = table["counts"]
    groups = tuple(_groups(table, counts))
    return Layout(
        name,
        tuple(table["families"]),
        tuple(table["prefixes"]),
        counts,
        groups,
        _by_pattern(template for group in groups if group.kind != "head" for template in group.templates),
        _by_pattern(template for group in groups if group.kind == "head" for template in group.templates),
        tuple(_either(text) for text in table["distinguishing"]),
        tuple(table.get("embeddings", ())),
        frozenset(name for text in table.get("never", ()) for name in _spelled(text)),
        frozenset(name for text in table.get("buffers", ()) for name in _spelled(text)),
        _each(table, "tied", _either),
        _each(table, "only", tuple),
        table.get("usual", {}),
        tuple(tuple(text.split()) for text in table.get("unequal", ())),
        _each(table, "bridges", _words),
        _each(table, "config", _either),
        _each(table, "images", _words),
        table.get("tower"),
        _each(table, "parts", _words),
        table.get("shared", {}),
        _each(table, "implied", tuple),
    )


def _each(
    table: Mapping[str, Any], field: str, read: Callable[[Any], tuple[str, ...]]
) -> Mapping[str, tuple[str, ...]]:
    return {name: read(value) for name, value in table.get(field, {}).items()}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _groups(table: Mapping[str, Any], counts: Mapping[str, str]) -> Iterator[Group]:
    yield Group("body", "body", _templates(table.get("body", {}), counts))
    for name, rows in table.get("options", {}).items():
        yield Group("option", name, _templates(rows, counts))
    for name, choices in table.get("one_of", {}).items():
        for rows in choices.values():
            yield Group("one_of", name, _templates(rows, counts))
    for name, rows in table.get("heads", {}).items():
        yield Group("head", name, _templates(rows, counts))


def _templates(rows: Mapping[str, str], counts: Mapping[str, str]) -> tuple[Template, ...]:
    return tuple(_template(name, shape, counts) for names, shape in rows.items() for name in _spelled(names))


def _template(name: str, shape: str, counts: Mapping[str, str]) -> Template:
    parts = name.split(".")
    numbers = tuple(int(part) if part != "*" else None for part in parts if part == "*" or part.isdecimal())
    by_path = {path: size for size, path in counts.items()}
    paths = (".".join(parts[: at + 1]) for at, part in enumerate(parts) if part == "*")
    return Template(
        name,
        ".".join("*" if part.isdecimal() else part for part in parts),
        numbers,
        tuple(by_path[path] for path in paths),
        shape.removeprefix("?").strip(),
        expressions(shape.removeprefix("?")),
        shape.startswith("?"),
    )


@cache
def expressions(shape: str) -> tuple[Expression, ...]:
    """The dimensions of a shape as the tables write it: "queries + 2*keys hidden" has two."""
    return tuple(map(_expression, shape.replace(" + ", "+").split()))


def _expression(text: str) -> Expression:
    parts = text.split("+")
    terms = [part.rpartition("*") for part in parts if not part.isdecimal()]
    return Expression(
        tuple((size, int(multiple or 1)) for multiple, _, size in terms),
        sum(int(part) for part in parts if part.isdecimal()),
    )


def _spelled(name: str) -> Iterator[str]:
    """`{q,k}_proj.weight` is `q_proj.weight` and `k_proj.weight`."""
    braces = _BRACES.search(name)
    if braces is None:
        yield name
        return
    for part in braces[1].split(","):
        yield from _spelled(name[: braces.start()] + part + name[braces.end() :])


def _either(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split("|") for name in _spelled(part.strip()))


def _by_pattern(templates: Iterator[Template]) -> Mapping[str, tuple[Template, ...]]:
    found: dict[str, list[Template]] = {}
    for template in templates:
        found.setdefault(template.pattern, []).append(template)
    return {pattern: tuple(same) for pattern, same in found.items()}
