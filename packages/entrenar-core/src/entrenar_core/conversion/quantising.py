"""The values of tensors on their way to quantised blocks, several rows at once, with what quantising changed: an
estimate of its root mean square, from some of the rows of a large tensor, and the largest change among these.

Threads go from one tensor to the next without waiting for its end: while what they made of one is written, they are at
work on those that follow.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from entrenar_core.conversion.casting import Cast, Rounding, Roundings
from entrenar_core.conversion.content import Change, changed_values
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import cores, in_turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = Callable[["_Room", int, int], NDArray[np.float32]]
    """The rows from one number to another, perhaps in the room."""

_JOB_VALUES = 1 << 18  # ten milliseconds and more of a K-quant
_MEASURED = 16  # to take blocks apart again takes up to a tenth of the time of making them
_ALL_MEASURED = 8  # of fewer jobs, each is
_MORE_ROOMS = 6  # which wait to be written while all threads work


class _Room:
    """Memory for the rows of one job on their way, used again for the next."""

    def __init__(self, values: int) -> None:
        import numpy as np

        self.raw = np.empty(8 * values, np.uint8)
        self.singles = np.empty(values, "<f4")
        self.again = np.empty(values, "<f4")
        self.blocks = np.empty(2 * values, np.uint8)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done to one tensor: rows of `row` values are read, `step` of them at once, and written as `dtype`."""

    model: StoredModel
    tensor: StoredTensor
    dtype: Dtype
    shape: tuple[int, ...]
    change: Change | None
    importance: "NDArray[np.float32] | None"

    @property
    def row(self) -> int:
        """How many values a row has."""
        return self.shape[-1]

    @property
    def _together(self) -> int | None:
        """Of how many rows the change is made at once; None where that is of all, or of too many."""
        together = self.change.together if self.change is not None and len(self.shape) == 2 else None
        return together if together is not None and together * self.row <= 2 * _JOB_VALUES else None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.tensor.values // self.row if self.row else 0

    @property
    def step(self) -> int:
        """How many of them are one job: whole groups of those that are changed together."""
        together = self._together or 1
        return max(_JOB_VALUES // (self.row * together), 1) * together if self.row else 1

    @property
    def count(self) -> int:
        """How many jobs that makes."""
        return -(-self.rows // self.step)

    def jobs(self) -> Iterator[Callable[[_Room], Cast]]:
        """Each takes a room and leaves blocks in it; a tensor that is changed as a whole is read before the first."""
        apart = self.change is None or self._together is not None
        read = _in_file(self.model, self.tensor, self.change) if apart else None
        read = read or _sliced(changed_values(self.model, self.tensor, self.change))
        for number, start in enumerate(range(0, self.rows, self.step)):
            yield partial(self._job, read, start, min(start + self.step, self.rows), number % self._every == 0)

    def _job(self, read: "Rows", start: int, end: int, measured: bool, room: _Room) -> Cast:
        from entrenar_core.quantization.encoding import encode_blocks

        values, name = read(room, start, end), f"tensor {self.tensor.name}"
        written = encode_blocks(values, self.dtype, self.importance, name=name, room=room.blocks)
        return written, self._change(values, written, room) if measured else Rounding(values.size)

    def _change(self, values: "NDArray[np.float32]", written: "NDArray[np.uint8]", room: _Room) -> Rounding:
        """What the blocks of some rows stand for beside their values; sums stand for the rows of other jobs too."""
        import numpy as np

        from entrenar_core.measuring.sums import dot
        from entrenar_core.quantization.encoding import decode_into

        flat = values.reshape(-1)
        error = np.subtract(decode_into(written, self.dtype, room.again), flat, out=room.again[: flat.size])
        largest = max(float(error.max(initial=0.0)), -float(error.min(initial=0.0)))
        share = self.rows / sum(
            min(self.step, self.rows - start) for start in range(0, self.rows, self.step * self._every)
        )
        square, square_error = dot(flat, flat), dot(error, error)
        if largest and not square_error:  # squares of tiny numbers are zero in 32 bits
            exact, wrong = flat.astype("<f8"), error.astype("<f8")
            square, square_error = float(exact @ exact), float(wrong @ wrong)
        return Rounding(flat.size, share * square, share * square_error, largest)

    @property
    def _every(self) -> int:
        """Of how many jobs one is measured: two and more of every tensor, all of one that has few."""
        return min(max(self.count // 2, 1), _MEASURED) if self.count >= _ALL_MEASURED else 1


class Quantiser:
    """Quantises tensors in the order that they were given in, which is that in which they are best written.

    Args:
        roundings: are told what quantising changes.
    """

    def __init__(self, roundings: Roundings) -> None:
        self._roundings = roundings
        self._works: list[_Work] = []
        self._blocks: Generator[Cast, None, None] | None = None
        self._next = 0  # whose blocks come next

    def outgoing(
        self,
        model: StoredModel,
        tensor: StoredTensor,
        dtype: Dtype,
        *,
        name: str,
        change: Change | None = None,
        importance: "NDArray[np.float32] | None" = None,
    ) -> Outgoing:
        """A tensor whose rows are written as blocks of another dtype. For a `change` it is read whole.

        Args:
            importance: how much each place of a row counts: of shape (row,).
        """
        shape, place = tensor.shape if change is None else change.shape, len(self._works)
        self._works.append(_Work(model, tensor, dtype, shape, change, importance))
        return Outgoing(name, dtype, shape, lambda: self._chunks(place))

    def close(self) -> None:
        """Ends the threads that are ahead of what was asked for. What breaks off between two tensors must do so:
        threads that the garbage collector ends wait for each other.
        """
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None

    def _chunks(self, place: int) -> Iterator[memoryview]:
        if self._next != place:
            self.close()
        self._blocks = self._blocks or self._from(place)
        self._next = -1  # until all of this one came
        blocks = self._blocks
        work = self._works[place]
        rounding = self._roundings.of(work.tensor.name)
        try:
            for _ in range(work.count):
                written, changed = next(blocks)
                rounding.add(changed)
                yield written.data
            self._next = place + 1
        finally:
            if self._next in (-1, len(self._works)):
                self._blocks = None
                blocks.close()

    def _from(self, place: int) -> Generator[Cast, None, None]:
        """The blocks of one tensor and of all that follow it."""
        works = self._works[place:]
        values = max(min(work.step, work.rows) * work.row for work in works)
        rooms = [_Room(values) for _ in range(cores() + _MORE_ROOMS)]
        yield from in_turn(chain.from_iterable(work.jobs() for work in works), rooms, cores())


def _in_file(model: StoredModel, tensor: StoredTensor, change: Change | None) -> "Rows | None":
    """Reads rows where they lie one after the other in a file, and changes them; None where they do not."""
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
        values = decode_into(raw, tensor.dtype, room.singles).reshape(end - start, row)
        return (values if change is None else change.apply(values)).astype("<f4", copy=False)

    return read


def _sliced(values: "NDArray[np.floating]") -> "Rows":
    """Rows of values that are in memory."""
    matrix = values.reshape(-1, values.shape[-1])
    return lambda _, start, end: matrix[start:end].astype("<f4", copy=False)
