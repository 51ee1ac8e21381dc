"""The bytes of tensors on their way from one file to another: as they are, or cast, a block at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entrenar_core.conversion.casting import Cast, Rounding, cast_blocks, cast_values
from entrenar_core.formats.blocks import raw_blocks, value_blocks
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_CHANGED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to the values of a tensor, in the shape that it is stored in; they are then of `shape`.

    `together` is how many rows, of the first dimension, are changed without a look at the others: such groups may be
    given to `apply` alone. None where it takes the whole tensor.
    """

    apply: Callable[["NDArray[np.floating]"], "NDArray[np.floating]"]
    shape: tuple[int, ...]
    together: int | None = None


def as_it_is(model: StoredModel, tensor: StoredTensor, name: str | None = None) -> Outgoing:
    """A tensor whose bytes stay as they are, but for their order where it was not row by row."""
    source = model.sources[tensor.file]
    plain = tensor.strides is None and not tensor.inline
    origin = (source, tensor.offset) if plain and isinstance(source, FileSource) else None
    return Outgoing(name or tensor.name, tensor.dtype, tensor.shape, lambda: raw_blocks(model, tensor), origin)


def same_values(model: StoredModel, one: str, other: str) -> bool:
    """Whether two tensors are stored alike with the same values, all of which are numbers; a block at a time."""
    import numpy as np

    first, second = model.tensors[one], model.tensors[other]
    if any(getattr(first, part) != getattr(second, part) for part in ("shape", "dtype", "strides", "inline")):
        return False
    pairs = zip(value_blocks(model, first), value_blocks(model, second), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def cast(
    model: StoredModel,
    tensor: StoredTensor,
    dtype: Dtype,
    rounding: Rounding,
    *,
    name: str | None = None,
    change: Change | None = None,
) -> Outgoing:
    """A tensor whose values are written in another dtype; `rounding` is told what that changes.

    For a `change` it is read whole.
    """

    def chunks() -> Iterator[memoryview]:
        blocks = cast_blocks(model, tensor, dtype) if change is None else _changed(model, tensor, dtype, change)
        for written, changed in blocks:
            rounding.add(changed)
            yield written.data

    return Outgoing(name or tensor.name, dtype, tensor.shape if change is None else change.shape, chunks)


def telling(tensor: Outgoing, progress: Callable[[int], None]) -> Outgoing:
    """The same tensor, which tells how many of its bytes are written."""

    def chunks() -> Iterator[bytes | memoryview]:
        for chunk in tensor.chunks():
            yield chunk
            progress(len(chunk))

    return replace(tensor, chunks=chunks, tell=progress)


def changed_values(model: StoredModel, tensor: StoredTensor, change: Change | None) -> "NDArray[np.floating]":
    """All values of a tensor at once, changed, row by row."""
    import numpy as np

    whole = np.empty(tensor.values, "<f8" if tensor.dtype.name == "F64" else "<f4")
    filled = 0
    for block in value_blocks(model, tensor):  # which are views of one buffer
        whole[filled : filled + block.size] = block.reshape(-1)
        filled += block.size
    shaped = whole.reshape(tensor.shape)
    return shaped if change is None else np.ascontiguousarray(change.apply(shaped))


def _changed(model: StoredModel, tensor: StoredTensor, dtype: Dtype, change: Change) -> Iterator[Cast]:
    """All values at once, changed first."""
    values = changed_values(model, tensor, change).reshape(-1)
    for start in range(0, len(values), _CHANGED_AT_ONCE):
        yield cast_values(values[start : start + _CHANGED_AT_ONCE], dtype)
