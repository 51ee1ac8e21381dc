"""Tells what a model is from the names and shapes of its tensors alone, and what of it is missing or does not fit.

Nothing is guessed: a size that tensors do not tell is not there, and where several families look the same, all of them
are named. What families look like is data (`layouts.toml`). Not for GGUF, where metadata says what the model is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from entrenar_core.architectures import Architecture
from entrenar_core.architectures.agreement import constraints, disagreements
from entrenar_core.architectures.completeness import look_for_missing
from entrenar_core.architectures.fitting import Fit, Mismatch, Shapes, matched
from entrenar_core.architectures.judging import is_another, is_of
from entrenar_core.architectures.layouts import Group, Layout, layouts, variants
from entrenar_core.architectures.measuring import measure
from entrenar_core.architectures.naming import Module, Numbered, grouped, numbered
from entrenar_core.architectures.parts import Part, parts_of

_LEAST = 50  # of so many tensors at least one is in its place, however many companions the weights have
__all__ = [
    "Detection", "Mismatch", "Module", "Part", "constraints", "detect", "disagreements", "grouped", "parts_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """What tensors tell of a model.

    `families` are all whose models look like this, the likeliest first, and `unusual` those that would with sizes that
    their models do not commonly have; `prefix` is what the names of its body begin
    with; `variant` is a name for its sizes, such as MiniLM; `sizes` are those that layouts.toml names. `missing` are
    the tensors that every such model has, `extra` those that the layout does not know, `mismatched` those whose shape
    others contradict. `heads` are the parts that do a task; `tied` has tensors of theirs that are not stored, each with
    the one that stands for it, and `shared` those of the body; `embeddings` are those of tokens, and `experts` the
    weights of routed experts, of which a token passes only some. `companions` belong to quantised weights, and
    `buffers` are no weights.
    """

    layout: str
    families: tuple[str, ...]
    prefix: str
    variant: str | None
    sizes: Mapping[str, int]
    architecture: Architecture
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    heads: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    shared: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()


def detect(shapes: Shapes) -> Detection | None:
    """What the model with these tensors is; None where it is of no layout.

    Args:
        shapes: the shape of every tensor by name, in torch's order.
    """
    fits = list(_fits(numbered(shapes), shapes))
    if not fits:
        return None
    best = max(fitted.score for fitted in fits)
    alike = [fitted for fitted in fits if fitted.score == best]
    usual = [fitted for fitted in alike if _is_usual(fitted)] or alike
    families = dict.fromkeys(family for fitted in usual for family in _families(fitted))
    possible = dict.fromkeys(family for fitted in alike for family in _families(fitted))
    unusual = tuple(family for family in possible if family not in families)
    return _detection(usual[0], tuple(families), unusual, shapes)


def _fits(names: Numbered, shapes: Shapes) -> Iterator[Fit]:
    """The checkpoint over each layout that it may be of, with the prefix that explains most."""
    for layout in layouts():
        explained = {prefix: _explained(names, prefix, layout) for prefix in layout.prefixes}
        prefix = max(explained, key=lambda prefix: explained[prefix])
        if explained[prefix] * _LEAST < len(shapes):
            continue
        fitted = matched(names, layout, prefix)
        if is_of(fitted):
            measure(fitted, shapes)
            if not is_another(fitted) and look_for_missing(fitted):
                yield fitted


def _explained(names: Numbered, prefix: str, layout: Layout) -> int:
    """How many tensors of the body have their place."""
    return sum(len(names.get(prefix + pattern, ())) for pattern in layout.body)


def _is_usual(fitted: Fit) -> bool:
    return all(fitted.sizes.get(size, usual) == usual for size, usual in fitted.layout.usual.items())


def _families(fitted: Fit) -> Sequence[str]:
    """The layout's families that have what is there."""
    limits = [fitted.layout.only.get(group.name) for group in fitted.layout.groups if fitted.has(group)]
    return [family for family in fitted.layout.families if all(limit is None or family in limit for limit in limits)]


def _detection(fitted: Fit, families: tuple[str, ...], unusual: tuple[str, ...], shapes: Shapes) -> Detection:
    heads = _heads(fitted)
    return Detection(
        fitted.layout.name,
        families,
        fitted.prefix,
        _variant(families, fitted.sizes),
        fitted.sizes,
        _architecture(fitted, families[0], shapes),
        tuple(fitted.missing),
        tuple(name for _, names in fitted.extra for name in names.values()),
        tuple(fitted.mismatched),
        tuple(group.name for group in heads),
        tuple(_tied(fitted, heads)),
        tuple(_shared(fitted)),
        tuple(_stored(fitted.layout.embeddings, fitted)),
        tuple(
            name for template, names in fitted.found.items() if "experts" in template.axes for name in names.values()
        ),
        tuple(fitted.companions),
        tuple(fitted.buffers),
        unusual,
    )


def _heads(fitted: Fit) -> Sequence[Group]:
    """The heads that are there. A body under a prefix is a part of something: where no head is stored, of a model whose
    head is all tied.
    """
    heads = [group for group in fitted.layout.groups if group.kind == "head"]
    stored = [group for group in heads if fitted.has(group)]
    if stored or not fitted.prefix:
        return stored
    return [group for group in heads if all(_stand_in(template.name, fitted) for template in group.templates)]


def _stand_in(name: str, fitted: Fit) -> str | None:
    """The stored tensor that a tensor may be tied to."""
    return next(iter(_stored(fitted.layout.tied.get(name, ()), fitted)), None)


def _tied(fitted: Fit, heads: Sequence[Group]) -> Iterator[tuple[str, str]]:
    for template in (template for group in heads for template in group.templates):
        other = _stand_in(template.name, fitted)
        if other and template not in fitted.found:
            yield template.name, other


def _shared(fitted: Fit) -> Iterator[tuple[str, str]]:
    """Of the parts that are there."""
    stored = {template.name for template in fitted.found}
    parts = {name.partition(".")[0] for name in stored}
    for name, other in fitted.layout.shared.items():
        if other in stored and name not in stored and name.partition(".")[0] in parts:
            yield fitted.prefix + name, fitted.prefix + other


def _stored(names: Iterable[str], fitted: Fit) -> Sequence[str]:
    """Those tensors of the layout that the checkpoint has, as it calls them."""
    by_name = {template.name: found[()] for template, found in fitted.found.items() if () in found}
    return [by_name[name] for name in names if name in by_name]


def _variant(families: Sequence[str], sizes: Mapping[str, int]) -> str | None:
    for variant in variants():
        widths = all(sizes.get(size) == value for size, value in variant.sizes.items())
        if families[0] == variant.family and widths and sizes.get("layers") in variant.layers:
            return variant.name
    return None


def _architecture(fitted: Fit, family: str, shapes: Shapes) -> Architecture:
    sizes = fitted.sizes
    queries = sizes.get("queries")
    head_dim = sizes.get("head_dim") or _whole(queries, sizes.get("heads"))
    aside = {*fitted.companions, *fitted.buffers}
    parameters = sum(prod(shape) for name, shape in shapes.items() if name not in aside)
    return Architecture(
        family,
        None,
        num_layers=sizes.get("layers"),
        hidden_size=sizes.get("hidden"),
        num_heads=sizes.get("heads") or _whole(queries, head_dim),
        num_kv_heads=_whole(sizes.get("keys", queries), head_dim),
        intermediate_size=sizes.get("intermediate"),
        vocab_size=sizes.get("vocab"),
        max_positions=sizes.get("positions"),
        num_parameters=None if fitted.shapeless else parameters,
        head_dim=head_dim,
    )


def _whole(width: int | None, part: int | None) -> int | None:
    """How often a part goes into a width, if it does."""
    return width // part if width and part and width % part == 0 else None
