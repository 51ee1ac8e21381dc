"""Lays the tensors of a checkpoint over one layout: which tensor is which, by name alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from entrenar_core.architectures.layouts import Group, Layout, Template, anywhere
from entrenar_core.architectures.naming import Numbered

Indices = tuple[int, ...]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor whose shape is not what others imply.

    `symbols` is its shape in sizes by name and `implied` in numbers, with None where nothing tells the number.
    """

    name: str
    shape: tuple[int, ...]
    symbols: str
    implied: tuple[int | None, ...]


@dataclass(slots=True)
class Fit:
    """A checkpoint over a layout; `matched` begins it, and what measures and compares adds to it.

    `found` has the names of each template's tensors by their indices, `extra` unknown ones by pattern and numbers.
    `shapeless` are packed tensors, whose shapes are not those of their weights.
    """

    layout: Layout
    prefix: str
    found: dict[Template, Mapping[Indices, str]] = field(default_factory=dict)
    extra: list[tuple[str, Mapping[Indices, str]]] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    companions: list[str] = field(default_factory=list)
    shapeless: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    @property
    def explained(self) -> int:
        """How many tensors the layout has a place for."""
        return sum(map(len, self.found.values()))

    @property
    def score(self) -> int:
        """How well they fit: what is explained less what is wrong."""
        unknown = sum(len(names) for _, names in self.extra)
        return self.explained - unknown - len(self.missing) - len(self.mismatched)

    def has(self, group: Group) -> bool:
        """Whether any tensor of a group is there."""
        return any(template in self.found for template in group.templates)

    def names(self, template: Template) -> Mapping[Indices, str]:
        """A template's tensors by their indices."""
        return self.found.get(template, {})

    def own(self, pattern: str) -> str:
        """A name as the layout would have it in its body."""
        return pattern.removeprefix(self.prefix)


def matched(numbered: Numbered, layout: Layout, prefix: str) -> Fit:
    """Finds each tensor's place in the layout."""
    fitted = Fit(layout, prefix)
    for pattern, names in numbered.items():
        rest = _placed(fitted, _templates_of(fitted, pattern), names)
        if rest:
            _put_aside(fitted, pattern, rest, numbered)
    return fitted


def is_beside(pattern: str, fitted: Fit) -> bool:
    """Whether a tensor belongs to a module of which the layout knows another tensor."""
    module = pattern.rpartition(".")[0]
    inside, outside = _modules(fitted.layout)
    return module in outside or fitted.own(module) in inside


@cache
def _modules(layout: Layout) -> tuple[frozenset[str], frozenset[str]]:
    """The modules with tensors in the body and in the heads."""
    inside, outside = (frozenset(name.rpartition(".")[0] for name in names) for names in (layout.body, layout.heads))
    return inside, outside


def _templates_of(fitted: Fit, pattern: str) -> Sequence[Template]:
    """The templates with a pattern, or with the one that it is an older spelling of."""
    module, dot, last = pattern.rpartition(".")
    newer = anywhere().older.get(last)
    for spelled in (pattern, f"{module}{dot}{newer}") if newer else (pattern,):
        inside = spelled.startswith(fitted.prefix)
        body = fitted.layout.body.get(spelled[len(fitted.prefix) :], ()) if inside else ()
        if templates := body or fitted.layout.heads.get(spelled, ()):
            return templates
    return ()


def _placed(fitted: Fit, templates: Sequence[Template], names: Mapping[Indices, str]) -> Mapping[Indices, str]:
    """Gives the templates their tensors, and returns those that are left."""
    for template in templates:
        if template not in fitted.found:  # in its newer spelling
            own, names = _divided(names, template)
            fitted.found |= {template: own} if own else {}
    return names


def _divided(names: Mapping[Indices, str], template: Template) -> tuple[Mapping[Indices, str], Mapping[Indices, str]]:
    """A template's tensors by their indices, and those of others with the same pattern."""
    if all(fixed is None for fixed in template.numbers):
        return names, {}
    own, rest = {}, {}
    for numbers, name in names.items():
        pairs = list(zip(numbers, template.numbers, strict=True))
        if all(fixed in (None, number) for number, fixed in pairs):
            own[tuple(number for number, fixed in pairs if fixed is None)] = name
        else:
            rest[numbers] = name
    return own, rest


def _put_aside(fitted: Fit, pattern: str, names: Mapping[Indices, str], numbered: Numbered) -> None:
    """What is no weight of the layout: a buffer, something that belongs to quantised weights, or unknown."""
    known = anywhere()
    if fitted.own(pattern) in fitted.layout.buffers or _before(known.buffers, pattern) is not None:
        fitted.buffers += names.values()
    elif pattern.rpartition(".")[2] not in known.last_parts:
        fitted.extra.append((pattern, names))
    elif (module := _before(known.packed, pattern)) is not None:
        rest = _placed(fitted, _templates_of(fitted, f"{module}.weight"), names)
        fitted.shapeless |= {name for numbers, name in names.items() if numbers not in rest}
        fitted.extra += [(pattern, rest)] if rest else []
    elif _is_part(_before(known.companions, pattern), fitted):
        fitted.companions += names.values()
        weights = numbered.get(f"{_before(known.hiding, pattern)}.weight", {})
        fitted.shapeless |= {weights[numbers] for numbers in names if numbers in weights}
    else:
        fitted.extra.append((pattern, names))


def _before(endings: Iterable[str], pattern: str) -> str | None:
    """What stands before one of these endings."""
    return next(
        (f".{pattern}".removesuffix(f".{end}")[1:] for end in endings if f".{pattern}".endswith(f".{end}")), None
    )


def _is_part(path: str | None, fitted: Fit) -> bool:
    """Whether the layout has such a module or tensor."""
    if path is None:
        return False
    places = ((fitted.own(path), fitted.layout.body), (path, fitted.layout.heads))
    return any(name == own or name.startswith(f"{own}.") for own, names in places for name in names)
