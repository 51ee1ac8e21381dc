"""What the matrices of a model read and write, as `families.toml` says it: so a model is made narrower as a whole.

A width such as the residual stream's runs through many matrices. Whoever cuts it must cut each of them at the same
places; the tables say which matrix has it on which side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Axis = Literal["hidden", "queries", "keys", "values", "neurons", "pooled", "predicted"]
AXES: tuple[Axis, ...] = ("hidden", "queries", "keys", "values", "neurons", "pooled", "predicted")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a matrix: its parts one after another or, `by_head`, taking turns. No part: the side stays."""

    parts: tuple[Axis, ...] = ()
    by_head: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A module's weights: a matrix from what it `reads` to what it `writes`, or a norm, which only `writes`."""

    reads: Side = Side()
    writes: Side = Side()
    is_norm: bool = False


@dataclass(frozen=True, slots=True)
class Flows:
    """Every module of a family by its name, `*` for a layer, and the matrices that read a norm alone, by the norm.

    `feeds` is empty unless a norm without bias stands before everything that reads the residual stream.
    """

    modules: Mapping[str, Flow]
    feeds: Mapping[str, tuple[str, ...]]

    def norm_before(self, module: str) -> str | None:
        """The norm whose output a module reads."""
        return next((norm for norm, readers in self.feeds.items() if module in readers), None)


def flows_of(table: Mapping[str, Any]) -> Flows:
    """A table `flows.*` of families.toml."""
    feeds = {norm: tuple(readers) for norm, readers in table.get("feeds", {}).items()}
    return Flows({name: _flow(text) for name, text in table.items() if name != "feeds"}, feeds)


def in_template(name: str, layers: str) -> tuple[str, int | None]:
    """A module's name in the body as a table has it, and its layer: `layers.3.mlp` is `*.mlp` of layer 3."""
    if not name.startswith(f"{layers}."):
        return name, None
    index, _, rest = name.removeprefix(f"{layers}.").partition(".")
    return f"*.{rest}", int(index)


def _flow(text: str) -> Flow:
    if text == "-":
        return Flow()
    reads, arrow, writes = text.partition(">")
    return Flow(_side(reads), _side(writes)) if arrow else Flow(writes=_side(text), is_norm=True)


def _side(text: str) -> Side:
    parts = [part.strip() for part in text.replace("|", "+").split("+")]
    known = {str(axis): axis for axis in AXES}
    return Side(tuple(known[part] for part in parts if part), "|" in text)
