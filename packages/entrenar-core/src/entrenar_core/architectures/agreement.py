"""Where a configuration and the tensors beside it differ, and where sizes cannot be those of a model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entrenar_core.architectures import Architecture, families
from entrenar_core.architectures.layouts import layout_named, layouts
from entrenar_core.architectures.parts import Part, odd_heads
from entrenar_core.architectures.stating import stated_sizes

if TYPE_CHECKING:
    from entrenar_core.architectures.detection import Detection

_SIZES = {
    "num_layers": "{:,} layers",
    "hidden_size": "hidden size {:,}",
    "num_heads": "{:,} heads",
    "num_kv_heads": "{:,} key-value heads",
    "head_dim": "heads of {:,}",
    "intermediate_size": "intermediate size {:,}",
    "vocab_size": "a vocabulary of {:,}",
    "max_positions": "{:,} positions",
}


def disagreements(
    architecture: Architecture,
    detection: "Detection",
    *,
    tied: bool | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Where config.json and the tensors differ, a sentence each. What one of them does not say is no difference.

    Args:
        architecture: what config.json says.
        tied: whether it says that the output layer is the embeddings (`tie_word_embeddings`).
        config: config.json itself, for the sizes that only the layout has a name for.
    """
    return (
        *_of_families(architecture, detection),
        *_of_sizes(architecture, detection),
        *_of_widths(architecture, detection),
        *_of_settings(config or {}, detection),
        *_of_ties(tied, architecture, detection),
    )


def constraints(architecture: Architecture, detection: "Detection", parts: Sequence[Part] = ()) -> tuple[str, ...]:
    """What no model can have: heads that do not divide what they share, or make other widths than the tensors have.

    Args:
        architecture: what config.json says, or what the tensors do (`detection.architecture`).
        parts: its stacks, where it has several.
    """
    return (
        *_of_division(architecture),
        *odd_heads(parts, architecture),
        *_of_products(architecture, detection),
        *_of_turning(architecture, detection),
    )


def implied_ties(architecture: Architecture, detection: "Detection") -> Iterator[tuple[str, str]]:
    """The output layer that only the class in config.json tells of, with the embeddings that stand for it: of a T5
    the same tensors are stored with and without.
    """
    layout = layout_named(detection.layout)
    for group in layout.groups:
        named = group.kind == "head" and not {*layout.implied.get(group.name, ())}.isdisjoint(architecture.classes)
        for template in group.templates if named and group.name not in detection.heads else ():
            for other in layout.tied[template.name]:
                if detection.prefix + other in detection.embeddings:
                    yield template.name, detection.prefix + other


def _of_families(architecture: Architecture, detection: "Detection") -> Iterator[str]:
    """Only between families whose tensors are known: many models of other names are built as a Llama is."""
    said = architecture.family or architecture.model_type
    known = {family for layout in layouts() for family in layout.families}
    if said in known and said not in (*detection.families, *detection.unusual):
        yield f"config.json says {said}, and the tensors are those of {either(detection.families)}"


def _of_sizes(architecture: Architecture, detection: "Detection") -> Iterator[str]:
    for size, wording in _SIZES.items():
        said, found = getattr(architecture, size), getattr(detection.architecture, size)
        if said and found and said != found:
            yield f"config.json says {wording.format(said)}, and the tensors have {found:,}"


def _of_widths(architecture: Architecture, detection: "Detection") -> Iterator[str]:
    """Heads are in the tensors as their width all together, unless something tells the width of one."""
    if detection.architecture.head_dim is not None:
        return
    for heads, width, plain, kind in _widths(architecture, detection):
        if heads * width != plain:
            said = f"{_number(heads, kind)} of {width:,}, {heads * width:,} wide in all"
            yield f"config.json says {said}, and the tensors have {plain:,}"


def _of_settings(config: Mapping[str, Any], detection: "Detection") -> Iterator[str]:
    """Sizes that the layout has and an architecture has no field for."""
    for size, value, said in stated_sizes(config, layout_named(detection.layout)):
        found = detection.sizes.get(size)
        if found is not None and found != value:
            yield f"config.json says {said}, and the tensors have {found:,}"


def _of_ties(tied: bool | None, architecture: Architecture, detection: "Detection") -> Iterator[str]:
    """An output layer that should be the embeddings and is not, or the other way round."""
    absent = dict(detection.tied)
    for head, _ in implied_ties(architecture, detection) if tied is False else ():
        yield f"config.json says that the embeddings are not tied, and the tensors have no {head}"
    for head, embeddings in _output_layers(detection):
        if tied is False and head in absent:
            yield f"config.json says that the embeddings are not tied, and the tensors have no {head}"
        if tied and head not in absent:
            yield f"config.json says that the embeddings are tied, and the tensors have {head} beside {embeddings}"


def _output_layers(detection: "Detection") -> Iterator[tuple[str, str]]:
    """The matrices of its heads that embeddings may stand for, each with these."""
    layout = layout_named(detection.layout)
    heads = [group for group in layout.groups if group.kind == "head" and group.name in detection.heads]
    for template in (template for group in heads for template in group.templates):
        names = [detection.prefix + name for name in layout.tied.get(template.name, ())]
        yield from ((template.name, name) for name in names if name in detection.embeddings)


def _of_division(architecture: Architecture) -> Iterator[str]:
    hidden, heads, shared = architecture.hidden_size, architecture.num_heads, architecture.num_kv_heads
    if hidden and heads and architecture.head_dim is None and hidden % heads:
        yield f"{_number(heads, 'head')} do not divide the hidden size {hidden:,}"
    if heads and shared and heads % shared:
        yield f"{_number(shared, 'key-value head')} do not divide {_number(heads, 'head')}"


def _of_products(architecture: Architecture, detection: "Detection") -> Iterator[str]:
    for heads, width, plain, kind in _widths(architecture, detection):
        if heads * width != plain:
            yield f"{_number(heads, kind)} of {width:,} would be {heads * width:,} wide in all, not {plain:,}"
    sizes = detection.sizes
    queries, keys = sizes.get("queries", sizes.get("hidden", 0)), sizes.get("keys")
    if keys and queries % keys:
        yield f"queries that are {queries:,} wide cannot share keys that are {keys:,} wide"
    one = sizes.get("head_dim")
    for kind in ("queries", "keys"):
        if one and sizes.get(kind, 0) % one:
            yield f"{kind} that are {sizes[kind]:,} wide are no heads of {one:,}"


def _of_turning(architecture: Architecture, detection: "Detection") -> Iterator[str]:
    """Positions turn pairs of values."""
    family = families().get(detection.families[0])
    width = architecture.head_dim or detection.architecture.head_dim
    if family is not None and family.rotates and width and width % 2:
        yield f"heads of {width:,} cannot be turned by position: that takes an even width"


def either(families: Sequence[str]) -> str:
    """`llama, mistral or gemma`."""
    *others, last = families
    return f"{', '.join(others)} or {last}" if others else last


def _number(heads: int, kind: str) -> str:
    return f"{heads:,} {kind}{'' if heads == 1 else 's'}"


def _widths(architecture: Architecture, detection: "Detection") -> Iterator[tuple[int, int, int, str]]:
    """How many heads, how wide each, how wide the tensors are, and what of."""
    heads, hidden = architecture.num_heads, architecture.hidden_size
    width = architecture.head_dim or detection.architecture.head_dim or (hidden // heads if heads and hidden else None)
    for number, size, kind in ((heads, "queries", "head"), (architecture.num_kv_heads, "keys", "key-value head")):
        if number and width and size in detection.sizes:
            yield number, width, detection.sizes[size], kind
