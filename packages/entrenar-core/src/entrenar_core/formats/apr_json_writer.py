"""Writes the readable form of APR, a tensor a line and a block of values at a time: memory does not grow with a model.

What is written is described in `apr_json`. A value takes up to some 20 characters: it is for small models, and for
looking at.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from entrenar_core.errors import ModelError
from entrenar_core.formats.apr import MAX_DIMENSIONS
from entrenar_core.formats.apr_json import VERSION
from entrenar_core.formats.apr_json_values import DTYPE_NAMES, values_of
from entrenar_core.formats.apr_metadata import compact, completed
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.writing import Outgoing

WRITES = DTYPE_NAMES
_BLOCK_BYTES = 1 << 18
_DIGITS = 17  # tell a double from every other; for the shortest text that does, several would be tried
_FEW_VALUES = 1 << 14


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, Any]) -> None:
    """Writes the tensors in their order.

    What every APR file says of itself is added to the metadata where it is missing.

    Raises:
        OSError: the file cannot be written.
        ModelError: a tensor or the metadata cannot be held, or a source ends too early.
    """
    _require(tensors)
    found = completed(
        metadata,
        total_size=sum(tensor.size_bytes for tensor in tensors),
        param_count=sum(math.prod(tensor.shape) for tensor in tensors),
    )
    start = f'{{"version":"{VERSION}",\n"metadata":{compact(found)},\n"tensors":{{'
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(start)
        for place, tensor in enumerate(tensors):
            file.write(",\n" if place else "\n")
            _put(file, tensor)
        file.write("\n}}\n")


def _require(tensors: Sequence[Outgoing]) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ModelError(f"two tensors are called {tensor.name}", "a name must be there once")
        names.add(tensor.name)
        if any("\ud800" <= sign <= "\udfff" for sign in tensor.name):
            raise ModelError(f"tensor {tensor.name!a} has a name that is no Unicode text", "rename it")
        if tensor.dtype.name not in WRITES:
            raise ModelError(
                f"tensor {tensor.name} is stored as {tensor.dtype}, which APR in JSON lacks",
                f"it has {', '.join(WRITES)}",
            )
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise ModelError(
                f"tensor {tensor.name} has {len(tensor.shape)} dimensions, and APR holds {MAX_DIMENSIONS}", "reshape it"
            )


def _put(file: TextIO, tensor: Outgoing) -> None:
    fields = {"shape": list(tensor.shape), "dtype": tensor.dtype.name.lower()}
    head = json.dumps(fields, separators=(",", ":"))[1:-1]
    file.write(f'{json.dumps(tensor.name)}:{{{head},"data":[')
    written = 0
    for block in _blocks(tensor):
        try:
            text = _text(block, tensor.dtype)
        except ValueError as error:
            raise ModelError(f"tensor {tensor.name} has {error}", "its file is broken: fetch it again") from error
        file.write("," if written else "")
        file.write(text)
        written += len(block)
    if written != tensor.size_bytes:
        raise ModelError(
            f"tensor {tensor.name} has {written:,} bytes, where {tensor.size_bytes:,} are expected",
            "its source was changed while it was read: start again",
        )
    file.write("]}")


def _text(block: bytes, dtype: Dtype) -> str:
    """Whole values, with commas between."""
    if dtype.name == "F32":
        return _singles(block, dtype)
    if dtype.name in ("F16", "BF16") and len(block) > 2 * _FEW_VALUES:
        import numpy as np

        return ",".join(map(_codes(dtype).__getitem__, np.frombuffer(block, "<u2").tolist()))
    return _one_by_one(block, dtype)


def _one_by_one(block: bytes, dtype: Dtype) -> str:
    return json.dumps(values_of(block, dtype), allow_nan=False, separators=(",", ":"))[1:-1]


@functools.cache
def _codes(dtype: Dtype) -> Sequence[str]:
    """How each value of 16 bits is written."""
    import numpy as np

    return _one_by_one(np.arange(1 << 16, dtype="<u2").tobytes(), dtype).split(",")


def _singles(block: bytes, dtype: Dtype) -> str:
    import numpy as np

    values = np.frombuffer(block, "<f4")
    text = ",".join([f"%.{_DIGITS}g"] * len(values)) % tuple(values.tolist())
    with np.errstate(invalid="ignore"):
        odd = np.flatnonzero((values == np.rint(values)) | np.isnan(values))
    if len(odd):
        texts, size = text.split(","), dtype.block_bytes
        for place in odd.tolist():
            texts[place] = _odd(texts[place], block[place * size : (place + 1) * size], dtype)
        text = ",".join(texts)
    return text


def _odd(text: str, value: bytes, dtype: Dtype) -> str:
    """Of a whole number, which JSON takes for no float, and of what it has no number for."""
    if text[-1].isdigit():
        return text if "e" in text else f"{text}.0"
    return _one_by_one(value, dtype)


def _blocks(tensor: Outgoing) -> Iterator[bytes]:
    """The bytes of a tensor in blocks of whole values, wherever its chunks were cut."""
    held = b""
    for chunk in tensor.chunks():
        view = memoryview(chunk)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        for start in range(0, len(view), _BLOCK_BYTES):
            held += view[start : start + _BLOCK_BYTES]
            whole = len(held) - len(held) % tensor.dtype.block_bytes
            if whole:
                yield held[:whole]
            held = held[whole:]
    if held:
        raise ModelError(f"tensor {tensor.name} ends in the middle of a value", "start again")
