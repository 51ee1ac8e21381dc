"""The values of a tensor on their way to another dtype, several blocks at once, with what rounding changed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError
from entrenar_core.formats.blocks import value_blocks
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import in_turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_VALUES = 1 << 19
_ROOMS = 4  # of which two wait to be written
_EXACT = {"F64": ("<f4", "<f8"), "F32": ("<f4",)}  # what each dtype holds as it is
Cast = tuple["NDArray[np.uint8]", "Rounding"]


@dataclass(slots=True)
class Rounding:
    """What casting changed, over all that was cast: sums of squares, the largest change, and what became infinite."""

    values: int = 0
    square: float = 0.0
    square_error: float = 0.0
    largest_error: float = 0.0
    overflowed: int = 0

    def add(self, other: "Rounding") -> None:
        """Counts what happened elsewhere too."""
        self.values += other.values
        self.square += other.square
        self.square_error += other.square_error
        self.largest_error = max(self.largest_error, other.largest_error)
        self.overflowed += other.overflowed

    def require_finite(self, dtype: str, hint: str) -> None:
        """Refuses a cast that made something infinite.

        Raises:
            ModelError: it did.
        """
        if self.overflowed:
            what = "1 value is" if self.overflowed == 1 else f"{self.overflowed:,} values are"
            raise ModelError(f"{what} beyond what {dtype} holds", hint)

    @classmethod
    def between(cls, before: "NDArray[np.floating]", after: "NDArray[np.floating]") -> "Rounding":
        """Of some values, before and after; infinities and NaN are left out of the sums."""
        import numpy as np

        kept = np.isfinite(before) & np.isfinite(after)
        exact = before.astype(np.float64)[kept]
        error = np.abs(after.astype(np.float64)[kept] - exact)
        lost = int(np.count_nonzero(np.isfinite(before))) - len(exact)
        return cls(
            before.size, float(exact @ exact), float(error @ error), float(error.max(initial=0.0)), overflowed=lost
        )

    @property
    def relative_rms(self) -> float:
        """The root mean square of the changes over that of the values."""
        return float((self.square_error / self.square) ** 0.5) if self.square else 0.0


@dataclass(slots=True)
class Roundings:
    """What casting changed, of each tensor by the name that it was read by."""

    tensors: dict[str, Rounding] = field(default_factory=dict)

    def of(self, name: str) -> Rounding:
        """That of one, which is told of what is cast."""
        return self.tensors.setdefault(name, Rounding())

    @property
    def all(self) -> Rounding:
        """That of all together."""
        total = Rounding()
        for one in self.tensors.values():
            total.add(one)
        return total


class Room:
    """Memory for one block on its way, used again for the next."""

    def __init__(self) -> None:
        import numpy as np

        from entrenar_core.formats.encoding import PART_VALUES

        self.raw = np.empty(8 * BLOCK_VALUES, np.uint8)
        self.singles = np.empty(BLOCK_VALUES, "<f4")
        self.halves = np.empty(BLOCK_VALUES, "<u2")
        self.spare = np.empty((3, PART_VALUES), np.uint32)


def cast_values(values: "NDArray[np.floating]", dtype: Dtype, room: Room | None = None) -> Cast:
    """The bytes of values in a dtype, and what that changed. With `room` the bytes lie there, or where `values` do."""
    import numpy as np

    from entrenar_core.formats.decoding import decode
    from entrenar_core.formats.encoding import encode
    from entrenar_core.measuring.sums import dot

    if dtype.name in ("F16", "BF16") and values.dtype == np.float32:
        halves = room.halves if room is not None and len(room.halves) >= len(values) else np.empty(len(values), "<u2")
        return _halved(values, dtype, halves[: len(values)], (room or Room()).spare)
    written = encode(values, dtype)
    if values.dtype.str in _EXACT.get(dtype.name, ()) and np.isfinite(square := dot(values, values)):
        return written, Rounding(values.size, square)
    return written, Rounding.between(values, decode(written, dtype))


def _halved(
    values: "NDArray[np.float32]", dtype: Dtype, out: "NDArray[np.uint16]", spare: "NDArray[np.uint32]"
) -> Cast:
    import numpy as np

    from entrenar_core.formats.decoding import decode
    from entrenar_core.formats.encoding import PART_VALUES, encode, encode_singles

    total = Rounding()
    for start in range(0, len(values), PART_VALUES):
        part, target = values[start : start + PART_VALUES], out[start : start + PART_VALUES]
        found = encode_singles(part, dtype, target, spare)
        if found is not None:
            total.add(Rounding(len(part), *found))
        else:
            written = encode(part, dtype)
            np.copyto(target, written.view("<u2"))
            total.add(Rounding.between(part, decode(written, dtype)))
    return out.view(np.uint8), total


def cast_blocks(model: StoredModel, tensor: StoredTensor, dtype: Dtype) -> Iterator[Cast]:
    """The values of a tensor in another dtype, row by row; each block is used before the next is asked for."""
    source = model.sources[tensor.file]
    in_order = isinstance(source, FileSource) and not (tensor.inline or tensor.strides or tensor.dtype.head_bytes)
    if not in_order or tensor.values <= BLOCK_VALUES:
        for values in value_blocks(model, tensor):
            yield cast_values(values.reshape(-1), dtype)
        return
    assert isinstance(source, FileSource)
    step = BLOCK_VALUES // tensor.dtype.block * tensor.dtype.block_bytes
    jobs = (partial(_read_and_cast, source, tensor, start, step, dtype) for start in range(0, tensor.size_bytes, step))
    yield from in_turn(jobs, [Room() for _ in range(_ROOMS)])


def _read_and_cast(source: FileSource, tensor: StoredTensor, start: int, step: int, dtype: Dtype, room: Room) -> Cast:
    from entrenar_core.formats.decoding import decode

    raw = room.raw[: min(step, tensor.size_bytes - start)]
    source.read_into(tensor.offset + start, raw.data)
    left = tensor.values - start // tensor.dtype.block_bytes * tensor.dtype.block
    return cast_values(decode(raw, tensor.dtype, room=room.singles)[:left], dtype, room)
