"""The merged tensors, block by block: read, changed in float32, rounded once, and measured on the way.

Where rows are changed without a look at the others, several threads compute a block each, on one core: torch's own
threads wait for each other at the end of every operation. Tensors of float64 are changed in float64.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from entrenar_core.adapters.changes import Change
from entrenar_core.adapters.placing import Target
from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.target_changes import TORCH_DTYPES, change_of, is_by_rows
from entrenar_core.errors import ModelError
from entrenar_core.formats.blocks import raw_blocks
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.names import shown
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing, Part, Put
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import keeping_torch_threads, share_out

Place = tuple[str, int]
"""A tensor, and the first row of a block of it; -1 of the whole."""
_BLOCK_VALUES = 1 << 18  # a block and its copies stay in a core's own cache


@dataclass(slots=True)
class Tally:
    """Sums of squares, by module: of what is added, and of what rounding changes of the sum.

    Those of all blocks are kept, each once, and added exactly: they come in any order, some tensors more than once, and
    the sum is always the same.
    """

    _changes: dict[str, dict[Place, float]] = field(default_factory=dict)
    _errors: dict[str, dict[Place, float]] = field(default_factory=dict)

    def change(self, module: str, place: Place, square: float) -> None:
        """What is added at a place. May be called from several threads at once."""
        self._changes.setdefault(module, {})[place] = square

    def error(self, module: str, place: Place, square: float) -> None:
        """What rounding changes there."""
        self._errors.setdefault(module, {})[place] = square

    @property
    def overall(self) -> float | None:
        """‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖ of all modules together; None where nothing is added."""
        return _ratio(self._errors.values(), self._changes.values())

    @property
    def lost(self) -> dict[str, float]:
        """The same of each module to which something is added."""
        found = {module: _ratio([self._errors.get(module, {})], [changes]) for module, changes in self._changes.items()}
        return {module: lost for module, lost in found.items() if lost is not None}


def _ratio(errors: Iterable[Mapping[Place, float]], changes: Iterable[Mapping[Place, float]]) -> float | None:
    error, change = (math.fsum(chain.from_iterable(squares.values() for squares in each)) for each in (errors, changes))
    return math.sqrt(error / change) if change > 0 else None


class _Room:
    """Memory for one block on its way, used again for another."""

    def __init__(self, values: int, stored: Dtype, written: Dtype) -> None:
        self.raw = torch.empty(values * stored.block_bytes, dtype=torch.uint8)
        wide = torch.float64 if "F64" in (stored.name, written.name) else torch.float32
        self.values, self.spare = torch.empty(values, dtype=wide), torch.empty(values, dtype=wide)
        self.written = torch.empty(values, dtype=TORCH_DTYPES[written.name])


@dataclass(slots=True)
class _Rooms:
    """Those that no thread is at work in, by what they are for."""

    _free: dict[tuple[int, Dtype, Dtype], list[_Room]] = field(default_factory=dict)

    def take(self, values: int, stored: Dtype, written: Dtype) -> tuple[_Room, Callable[[], None]]:
        """A room, and what gives it back. May be called from several threads at once."""
        free = self._free.setdefault((values, stored, written), [])
        try:
            room = free.pop()
        except IndexError:
            room = _Room(values, stored, written)
        return room, partial(free.append, room)


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge under way: what is to be done, what that has changed, and where."""

    plan: MergePlan
    tally: Tally = field(default_factory=Tally)
    rooms: _Rooms = field(default_factory=_Rooms)


def merged_tensor(merge: Merge, target: Target, dtype: Dtype) -> Outgoing:
    """A tensor that adapters add to, on its way out; what that changes is counted as it is written.

    Whoever writes it does so in `keeping_torch_threads`: parts take one for each of ours.
    """
    parts = partial(_parts, merge, target, dtype) if is_by_rows(merge.plan, target) else None
    chunks = partial(_blocks, merge, target, dtype)
    return Outgoing(target.name, dtype, target.tensor.shape, chunks, parts=parts)


def merged_bytes(merge: Merge, target: Target, dtype: Dtype) -> bytearray:
    """The same at once."""
    size = dtype.size_bytes(target.tensor.shape)
    assert size is not None, "what is merged is stored as floats"
    found = bytearray(size)

    def put(offset: int, block: memoryview, free: Callable[[], None] = lambda: None) -> None:
        found[offset : offset + len(block)] = block
        free()

    if is_by_rows(merge.plan, target):
        with keeping_torch_threads():
            share_out(_parts(merge, target, dtype), lambda: partial(_done, put))
        return found
    at = 0
    for block in _blocks(merge, target, dtype):
        put(at, block)
        at += len(block)
    return found


def _done(put: Put, part: Part) -> int:
    part.do(put)
    return part.size_bytes


@dataclass(frozen=True, slots=True)
class _Work:
    """One tensor that is computed; `square` is that of the change, where it is known before."""

    merge: Merge
    target: Target
    dtype: Dtype
    change: Change
    square: float | None

    @classmethod
    def begun(cls, merge: Merge, target: Target, dtype: Dtype) -> "_Work":
        """With what is added to it."""
        change = change_of(merge.plan, target)
        square = change.square
        if square is not None:
            merge.tally.change(target.module, (target.name, -1), square)
        return cls(merge, target, dtype, change, square)

    @property
    def _model(self) -> StoredModel:
        return self.target.model(self.merge.plan.base)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = self.target.tensor.shape
        return (shape[0], shape[1]) if len(shape) == 2 else (1, self.target.tensor.values)

    def cuts(self) -> Iterator[tuple[int, int]]:
        """The first row of each block, and how many it has."""
        rows, columns = self.shape
        # a tensor whose values lie in another order is read whole
        together = self.change.whole or self.target.tensor.strides is not None
        step = rows if together else max(1, min(rows, _BLOCK_VALUES // columns))
        for start in range(0, rows, step):
            yield start, min(step, rows - start)

    def room(self, rows: int) -> tuple[_Room, Callable[[], None]]:
        """For so many rows, and what gives it back."""
        return self.merge.rooms.take(rows * self.shape[1], self.target.tensor.dtype, self.dtype)

    def block(self, start: int, rows: int, room: _Room) -> memoryview:
        """The bytes of some rows; what changed is counted."""
        stored, columns = self.target.tensor, self.shape[1]
        count = rows * columns
        raw = room.raw[: count * stored.dtype.block_bytes]
        self._read(start * columns * stored.dtype.block_bytes, raw)
        values, spare = (one[:count].view(rows, columns) for one in (room.values, room.spare))
        values.copy_(raw.view(TORCH_DTYPES[stored.dtype.name]).view(rows, columns))
        tally, place = self.merge.tally, (self.target.name, start)
        if self.square is None:
            spare.copy_(values)
        self.change.apply(values, start)
        if self.square is None:
            tally.change(self.target.module, place, _square(spare.sub_(values)))
        written = room.written[:count]
        written.copy_(values.view(-1))
        error = _square(spare.copy_(written.view(rows, columns)).sub_(values))
        if not math.isfinite(error):
            raise self._not_finite(raw, values)
        tally.error(self.target.module, place, error)
        return written.view(torch.uint8).numpy().data

    def _not_finite(self, raw: Tensor, values: Tensor) -> ModelError:
        """Whose fault that is: the base's, the adapter's with its scale, or that of the dtype."""
        stored = raw.view(TORCH_DTYPES[self.target.tensor.dtype.name])
        if not torch.isfinite(stored).all():
            return ModelError(
                f"{shown(self.target.tensor.name)} of {self._model.reference} holds values that are not finite",
                "look at it with `entrenar-inspect validate`",
            )
        what = f"merged, {shown(self.target.name)} holds values that are not finite"
        if not torch.isfinite(values).all():
            return ModelError(what, "the adapter's values, its alpha, --scale or --weights are too large")
        return ModelError(f"{what} in {self.dtype}", "they are too large for it: take --dtype bf16 or fp32")

    def _read(self, offset: int, raw: Tensor) -> None:
        tensor, model = self.target.tensor, self._model
        source = model.sources[tensor.file]
        buffer: memoryview = raw.numpy().data
        if isinstance(source, FileSource) and tensor.strides is None and not tensor.inline:
            source.read_into(tensor.offset + offset, buffer)
            return
        whole = bytearray()
        for block in raw_blocks(model, tensor):
            whole += block
        buffer[:] = whole[offset : offset + len(buffer)]


def _square(values: Tensor) -> float:
    flat = values.view(-1)
    return float(torch.dot(flat, flat))


def _blocks(merge: Merge, target: Target, dtype: Dtype) -> Iterator[memoryview]:
    """One after the other, each by all of torch's threads."""
    work = _Work.begun(merge, target, dtype)
    (_, most), *_ = work.cuts()
    room, free = work.room(most)
    for start, rows in work.cuts():
        yield work.block(start, rows, room)
    free()


def _parts(merge: Merge, target: Target, dtype: Dtype) -> Iterator[Part]:
    work = _Work.begun(merge, target, dtype)
    row_bytes = work.shape[1] * dtype.block_bytes
    (_, most), *_ = work.cuts()
    for start, rows in work.cuts():
        yield Part(rows * row_bytes, partial(_do_part, work, start, rows, most))


def _do_part(work: _Work, start: int, rows: int, most: int, put: Put) -> None:
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    room, free = work.room(most)
    block = work.block(start, rows, room)
    put(start * work.shape[1] * work.dtype.block_bytes, block, free)


F32 = DTYPES["F32"]
"""What a merged tensor is computed in."""
