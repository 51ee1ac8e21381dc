"""What a plan values, by name: the rows of `profiles.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Quality = Literal["fast", "balanced", "best"]
Dimension = Literal["method", "modules", "quantisation", "rank", "checkpointing", "micro_batch", "optimizer"]
Value = str | int | bool
LARGEST = "largest"
"""Of micro-batches: the rows of a step, and then ever half of them."""


@dataclass(frozen=True, slots=True)
class Valued:
    """Something that a plan decides: its values, best first, and why they are in this order."""

    dimension: Dimension
    order: tuple[Value, ...]
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What is valued, the most important first."""

    name: str
    says: str
    values: tuple[Valued, ...]


@cache
def profiles() -> Mapping[str, Profile]:
    """Every profile by name."""
    rows = tomllib.loads(files(__package__).joinpath("profiles.toml").read_text("utf-8"))
    return {
        name: Profile(
            name,
            row["says"],
            tuple(Valued(one["dimension"], tuple(one["order"]), one["why"], one["source"]) for one in row["values"]),
        )
        for name, row in rows.items()
    }
