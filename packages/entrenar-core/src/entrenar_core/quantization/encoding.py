"""Rows of weights to the bytes of a dtype, blocks of ggml's among them, exactly as llama.cpp writes them.

ggml's own routine is used where it is installed (`ggml`). Without it, the numpy quantisers of the `gguf` package give
the same bytes for the five oldest types.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.quantization.ggml import MISSING, QUANTISES, ggml
from entrenar_core.quantization.mixes import Mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOATS = ("F32", "F16", "BF16")
"""Types of one value each, which are written without being quantised."""
EVERYWHERE = (*FLOATS, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""What can be written where ggml is not installed."""

_UNWEIGHED = (*FLOATS, "Q8_0")  # ggml's routine for Q8_0 takes importances, and leaves them alone
_SAFE = 32_768.0  # scales are halves: up to here none overflows; beyond, what was written is looked at
_MOST_IMPORTANT = 1e24  # of squared activations: sums of larger ones times weights overflow in ggml
_TAKE_ANOTHER = "take a type that holds it, such as bf16 or f32"


def writable_here(chosen: Mapping[str, Dtype], mix: Mix, *, importance: bool = False) -> dict[str, Dtype]:
    """The types of a model's tensors that can be written with what is installed: all of them, if ggml is.

    Without it, the head that the mixes q4_0, q4_1, q5_0 and q5_1 keep in Q6_K gets Q8_0, which llama.cpp itself writes
    where blocks of Q6_K do not divide the rows.

    Raises:
        UsageError: the mix needs ggml, which is not installed.
    """
    if ggml() is not None:
        return dict(chosen)
    oldest = mix.base.name in EVERYWHERE
    found = {name: DTYPES["Q8_0"] if oldest and dtype.name == "Q6_K" else dtype for name, dtype in chosen.items()}
    needy = next((one for one in found.values() if _needs_ggml(one, importance)), None)
    if needy is not None:
        what = f"{needy} with an importance matrix" if needy.name in EVERYWHERE else needy.name
        raise UsageError(f"{mix.name} writes {what}, which {MISSING[0]}", MISSING[1])
    return found


def require_writable(dtype: Dtype, *, importance: bool = False) -> None:
    """Refuses a type that cannot be written here.

    Raises:
        UsageError: it is none that weights are quantised to, or needs ggml, which is not installed.
    """
    if dtype.name not in FLOATS and dtype not in QUANTISES:
        known = ", ".join((*FLOATS, *(one.name for one in QUANTISES)))
        raise UsageError(f"weights cannot be quantised to {dtype}", f"take one of {known}")
    if _needs_ggml(dtype, importance) and ggml() is None:
        what = f"{dtype} with an importance matrix" if dtype.name in EVERYWHERE else dtype.name
        raise UsageError(f"writing {what} {MISSING[0]}", MISSING[1])


def encode_blocks(
    values: "NDArray[np.float32]",
    dtype: Dtype,
    importance: "NDArray[np.float32] | None" = None,
    *,
    name: str = "a tensor",
    room: "NDArray[np.uint8] | None" = None,
) -> "NDArray[np.uint8]":
    """The bytes of whole rows, in one dimension. Several threads may quantise at once.

    Args:
        values: of shape (rows, row).
        dtype: F32, F16, BF16, or one of `QUANTISES`.
        importance: of shape (row,): how much the error of each column weighs, such as the mean square of its inputs.
            Nothing to the floats and to Q8_0.
        name: what errors call the tensor.
        room: is written over and returned in part, if there is enough of it.

    Raises:
        ModelError: a value is not finite, or larger than the type holds; blocks do not divide a row; the importances
            are of no use.
        UsageError: the type, or weighing by importance, needs ggml, which is not installed.
    """
    import numpy as np

    rows, row = values.shape
    if row % dtype.block:
        raise ModelError(
            f"the rows of {name} have {row:,} values, which blocks of {dtype} do not divide", _TAKE_ANOTHER
        )
    importance = None if importance is None or dtype.name in _UNWEIGHED else _weights(importance, row, name)
    require_writable(dtype, importance=importance is not None)
    values = np.ascontiguousarray(values, "<f4")
    largest = require_finite(values, name)
    size = rows * row // dtype.block * dtype.block_bytes
    out = np.empty(size, np.uint8) if room is None or room.size < size else room[:size]
    _encode(values, dtype, importance, out)
    if largest > _SAFE and not _holds(out, dtype, largest):
        raise ModelError(f"{name} has values as large as {largest:.4g}, which {dtype} does not hold", _TAKE_ANOTHER)
    return out


def decode_into(raw: "NDArray[np.uint8]", dtype: Dtype, room: "NDArray[np.float32]") -> "NDArray[np.floating]":
    """The numbers that whole blocks of any dtype stand for, in one dimension, as `decode` gives them.

    They lie in `room`, if there is enough of it and they are decoded there, which ggml's types are where it is
    installed: several times as fast.

    Raises:
        ModelError: the values of the dtype are not known.
    """
    from entrenar_core.formats.decoding import decode

    library = ggml() if dtype in QUANTISES else None
    size = raw.size // dtype.block_bytes * dtype.block
    if library is None or room.size < size:
        found: NDArray[np.floating] = decode(raw, dtype, room=room)
        return found
    library.decode(raw, dtype, room[:size])
    return room[:size]


def require_finite(values: "NDArray[np.float32]", name: str) -> float:
    """The largest size of a value.

    ggml quantises a block that has a NaN to zeros, and says nothing. The extremes of floats are found as fast as memory
    is read, and are NaN where any value is.

    Raises:
        ModelError: a value is NaN or infinite.
    """
    import numpy as np

    high, low = float(values.max(initial=0.0)), float(values.min(initial=0.0))
    if high < math.inf and low > -math.inf:
        return max(high, -low)
    value = values[~np.isfinite(values)][0]
    raise ModelError(
        f"{name} has values that are not finite, such as {value}",
        "`entrenar-inspect validate` says where they are: go back to a checkpoint without them",
    )


def _weights(importance: "NDArray[np.float32]", row: int, name: str) -> "NDArray[np.float32]":
    """As ggml takes them, and none that makes it write zeros or nonsense."""
    import numpy as np

    weights = np.ascontiguousarray(importance, "<f4")
    largest = float(weights.max(initial=0.0))
    if weights.shape != (row,):
        wrong = f"the shape {list(weights.shape)}, not [{row}],"
    elif not (weights >= 0).all() or not largest <= _MOST_IMPORTANT:
        wrong = "values that are not finite, below zero or beyond all measure"
    elif row and not largest:
        wrong = "nothing but zeros"
    else:
        return weights
    raise ModelError(
        f"the importance matrix has {wrong} for {name}", "compute it again from a text that fits the model"
    )


def _needs_ggml(dtype: Dtype, weighed: bool) -> bool:
    return dtype.name not in EVERYWHERE or (weighed and dtype.name not in _UNWEIGHED)


def _encode(
    values: "NDArray[np.float32]", dtype: Dtype, importance: "NDArray[np.float32] | None", out: "NDArray[np.uint8]"
) -> None:
    import numpy as np

    from entrenar_core.formats.encoding import encode

    library = ggml()
    if dtype.name in FLOATS:
        np.copyto(out, encode(values.reshape(-1), dtype))
    elif library is not None:
        library.encode(values, dtype, out, importance)
    elif values.size:
        _encode_by_numpy(values, dtype, out)


def _encode_by_numpy(values: "NDArray[np.float32]", dtype: Dtype, out: "NDArray[np.uint8]") -> None:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(all="ignore"):  # the inverse of a scale that is next to nothing
        np.copyto(out, quantize(values, GGMLQuantizationType[dtype.name]).reshape(-1))
    if dtype.name in ("Q4_1", "Q5_1"):  # the offset, a half, is the smallest value: of 0 and -0 the first, to ggml
        offsets = out.reshape(-1, dtype.block_bytes)[:, 2:4].view("<u2")[:, 0]
        zero = np.flatnonzero(offsets & 0x7FFF == 0)
        blocks = values.reshape(-1, dtype.block)[zero]
        offsets[zero] = np.signbit(blocks[np.arange(len(zero)), blocks.argmin(1)]) * np.uint16(0x8000)


def _holds(raw: "NDArray[np.uint8]", dtype: Dtype, largest: float) -> bool:
    """Whether the largest value is there again, at least in part: where sums overflow, ggml writes zeros."""
    import numpy as np

    from entrenar_core.formats.decoding import decode

    found = decode(raw, dtype)
    return bool(np.isfinite(found).all() and np.abs(found).max() > largest / 4)
