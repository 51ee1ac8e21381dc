"""The merged tensors, block by block: read, changed in float32, rounded once, and measured on the way.

Two threads compute while the caller writes the block before. Tensors of float64 are changed in float64.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from entrenar_core.adapters.changes import Change, Difference, Factors, Rescaled
from entrenar_core.adapters.combining import Weighted, combined
from entrenar_core.adapters.placing import Part, Target
from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.principal import PRINCIPAL, principal_part
from entrenar_core.conversion.casting import in_turn
from entrenar_core.errors import ModelError
from entrenar_core.formats.blocks import raw_blocks
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.names import shown
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's types of the weights that are merged."""
_BLOCK_VALUES = 1 << 17  # a block and its copies stay in a core's own cache
_ROOMS = 4


@dataclass(slots=True)
class Tally:
    """Sums of squares, by module: of what is added, and of what rounding changes of the sum."""

    change: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)

    def add(self, module: str, change: float, error: float) -> None:
        """Counts a block."""
        self.change[module] = self.change.get(module, 0.0) + change
        self.error[module] = self.error.get(module, 0.0) + error

    def lost(self, module: str) -> float | None:
        """‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖ of a module; None where nothing is added."""
        change = self.change[module]
        return math.sqrt(self.error[module] / change) if change > 0 else None


def merged_tensor(plan: MergePlan, target: Target, dtype: Dtype, tally: Tally) -> Outgoing:
    """A tensor that adapters add to, on its way out; what that changes is told to `tally` as it is written."""

    def chunks() -> Iterator[memoryview]:
        yield from _blocks(plan, target, dtype, tally)

    return Outgoing(target.name, dtype, target.tensor.shape, chunks)


def merged_bytes(plan: MergePlan, target: Target, dtype: Dtype, tally: Tally) -> bytearray:
    """The same at once."""
    found = bytearray()
    for block in _blocks(plan, target, dtype, tally):
        found += block
    return found


def change_of(plan: MergePlan, target: Target) -> Change:
    """What is added to the tensor of a target, of two dimensions: a bias is a single row.

    Raises:
        ModelError: a value of an adapter is not finite.
    """
    if target.bias:
        return _bias_change(target)
    base = None
    if not plan.combination.is_sum or any(part.adapter.settings.init in PRINCIPAL for part in target.parts):
        base = stored_values(target.model(plan.base), target.tensor)
    parts = [
        Weighted(_part_change(part, target, base), part.weight, part.pair.rank, part.number) for part in target.parts
    ]
    return combined(parts, plan.combination, target.name, base)


def stored_values(model: StoredModel, tensor: StoredTensor) -> Tensor:
    """A whole stored tensor in float32, or float64 where it is that."""
    raw = bytearray()
    for block in raw_blocks(model, tensor):
        raw += block
    found = torch.frombuffer(raw, dtype=TORCH_DTYPES[tensor.dtype.name]).reshape(tensor.shape)
    return found if found.dtype == torch.float64 else found.float()


def part_factors(part: Part, *, transposed: bool) -> Factors:
    """s · B · A as the matrix is stored: of a transposed one, or of an embedding, both change places."""
    adapter, pair = part.adapter, part.pair
    down, up = (torch.from_numpy(adapter.values(one)) for one in (pair.down, pair.up))
    assert pair.scale is not None, "scales are required before"
    if transposed or pair.embedding:
        return Factors(down.T.contiguous() * pair.scale, up.T.contiguous())
    return Factors(up * pair.scale, down)


def _part_change(part: Part, target: Target, base_RC: Tensor | None) -> Change:
    factors = part_factors(part, transposed=target.transposed)
    if part.pair.magnitude is not None:
        magnitude = torch.from_numpy(part.adapter.values(part.pair.magnitude)).reshape(-1)
        return Rescaled(factors, magnitude, by_column=target.transposed or part.pair.embedding)
    if part.adapter.settings.init in PRINCIPAL and not part.pair.embedding:
        assert base_RC is not None, "it is read before"
        return _less_principal(part, factors, base_RC, transposed=target.transposed)
    return factors


def _less_principal(part: Part, factors: Factors, base_RC: Tensor, *, transposed: bool) -> Factors:
    init, scale = part.adapter.settings.init, part.pair.scale
    assert scale is not None
    # OLoRA looks at the weight as it lies, PiSSA as torch multiplies by it
    weight = base_RC.T if transposed and init == "pissa" else base_RC
    taken = principal_part(weight, init, part.pair.rank, scale)
    if transposed and init == "pissa":
        taken = Factors(taken.right_kC.T.contiguous(), taken.left_Rk.T.contiguous())
    return Factors(
        torch.cat([factors.left_Rk, -taken.left_Rk], dim=1), torch.cat([factors.right_kC, taken.right_kC], dim=0)
    )


def _bias_change(target: Target) -> Difference:
    total = torch.zeros(1, target.tensor.values)
    for part in target.parts:
        bias, scale = part.pair.up_bias, part.pair.scale
        assert bias is not None, "parts of a bias have one"
        assert scale is not None, "scales are required before"
        total += torch.from_numpy(part.adapter.values(bias)).reshape(1, -1) * (scale * part.weight)
    return Difference(total)


class _Room:
    """Memory for one block on its way, used again for the next."""

    def __init__(self, values: int, stored: Dtype, written: Dtype) -> None:
        self.raw = torch.empty(values * stored.block_bytes, dtype=torch.uint8)
        wide = torch.float64 if "F64" in (stored.name, written.name) else torch.float32
        self.values, self.spare = torch.empty(values, dtype=wide), torch.empty(values, dtype=wide)
        self.written = torch.empty(values, dtype=TORCH_DTYPES[written.name])


@dataclass(frozen=True, slots=True)
class _Job:
    """One tensor on its way; `square` is that of the change, where it is known before."""

    plan: MergePlan
    target: Target
    dtype: Dtype
    change: Change
    square: float | None
    columns: int

    def block(self, start: int, rows: int, room: _Room) -> tuple[memoryview, float, float]:
        """The bytes of some rows, and the sums of squares of change and rounding."""
        stored, count = self.target.tensor, rows * self.columns
        raw = room.raw[: count * stored.dtype.block_bytes]
        self._read(start * self.columns * stored.dtype.block_bytes, raw)
        values, spare = (one[:count].view(rows, self.columns) for one in (room.values, room.spare))
        values.copy_(raw.view(TORCH_DTYPES[stored.dtype.name]).view(rows, self.columns))
        added = 0.0
        if self.square is None:
            spare.copy_(values)
        self.change.apply(values, start)
        if self.square is None:
            added = _square(spare.sub_(values))
        written = room.written[:count]
        written.copy_(values.view(-1))
        error = _square(spare.copy_(written.view(rows, self.columns)).sub_(values))
        if not math.isfinite(error):
            raise ModelError(
                f"merged, {shown(self.target.name)} holds values that are not finite in {self.dtype}",
                "look at the base with `entrenar-inspect validate`; values that are too large need --dtype fp32",
            )
        return written.view(torch.uint8).numpy().data, added, error

    def _read(self, offset: int, raw: Tensor) -> None:
        tensor, model = self.target.tensor, self.target.model(self.plan.base)
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


def _blocks(plan: MergePlan, target: Target, dtype: Dtype, tally: Tally) -> Iterator[memoryview]:
    change = change_of(plan, target)
    shape = target.tensor.shape
    rows, columns = shape if len(shape) == 2 else (1, target.tensor.values)
    job = _Job(plan, target, dtype, change, change.square, columns)
    # a tensor whose values lie in another order is read whole
    together = change.whole or target.tensor.strides is not None
    step = rows if together else max(1, min(rows, _BLOCK_VALUES // columns))
    rooms = [_Room(step * columns, target.tensor.dtype, dtype) for _ in range(min(_ROOMS, -(-rows // step)))]
    tally.add(target.module, change.square or 0.0, 0.0)
    jobs = (partial(job.block, start, min(step, rows - start)) for start in range(0, rows, step))
    with _one_thread_each():
        for block, added, error in in_turn(jobs, rooms):
            tally.add(target.module, added, error)
            yield block


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Two blocks at once, each on one core, are several times as fast as one after the other on two, where other
    programs run: torch's threads wait for each other at the end of every operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


F32 = DTYPES["F32"]
"""What a merged tensor is computed in."""
