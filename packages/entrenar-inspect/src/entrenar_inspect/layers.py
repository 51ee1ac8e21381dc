"""`entrenar-inspect layers`: the modules of a model, those that are alike together, or every tensor.

Of values, modules have the statistics of all their weights together, and no two modules are taken for one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from entrenar_core.errors import NotFoundError
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.results import EffectiveRank, TensorStatistics
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.counting import weights_of
from entrenar_inspect.opening import require_values
from entrenar_inspect.reports.layers import LayerRow, LayersReport
from entrenar_inspect.summary import facts_of
from entrenar_inspect.tree import Group, groups, tree_of

_WEIGHTS = ("float", "quantised", "complex")


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
        ModelError: a tensor cannot be read.
    """
    tensors = matching(model.tensors, pattern)
    weights = weights_of(model, facts_of(model).detection)
    if statistics or rank:
        require_values(model)
    by_tensor = by_tensor or rank
    listed = list(_listed(tensors, depth, by_tensor=by_tensor, alike=not statistics))
    rows = [
        replace(
            _row(group, inside, weights),
            statistics=_statistics(model, inside, progress) if statistics else None,
            rank=_rank(model, inside[0], progress) if rank else None,
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
        tuple(_left_out([inside for _, inside in listed])) if statistics else (),
    )


def _listed(
    tensors: Mapping[str, StoredTensor], depth: int, *, by_tensor: bool, alike: bool
) -> Iterator[tuple[Group, list[StoredTensor]]]:
    """What has a row each, and the tensors in it."""
    tree = tree_of(tensors)
    if by_tensor:
        yield from ((Group(name, 1, tree), [tensor]) for name, tensor in tensors.items())
    else:
        yield from ((group, list(group.module.tensors())) for group in groups(tree, depth, alike=alike))


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
    model: StoredModel, tensors: Sequence[StoredTensor], progress: Callable[[int], None] | None
) -> TensorStatistics | None:
    """Of a single tensor whatever it holds; of several those that hold weights, since indices are of another kind."""
    from entrenar_core.formats.decoding import decodable
    from entrenar_core.measuring.merging import merged
    from entrenar_core.measuring.statistics import statistics_of

    chosen = tensors if len(tensors) == 1 else [tensor for tensor in tensors if _holds_weights(tensor)]
    found = [statistics_of(model, tensor, progress=progress) for tensor in chosen if decodable(tensor.dtype)]
    return merged(found) if found else None


def _holds_weights(tensor: StoredTensor) -> bool:
    return tensor.dtype.kind in _WEIGHTS


def _left_out(modules: Sequence[Sequence[StoredTensor]]) -> Iterator[str]:
    """What the statistics of modules do not tell of."""
    from entrenar_core.formats.decoding import decodable

    others = sum(
        not _holds_weights(tensor) or not decodable(tensor.dtype)
        for inside in modules
        if len(inside) > 1
        for tensor in inside
    )
    if others:
        yield f"statistics leave out {others:,} {'tensor' if others == 1 else 'tensors'} without floats"


def _rank(model: StoredModel, tensor: StoredTensor, progress: Callable[[int], None] | None) -> EffectiveRank | None:
    """Of a matrix of floats."""
    from entrenar_core.measuring.rank import effective_rank

    is_matrix = len(tensor.shape) == 2 and tensor.values > 0 and tensor.dtype.kind in ("float", "quantised")
    return effective_rank(model, tensor, progress=progress) if is_matrix else None


def _row(group: Group, tensors: Sequence[StoredTensor], weights: Mapping[str, int]) -> LayerRow:
    return LayerRow(
        group.name,
        group.copies,
        len(tensors),
        tensors[0].shape if len(tensors) == 1 else None,
        tuple(dict.fromkeys(tensor.dtype.name for tensor in tensors)),
        sum(weights.get(tensor.name, 0) for tensor in tensors),
        sum(tensor.size_bytes for tensor in tensors),
    )
