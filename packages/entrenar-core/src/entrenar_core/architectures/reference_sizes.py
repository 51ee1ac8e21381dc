"""Known sizes by name, such as `tinyllama-1.1b`: rows of `reference_sizes.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class ReferenceSizes:
    """The sizes of a known model; reference_sizes.toml explains the fields."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool
    parameters: int


@cache
def reference_sizes() -> Mapping[str, ReferenceSizes]:
    """Every known model by name."""
    rows = tomllib.loads(files(__package__).joinpath("reference_sizes.toml").read_text("utf-8"))["sizes"]
    return {name: ReferenceSizes(name, **row) for name, row in rows.items()}
