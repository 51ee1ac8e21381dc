"""How far values moved from one model to another, tensor by tensor and together for each module."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from entrenar_core.formats.decoding import decodable, numbers_per_value
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.results import Difference
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.comparison import ModuleDifference, TensorDifference
from entrenar_inspect.tree import Group, groups, tree_of

Progress = Callable[[int], None]
Pair = tuple[StoredTensor, StoredTensor]
_FURTHEST = 5


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor, with how far its values are from those of the other model."""

    tensor: StoredTensor
    by: Difference

    def beyond(self, tolerance: float) -> bool:
        return self.by.max_abs > tolerance or self.by.non_finite_differ

    def told(self) -> TensorDifference:
        found = self.by
        return TensorDifference(
            self.tensor.name,
            found.values,
            found.relative,
            found.max_abs,
            found.mean_abs,
            found.cosine,
            found.differing_ratio,
            found.non_finite_differ,
        )


def comparable(pair: Pair) -> bool:
    """Whether both have values that are known, and are complex or not alike."""
    old, new = (tensor.dtype for tensor in pair)
    return decodable(old) and decodable(new) and numbers_per_value(old) == numbers_per_value(new)


def moved(first: StoredModel, second: StoredModel, pairs: Sequence[Pair], progress: Progress | None) -> list[Moved]:
    """How far each tensor moved, reading both files once.

    Raises:
        ModelError: a tensor cannot be read, or has values beyond 1e150.
    """
    from entrenar_core.measuring.processes import differences

    found = differences(first, second, pairs, progress=progress)
    return [Moved(old, by) for (old, _), by in zip(pairs, found, strict=True)]


def furthest(found: Sequence[Moved]) -> tuple[TensorDifference, ...]:
    """Those that moved most for their size: first what holds something else than numbers now, or was zeros."""

    def how_far(one: Moved) -> float:
        relative = one.by.relative
        return math.inf if one.by.non_finite_differ or relative is None else relative

    changed = [one for one in found if one.beyond(0)]
    return tuple(one.told() for one in sorted(changed, key=how_far, reverse=True)[:_FURTHEST])


def by_module(model: StoredModel, found: Sequence[Moved], depth: int, tolerance: float) -> Iterator[ModuleDifference]:
    """What was found of tensors, together for each module; layers are told apart, however alike they are.

    Raises:
        ModelError: a tensor cannot be read.
    """
    by_name = {one.tensor.name: one for one in found}
    tree = tree_of({name: model.tensors[name] for name in by_name})
    for group in groups(tree, depth, alike=False):
        yield _module(model, group, by_name, tolerance)


def _module(model: StoredModel, group: Group, by_name: Mapping[str, Moved], tolerance: float) -> ModuleDifference:
    inside = [by_name[tensor.name] for tensor in group.module.tensors()]
    values = sum(one.by.values for one in inside)
    cosines = [one.by.cosine for one in inside if one.by.cosine is not None]
    return ModuleDifference(
        group.name,
        len(inside),
        sum(one.beyond(tolerance) for one in inside),
        sum(one.beyond(0) for one in inside),
        sum(one.by.non_finite_differ for one in inside),
        _relative(model, inside),
        max(one.by.max_abs for one in inside),
        sum(one.by.mean_abs * one.by.values for one in inside) / values if values else 0.0,
        min(cosines, default=None),
    )


def _relative(model: StoredModel, inside: Sequence[Moved]) -> float | None:
    """‖Δ‖ / ‖W‖ of a module. Norms of tensors that are the same are computed only where another one moved."""
    from entrenar_core.measuring.differences import norm

    distance = math.hypot(*(one.by.distance for one in inside))
    if not distance:
        return 0.0
    norms = (norm(model, one.tensor) if one.by.norm is None else one.by.norm for one in inside)
    return distance / whole if (whole := math.hypot(*norms)) else None
