"""`entrenar-inspect layers`: the modules of a model, those that are alike together, or every tensor."""

from collections.abc import Callable, Mapping
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
from entrenar_inspect.tree import groups, tree_of


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
        statistics: whether to read every value of each tensor, which are then told one by one.
        rank: whether to estimate the effective rank of each matrix, likewise.
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
    by_tensor = by_tensor or statistics or rank
    if by_tensor:
        rows = [
            replace(
                _row(tensor.name, 1, [tensor], weights),
                statistics=_statistics(model, tensor, progress) if statistics else None,
                rank=_rank(model, tensor, progress) if rank else None,
            )
            for tensor in tensors.values()
        ]
    else:
        rows = [
            _row(group.name, group.copies, list(group.module.tensors()), weights)
            for group in groups(tree_of(tensors), depth)
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
    )


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
    model: StoredModel, tensor: StoredTensor, progress: Callable[[int], None] | None
) -> TensorStatistics | None:
    from entrenar_core.formats.decoding import decodable
    from entrenar_core.measuring.statistics import statistics_of

    return statistics_of(model, tensor, progress=progress) if decodable(tensor.dtype) else None


def _rank(model: StoredModel, tensor: StoredTensor, progress: Callable[[int], None] | None) -> EffectiveRank | None:
    """Of a matrix of floats."""
    from entrenar_core.measuring.rank import effective_rank

    is_matrix = len(tensor.shape) == 2 and tensor.values > 0 and tensor.dtype.kind in ("float", "quantised")
    return effective_rank(model, tensor, progress=progress) if is_matrix else None


def _row(name: str, copies: int, tensors: list[StoredTensor], weights: Mapping[str, int]) -> LayerRow:
    return LayerRow(
        name,
        copies,
        len(tensors),
        tensors[0].shape if len(tensors) == 1 else None,
        tuple(dict.fromkeys(tensor.dtype.name for tensor in tensors)),
        sum(weights.get(tensor.name, 0) for tensor in tensors),
        sum(tensor.size_bytes for tensor in tensors),
    )
