"""What `layers` returns."""

from dataclasses import dataclass
from typing import Literal

from entrenar_core.measuring.results import EffectiveRank, TensorStatistics

Measure = Literal["statistics", "rank"]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A module, several that are alike, or a tensor. `parameters` and `size_bytes` are those of one copy.

    `shape` and `rank` are there where it is a single tensor, and `statistics` where it has any values that were asked
    for. Those of several tensors have no histogram, and their outliers are so by the mean of their own tensor.
    `unmeasured` is what was asked for and could not be had; the notes say of which tensors, and why.
    """

    name: str
    copies: int
    tensors: int
    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    parameters: int
    size_bytes: int
    statistics: TensorStatistics | None = None
    rank: EffectiveRank | None = None
    unmeasured: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True)
class LayersReport:
    """The layers of a model, and what they add up to. `filter` is the pattern that names had to match."""

    name: str
    format: str
    rows: tuple[LayerRow, ...]
    tensors: int
    parameters: int
    size_bytes: int
    filter: str | None
    by_tensor: bool
    notes: tuple[str, ...] = ()
