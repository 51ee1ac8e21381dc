"""The bytes of tensors on their way from one file to another: as they are, or cast, a block at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entrenar_core.formats.blocks import raw_blocks, value_blocks
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to the values of a whole tensor, in the shape that it is stored in; they are then of `shape`."""

    apply: Callable[["NDArray[np.floating]"], "NDArray[np.floating]"]
    shape: tuple[int, ...]


@dataclass(slots=True)
class Rounding:
    """What casting changed, over all that was cast: sums of squares, the largest change, and what became infinite."""

    values: int = 0
    changed: int = 0
    square: float = 0.0
    square_error: float = 0.0
    largest_error: float = 0.0
    overflowed: int = 0

    def add(self, before: "NDArray[np.floating]", after: "NDArray[np.floating]") -> None:
        """Counts a block: its values before and after."""
        import numpy as np

        from entrenar_core.measuring.sums import dot

        self.values += before.size
        if np.array_equal(before, after):
            self.square += dot(before, before)
            return
        kept = np.isfinite(before) & np.isfinite(after)
        self.overflowed += int(np.count_nonzero(np.isfinite(before) & ~np.isfinite(after)))
        exact = before.astype(np.float64)[kept]
        error = np.abs(after.astype(np.float64)[kept] - exact)
        self.changed += int(np.count_nonzero(error))
        self.square += dot(exact, exact)
        self.square_error += dot(error, error)
        self.largest_error = max(self.largest_error, float(error.max(initial=0.0)))

    @property
    def relative_rms(self) -> float:
        """The root mean square of the changes over that of the values."""
        return float((self.square_error / self.square) ** 0.5) if self.square else 0.0


def as_it_is(model: StoredModel, tensor: StoredTensor, name: str | None = None) -> Outgoing:
    """A tensor whose bytes stay as they are, but for their order where it was not row by row."""
    source = model.sources[tensor.file]
    plain = tensor.strides is None and not tensor.inline
    origin = (source, tensor.offset) if plain and isinstance(source, FileSource) else None
    return Outgoing(name or tensor.name, tensor.dtype, tensor.shape, lambda: raw_blocks(model, tensor), origin)


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
        blocks = value_blocks(model, tensor)
        if change is not None:
            blocks = iter([_changed(blocks, tensor, change)])
        for values in blocks:
            yield _encoded(values, dtype, rounding)

    return Outgoing(name or tensor.name, dtype, tensor.shape if change is None else change.shape, chunks)


def telling(tensor: Outgoing, progress: Callable[[int], None]) -> Outgoing:
    """The same tensor, which tells how many of its bytes are written."""

    def chunks() -> Iterator[bytes | memoryview]:
        for chunk in tensor.chunks():
            yield chunk
            progress(len(chunk))

    return replace(tensor, chunks=chunks, tell=progress)


def _changed(blocks: "Iterator[NDArray[np.floating]]", tensor: StoredTensor, change: Change) -> "NDArray[np.floating]":
    import numpy as np

    whole = np.concatenate([block.reshape(-1) for block in blocks]).reshape(tensor.shape)
    return np.ascontiguousarray(change.apply(whole)).reshape(-1)


def _encoded(values: "NDArray[np.floating]", dtype: Dtype, rounding: Rounding) -> memoryview:
    from entrenar_core.formats.decoding import decode
    from entrenar_core.formats.encoding import encode

    written = encode(values, dtype)
    rounding.add(values, decode(written, dtype))
    return written.data
