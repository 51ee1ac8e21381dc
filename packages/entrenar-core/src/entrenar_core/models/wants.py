"""Which layers of a model a training looks at."""

from dataclasses import dataclass
from typing import Any

EMBEDDINGS = -1
"""Stands for what the first layer reads, among layers that count from 0."""


@dataclass(frozen=True, slots=True)
class Wants:
    """Layers of which hidden states are recorded, and layers of which queries, keys and values are."""

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()

    def __or__(self, other: "Wants") -> "Wants":
        return Wants(self.hidden | other.hidden, self.attention | other.attention)

    def __le__(self, other: "Wants") -> bool:
        return self.hidden <= other.hidden and self.attention <= other.attention

    @property
    def anything(self) -> bool:
        """Whether the model must be recorded at all."""
        return bool(self.hidden or self.attention)

    def arguments(self) -> dict[str, Any]:
        """As `recording` takes them."""
        return {
            "hidden_layers": sorted(self.hidden - {EMBEDDINGS}),
            "attention_layers": sorted(self.attention),
            "embeddings": EMBEDDINGS in self.hidden,
        }
