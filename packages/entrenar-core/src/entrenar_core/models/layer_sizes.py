"""What losses between layers must know of a model. Needs no torch, so that `validate` answers at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from entrenar_core.architectures import Architecture, families


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's layers, widths and heads; a head is `head_dim` wide.

    `rotates`: its queries and keys are turned by angles of their position, so that products within a head depend on
    the distance of two positions, and products within a part of a head on where they are.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotates: bool

    def width(self, relation: str) -> int:
        """Of the queries, keys or values of a token, all heads together."""
        return self.head_dim * (self.num_heads if relation == "query" else self.num_kv_heads)


def layer_sizes(architecture: Architecture) -> Sizes | None:
    """Of an architecture; None where it does not say all of them."""
    layers, hidden, heads = architecture.num_layers, architecture.hidden_size, architecture.num_heads
    if not (layers and hidden and heads):
        return None
    family = families().get(architecture.family or "")
    rotates = family is not None and family.rotates
    head_dim = architecture.head_dim or hidden // heads
    return Sizes(layers, hidden, heads, architecture.num_kv_heads or heads, head_dim, rotates)


def relation_heads(wanted: int | None, relations: Sequence[str], student: Sizes, teacher: Sizes) -> int:
    """Into how many heads the relations of a pair of layers are split: `wanted`, or the most that suit both models, up
    to as many as the teacher has.

    Heads divide the widths of all that is compared; where positions rotate queries or keys, none of these is cut.

    Raises:
        ValueError: `wanted` does not suit them.
    """
    compared = sorted({sizes.width(relation) for sizes in (student, teacher) for relation in relations})
    widths = math.gcd(*compared)
    rotated = [sizes for sizes in (student, teacher) if sizes.rotates and {"query", "key"} & set(relations)]
    whole = math.gcd(*(heads for sizes in rotated for heads in (sizes.num_heads, sizes.num_kv_heads)))
    suiting = [r for r in range(1, teacher.num_heads + 1) if widths % r == 0 and (not rotated or whole % r == 0)]
    if wanted is None:
        return suiting[-1]
    if widths % wanted:
        raise ValueError(
            f"{wanted} relation heads do not divide the widths of what is compared ({', '.join(map(str, compared))}): "
            f"take {_listed(suiting)}"
        )
    if rotated and whole % wanted:
        raise ValueError(
            f"{wanted} relation heads would cut heads that are rotated by position: take {_listed(suiting)}, or the "
            "relations of values alone"
        )
    return wanted


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers[-3:]))
