"""The stacks of a model that has more than one: an encoder and a decoder, or towers for texts and images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.architectures import Architecture
from entrenar_core.architectures.layouts import layout_named
from entrenar_core.architectures.stating import stated_sizes

if TYPE_CHECKING:
    from entrenar_core.architectures.detection import Detection

# What architectures call the sizes that layouts call so.
_STATED = {"layers": "num_layers", "hidden": "hidden_size", "heads": "num_heads", "intermediate": "intermediate_size"}


@dataclass(frozen=True, slots=True)
class Part:
    """One stack; None is what neither the configuration nor the tensors say."""

    name: str
    num_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    intermediate_size: int | None


def parts_of(
    stated: Architecture | None, detection: "Detection", config: Mapping[str, Any] | None = None
) -> tuple[Part, ...]:
    """The stacks that are stored, of a model whose layout has several. What the configuration says goes first.

    Args:
        stated: what config.json says of the model as a whole.
        config: that file.
    """
    layout = layout_named(detection.layout)
    said = {size: getattr(stated, name) for size, name in _STATED.items()} if stated is not None else {}
    said |= {size: value for size, value, _ in stated_sizes(config, layout)} if config is not None else {}
    return tuple(
        Part(name, *(said.get(size) or _told(size, detection) for size in sizes))
        for name, sizes in layout.parts.items()
        if sizes[0] in detection.sizes
    )


def _told(size: str, detection: "Detection") -> int | None:
    """Other sizes are in tensors under the names of the layout; of a head, something must tell its width."""
    return detection.architecture.num_heads if size == "heads" else detection.sizes.get(size)


def odd_heads(parts: Sequence[Part], architecture: Architecture) -> Iterator[str]:
    """Heads of a part that do not divide its hidden size, where they are others than the architecture's."""
    if architecture.head_dim is not None:
        return
    for part in parts:
        heads, hidden = part.num_heads, part.hidden_size
        if (
            heads
            and hidden
            and hidden % heads
            and (heads, hidden) != (architecture.num_heads, architecture.hidden_size)
        ):
            yield f"{heads:,} heads of the {part.name} do not divide its hidden size {hidden:,}"
