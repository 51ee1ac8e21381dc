"""`entrenar-inspect layers`: the modules of a model, those that are alike together, or every tensor.

Of values, modules have the statistics of all their weights together, and no two modules are taken for one. A tensor
that cannot be measured, such as a matrix with NaN, is told of, and does not keep the others from it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeVar

from entrenar_core.errors import NotFoundError, UnmeasurableError
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.results import EffectiveRank, TensorStatistics
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.counting import weights_of
from entrenar_inspect.opening import require_values
from entrenar_inspect.reports.layers import LayerRow, LayersReport, Measure
from entrenar_inspect.summary import facts_of
from entrenar_inspect.tree import Group, groups, tree_of

_WEIGHTS = ("float", "quantised", "complex")
_NAMED = 5  # in a note; the others are counted

_Found = TypeVar("_Found")
_Progress = Callable[[int], None] | None
_Lost = dict[tuple[Measure, str], str]
"""Why a tensor has no statistics or no rank, by which of them and its name."""
_CALLED: Mapping[Measure, str] = {"statistics": "statistics", "rank": "effective rank"}


def list_layers(
    model: StoredModel,
    *,
    depth: int = 1,
    by_tensor: bool = False,
    pattern: str | None = None,
    statistics: bool = False,
    rank: bool = False,
    progress: Callable[[int], None] | None = None,
) -> LayersReport:
    """The layers of a model, opened `depth` levels deep, or each tensor by itself.

    Args:
        pattern: only tensors whose names match it, as file names match `*.safetensors`.
        statistics: whether to read every value, of each module or tensor that is listed.
        rank: whether to estimate the effective rank of each matrix; tensors are listed one by one then.
        progress: is told how many bytes of tensors are done.

    Raises:
        NotFoundError: no name matches.
        UsageError: values are asked for, and they are on the Hub.
        ModelError: a file cannot be read.
    """
    tensors = matching(model.tensors, pattern)
    weights = weights_of(model, facts_of(model).detection)
    if statistics or rank:
        require_values(model)
    by_tensor = by_tensor or rank
    listed = list(_listed(tensors, depth, weights, by_tensor=by_tensor, alike=not statistics))
    lost: _Lost = {}
    rows = [
        _row(
            group,
            inside,
            weights,
            _statistics(model, inside, progress, lost) if statistics else None,
            _rank(model, inside[0], progress, lost) if rank else None,
            lost,
        )
        for group, inside in listed
    ]
    return LayersReport(
        str(model.reference),
        model.format,
        tuple(rows),
        len(tensors),
        sum(weights.get(name, 0) for name in tensors),
        sum(tensor.size_bytes for tensor in tensors.values()),
        pattern,
        by_tensor,
        (*(_left_out([inside for _, inside in listed]) if statistics else ()), *_told(lost)),
    )


def _listed(
    tensors: Mapping[str, StoredTensor], depth: int, weights: Mapping[str, int], *, by_tensor: bool, alike: bool
) -> Iterator[tuple[Group, list[StoredTensor]]]:
    """What has a row each, and the tensors in it."""
    tree = tree_of(tensors)
    if by_tensor:
        yield from ((Group(name, 1, tree), [tensor]) for name, tensor in tensors.items())
    else:
        found = groups(tree, depth, alike=alike, weights=weights)
        yield from ((group, list(group.module.tensors())) for group in found)


def matching(tensors: Mapping[str, StoredTensor], pattern: str | None) -> Mapping[str, StoredTensor]:
    """The tensors whose names match.

    Raises:
        NotFoundError: there are none.
    """
    if pattern is None:
        return tensors
    found = {name: tensor for name, tensor in tensors.items() if fnmatchcase(name, pattern)}
    if not found:
        example = next(iter(tensors), None)
        raise NotFoundError(
            f"no tensor is called like {pattern}",
            f"names look like {example}; `*` stands for any characters" if example else "the model has no tensors",
        )
    return found


def _statistics(
    model: StoredModel, tensors: Sequence[StoredTensor], progress: _Progress, lost: _Lost
) -> TensorStatistics | None:
    """Of a single tensor whatever it holds; of several those that hold weights, since indices are of another kind."""
    from entrenar_core.measuring.merging import merged
    from entrenar_core.measuring.statistics import statistics_of

    chosen = tensors if len(tensors) == 1 else [tensor for tensor in tensors if _holds_weights(tensor)]
    tried = (_tried("statistics", tensor, partial(statistics_of, model, progress=progress), lost) for tensor in chosen)
    found = [one for one in tried if one is not None]
    return merged(found) if found else None


def _holds_weights(tensor: StoredTensor) -> bool:
    return tensor.dtype.kind in _WEIGHTS


def _left_out(modules: Sequence[Sequence[StoredTensor]]) -> Iterator[str]:
    """What the statistics of modules do not tell of."""
    others = sum(not _holds_weights(tensor) for inside in modules if len(inside) > 1 for tensor in inside)
    if others:
        yield f"statistics leave out {others:,} {'tensor' if others == 1 else 'tensors'} without floats"


def _rank(model: StoredModel, tensor: StoredTensor, progress: _Progress, lost: _Lost) -> EffectiveRank | None:
    """Of a matrix of floats."""
    from entrenar_core.measuring.rank import effective_rank

    if len(tensor.shape) != 2 or not tensor.values or tensor.dtype.kind not in ("float", "quantised"):
        return None
    return _tried("rank", tensor, partial(effective_rank, model, progress=progress), lost)


def _tried(
    what: Measure, tensor: StoredTensor, measure: Callable[[StoredTensor], _Found], lost: _Lost
) -> _Found | None:
    """What is measured of a tensor, unless its type or its values do not let it be.

    Raises:
        ModelError: its file cannot be read.
    """
    try:
        return measure(tensor)
    except UnmeasurableError as error:
        lost[what, tensor.name] = error.reason
        return None


def _told(lost: _Lost) -> Iterator[str]:
    """Which tensors could not be measured, and why."""
    alike: defaultdict[tuple[Measure, str], list[str]] = defaultdict(list)
    for (what, name), why in lost.items():
        alike[what, why].append(name)
    for (what, why), names in alike.items():
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        which = "which" if len(names) == 1 else "each of which"
        yield f"no {_CALLED[what]} of {', '.join(names[:_NAMED])}{more}, {which} {why}"


def _row(
    group: Group,
    tensors: Sequence[StoredTensor],
    weights: Mapping[str, int],
    statistics: TensorStatistics | None,
    rank: EffectiveRank | None,
    lost: _Lost,
) -> LayerRow:
    measured: Mapping[Measure, object] = {"statistics": statistics, "rank": rank}
    return LayerRow(
        group.name,
        group.copies,
        len(tensors),
        tensors[0].shape if len(tensors) == 1 else None,
        tuple(dict.fromkeys(tensor.dtype.name for tensor in tensors)),
        sum(weights.get(tensor.name, 0) for tensor in tensors),
        sum(tensor.size_bytes for tensor in tensors),
        statistics,
        rank,
        tuple(
            what
            for what, found in measured.items()
            if found is None and any((what, tensor.name) in lost for tensor in tensors)
        ),
    )
