"""The values of a tensor on their way to quantised blocks, several rows at once, with what quantising changed."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from entrenar_core.conversion.casting import Cast, Rounding, in_turn
from entrenar_core.conversion.content import Change, changed_values
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = Callable[["_Room", int, int], NDArray[np.float32]]
    """The rows from one number to another, perhaps in the room."""

_JOB_VALUES = 1 << 18  # ten milliseconds and more of a K-quant
_MORE_ROOMS = 2  # which wait to be written while all threads work


class _Room:
    """Memory for the rows of one job on their way, used again for the next."""

    def __init__(self, values: int, source: Dtype, target: Dtype) -> None:
        import numpy as np

        self.raw = np.empty(values // source.block * source.block_bytes, np.uint8)
        self.singles = np.empty(values, "<f4")
        self.again = np.empty(values, "<f4")
        self.blocks = np.empty(values // target.block * target.block_bytes, np.uint8)


def quantise(
    model: StoredModel,
    tensor: StoredTensor,
    dtype: Dtype,
    rounding: Rounding,
    *,
    name: str,
    change: Change | None = None,
    importance: "NDArray[np.float32] | None" = None,
) -> Outgoing:
    """A tensor whose rows are written as blocks of another dtype; `rounding` is told what that changes.

    For a `change` it is read whole.

    Args:
        importance: how much each place of a row counts: of shape (row,).
    """
    shape = tensor.shape if change is None else change.shape

    def chunks() -> Iterator[memoryview]:
        rows = _in_file(model, tensor) if change is None else None
        read = rows or _sliced(changed_values(model, tensor, change))
        for written, changed in _quantised(read, shape, tensor, dtype, importance):
            rounding.add(changed)
            yield written.data

    return Outgoing(name, dtype, shape, chunks)


def threads() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quantised(
    read: "Rows", shape: tuple[int, ...], tensor: StoredTensor, dtype: Dtype, importance: "NDArray[np.float32] | None"
) -> Iterator[Cast]:
    row = shape[-1]
    rows = tensor.values // row if row else 0
    step = max(_JOB_VALUES // row, 1) if row else 1
    at_once = min(threads(), -(-rows // step)) or 1
    rooms = [_Room(min(step, rows) * row, tensor.dtype, dtype) for _ in range(at_once + _MORE_ROOMS)]
    jobs = (
        partial(_job, read, start, min(start + step, rows), tensor.name, dtype, importance)
        for start in range(0, rows, step)
    )
    yield from in_turn(jobs, rooms, at_once)


def _job(
    read: "Rows",
    start: int,
    end: int,
    name: str,
    dtype: Dtype,
    importance: "NDArray[np.float32] | None",
    room: _Room,
) -> Cast:
    import numpy as np

    from entrenar_core.measuring.sums import dot
    from entrenar_core.quantization.encoding import decode_into, encode_blocks

    values = read(room, start, end)
    written = encode_blocks(values, dtype, importance, name=f"tensor {name}", room=room.blocks)
    back, flat = decode_into(written, dtype, room.again), values.reshape(-1)
    error = np.subtract(back, flat, out=room.again[: flat.size])
    largest = max(float(error.max(initial=0.0)), -float(error.min(initial=0.0)))
    return written, Rounding(flat.size, dot(flat, flat), dot(error, error), largest)


def _in_file(model: StoredModel, tensor: StoredTensor) -> "Rows | None":
    """Reads rows where they lie one after the other in a file; None where they do not."""
    from entrenar_core.formats.decoding import decodable

    source = model.sources[tensor.file] if not tensor.inline else None
    whole = tensor.shape[-1] % tensor.dtype.block == 0 and not tensor.dtype.head_bytes
    if not isinstance(source, FileSource) or tensor.strides is not None or not whole or not decodable(tensor.dtype):
        return None
    row = tensor.shape[-1]
    row_bytes = row // tensor.dtype.block * tensor.dtype.block_bytes

    def read(room: _Room, start: int, end: int) -> "NDArray[np.float32]":
        from entrenar_core.quantization.encoding import decode_into

        raw = room.raw[: (end - start) * row_bytes]
        source.read_into(tensor.offset + start * row_bytes, raw.data)
        return decode_into(raw, tensor.dtype, room.singles).astype("<f4", copy=False).reshape(end - start, row)

    return read


def _sliced(values: "NDArray[np.floating]") -> "Rows":
    """Rows of values that are in memory."""
    matrix = values.reshape(-1, values.shape[-1])
    return lambda _, start, end: matrix[start:end].astype("<f4", copy=False)
