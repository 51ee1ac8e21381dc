"""Models made of bytes that a test chooses: tensors of any dtype in one file, wherever and however they lie in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.references import PathReference
from entrenar_core.stored_model import StoredFile, StoredModel


@dataclass(frozen=True)
class Part:
    """A tensor of a file that is to be written: `gap` bytes lie before it; `inline` ones lie in the header."""

    dtype: str | Dtype
    shape: tuple[int, ...]
    raw: bytes
    gap: int = 0
    strides: tuple[int, ...] | None = None
    inline: bool = False


def model_of(path: Path, parts: Mapping[str, Part]) -> StoredModel:
    """Writes the tensors one after the other; gaps are filled with ones, which no dtype takes for a number."""
    written, tensors, inline = b"", [], {}
    for name, part in parts.items():
        written += b"\xff" * part.gap
        dtype = DTYPES[part.dtype] if isinstance(part.dtype, str) else part.dtype
        offset = 0 if part.inline else len(written)
        size = 0 if part.inline else len(part.raw)
        tensors.append(StoredTensor(name, dtype, part.shape, path.name, offset, size, part.strides, part.inline))
        if part.inline:
            inline[name] = part.raw
        else:
            written += part.raw
    path.write_bytes(written)
    header = Header(WeightFormat.SAFETENSORS, tuple(tensors), {}, 0, inline=inline)
    source = FileSource(path)
    return StoredModel(
        PathReference(str(path)),
        LocalPlace(path.parent),
        header.format,
        (StoredFile(path.name, source, header),),
        {path.name: source},
        {tensor.name: tensor for tensor in tensors},
        None,
        None,
    )


def floats(values: NDArray[np.generic] | Sequence[float], dtype: str = "F32") -> Part:
    """A tensor of these values, rounded to a dtype that numpy has, or to BF16 by cutting them off."""
    array = np.asarray(values)
    if dtype == "BF16":
        raw = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        raw = array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return Part(dtype, array.shape, raw)
