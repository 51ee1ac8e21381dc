"""Several adapters as one change of each matrix.

`linear` adds the changes, each with its weight, and so does `cat`, which is what peft calls it where the matrices are
laid side by side; peft's own "linear" adds A and B by themselves, which mixes each A with every B: another change.
`svd` is that sum cut to a rank. `ties` (Yadav et al. 2023, arXiv:2306.01708) and `dare` (Yu et al. 2023,
arXiv:2311.03099) act on the change of the matrix, as the papers have it and peft's "ties_svd" and "dare_linear_svd"
before their SVD: a value of A or B by itself means nothing, since A and B may be turned against each other. For them a
whole matrix per adapter is in memory. TIES trims each matrix by itself, as peft does, and not all of a model together.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from entrenar_core.adapters.changes import Change, Difference, Factors, applied, summed
from entrenar_core.adapters.factoring import cut_product
from entrenar_core.errors import UsageError

Method = Literal["linear", "cat", "svd", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How adapters are combined."""
_SPARSE = ("ties", "dare")


@dataclass(frozen=True, slots=True)
class Combination:
    """How several changes become one. `density` is the share of values that TIES and DARE keep, `rank` that of `svd`:
    without one, the largest of the adapters' own.

    Raises:
        UsageError: a setting belongs to another method, or is out of range.
    """

    method: Method = "linear"
    density: float | None = None
    rank: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--combine {self.method} is not known", f"there are {', '.join(METHODS)}")
        if self.density is not None and self.method not in _SPARSE:
            raise UsageError(f"--density is for ties and dare, and not for {self.method}", "leave it out")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"--density {self.density:g} is no share", "give a number above 0, at most 1")
        if self.method in _SPARSE and self.density is None:
            raise UsageError(f"--combine {self.method} needs to know how much it keeps", "give a --density such as 0.2")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank} is no rank", "give a whole number above 0")

    @property
    def is_sum(self) -> bool:
        """Whether it is the weighted sum, exactly."""
        return self.method in ("linear", "cat")


@dataclass(frozen=True, slots=True)
class Weighted:
    """One adapter's change of a matrix, its weight in the sum, and its own rank. `number` tells the adapters apart."""

    change: Change
    weight: float
    rank: int
    number: int = 0


def weighed(part: Weighted) -> Change:
    """The change with its weight."""
    from entrenar_core.adapters.changes import Rescaled

    if isinstance(part.change, Factors):
        return part.change * part.weight
    if isinstance(part.change, Rescaled):
        one = part.change
        return Rescaled(one.factors, one.magnitude, one.by_column, one.weight * part.weight)
    assert isinstance(part.change, Difference)
    return Difference(part.change.values_RC * part.weight)


def combined(parts: Sequence[Weighted], how: Combination, name: str, base_RC: Tensor | None) -> Change:
    """The change of one matrix.

    Args:
        name: of the matrix, which with the seed says what DARE drops of it.
        base_RC: the matrix itself, for TIES and DARE of what is no plain sum of factors.

    Raises:
        UsageError: `svd` is asked of DoRA adapters, whose changes have no low rank.
    """
    if how.is_sum:
        return summed([weighed(part) for part in parts])
    if how.method == "svd":
        whole = summed([weighed(part) for part in parts])
        if not isinstance(whole, Factors):
            raise UsageError(
                f"the change of {name} by DoRA has no low rank, and is not cut to one",
                "take --combine linear, ties or dare; or merge, then extract",
            )
        return cut_product(whole, how.rank or max(part.rank for part in parts)).factors
    assert how.density is not None
    differences = [_difference(part.change, base_RC) for part in parts]
    weights = [part.weight for part in parts]
    if how.method == "ties":
        return Difference(ties(differences, weights, how.density))
    seeds = [_seed(how.seed, part.number, name) for part in parts]
    return Difference(dare(differences, weights, how.density, seeds))


def ties(differences: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES: of each the largest values, then at each place the mean of those whose sign is that of the sum.

    Weights multiply the values after the signs are chosen, as in peft.
    """
    trimmed = [_largest(one, density) for one in differences]
    positive = sum(trimmed[1:], trimmed[0].clone()) >= 0
    total, count = torch.zeros_like(trimmed[0]), torch.zeros_like(trimmed[0])
    for one, weight in zip(trimmed, weights, strict=True):
        agrees = torch.where(positive, one > 0, one < 0)
        total += torch.where(agrees, one * weight, 0.0)
        count += agrees
    return total / count.clamp(min=1)


def dare(differences: Sequence[Tensor], weights: Sequence[float], density: float, seeds: Sequence[int]) -> Tensor:
    """DARE: of each a random share of the values, divided by that share: the expectation is the weighted sum."""
    total = torch.zeros_like(differences[0])
    for one, weight, seed in zip(differences, weights, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(one.shape, generator=generator) < density
        total += torch.where(kept, one * (weight / density), 0.0)
    return total


def _difference(change: Change, base_RC: Tensor | None) -> Tensor:
    if isinstance(change, Factors):
        return change.product
    assert base_RC is not None, "what DoRA changes depends on the matrix"
    return applied(change, base_RC) - base_RC


def _largest(values: Tensor, density: float) -> Tensor:
    """The rest is zero. Of equal ones at the edge, as many are kept as fit."""
    count = int(density * values.numel())
    if density >= 1:
        return values
    kept = torch.zeros(values.numel(), dtype=torch.bool)
    kept[values.abs().reshape(-1).topk(count).indices] = True
    return torch.where(kept.reshape(values.shape), values, 0.0)


def _seed(seed: int, number: int, name: str) -> int:
    """Another for every adapter and matrix, and the same whenever they are asked for."""
    return zlib.crc32(f"{seed} {number} {name}".encode())
