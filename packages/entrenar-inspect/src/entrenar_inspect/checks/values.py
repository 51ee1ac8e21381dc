"""The values: none that is no finite number, and no matrix of nothing but zeros."""

from collections.abc import Callable, Iterator

from entrenar_core.formats.decoding import decodable
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.finite import non_finite
from entrenar_core.measuring.results import NonFinite
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import found
from entrenar_inspect.reports.validation import Check

NAME, ZEROS = "values", "zeros"
_GLANCE_VALUES, _BLOCK_VALUES = 1024, 1 << 20


def finite(model: StoredModel, progress: Callable[[int], None] | None) -> Check:
    """Looks at every value of a model that lies here.

    Raises:
        ModelError: a file cannot be read any more.
    """
    wrong = [_told(tensor) for tensor in non_finite(model, progress=progress)]
    unread = [tensor.dtype.name for tensor in model.tensors.values() if not decodable(tensor.dtype)]
    besides = f"; {len(unread)} of unknown dtypes were not looked at" if unread else ""
    return found(NAME, wrong, fine=f"none of {model.values:,} is NaN or infinite{besides}")


def _told(tensor: NonFinite) -> str:
    counts = [f"{count:,} {what}" for count, what in ((tensor.nan, "NaN"), (tensor.inf, "infinite")) if count]
    place = ", ".join(map(str, tensor.first))
    return f"tensor {tensor.tensor} has {' and '.join(counts)}, the first at [{place}]"


def zeros(model: StoredModel) -> Check | None:
    """Warns of matrices that are all zeros, as what was never filled in. None where there are no matrices.

    What has one row or column is none: RoBERTa, which tells no two kinds of tokens apart, has such a row of zeros.

    Raises:
        ModelError: a file cannot be read any more.
    """
    matrices = [tensor for tensor in model.tensors.values() if _is_matrix(tensor)]
    if not matrices:
        return None
    empty = [f"tensor {tensor.name} is all zeros" for tensor in matrices if _all_zeros(model, tensor)]
    return found(ZEROS, empty, fine="no matrix is all zeros", wrong="warning")


def _is_matrix(tensor: StoredTensor) -> bool:
    is_weight = tensor.dtype.kind in ("float", "quantised", "complex") and decodable(tensor.dtype)
    return is_weight and tensor.values > 0 and sum(size > 1 for size in tensor.shape) > 1


def _all_zeros(model: StoredModel, tensor: StoredTensor) -> bool:
    return not any(_non_zero(model, tensor))


def _non_zero(model: StoredModel, tensor: StoredTensor) -> Iterator[bool]:
    """Whether blocks of a tensor have values other than zero: the first values, the last, then all."""
    import numpy as np

    from entrenar_core.measuring.reading import content_of

    content = content_of(model, tensor)
    step = max(_GLANCE_VALUES // tensor.dtype.block, 1) * tensor.dtype.block_bytes
    last = (content.size_bytes - 1) // step * step
    glances = ((place, min(step, content.size_bytes - place)) for place in (0, last))
    for place, size in (*glances, *content.cut(_BLOCK_VALUES)):
        raw = content.bytes_at(place, np.empty(size, np.uint8))
        yield bool(content.decode(place, raw).any())
