"""ggml's own routine for blocks of quantised weights, out of the shared library that the xllamacpp wheel brings.

The wheel's Python interface does not quantise; its library exports the C functions of ggml, which ctypes calls with the
interpreter's lock released, so that threads compute at once. The package itself is not imported. ggml ends the whole
process on arguments that do not fit, so nothing reaches it that was not held against its types here.

Source: ggml.h and ggml-quants.h of https://github.com/ggml-org/llama.cpp.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.formats.dtypes import DTYPES, GGML_BLOCKS, Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE = "xllamacpp"
MISSING = (
    "needs ggml's own routine, which was not found",
    "install it with `pip install 'entrenar[xllamacpp]'`, or take f16, bf16 or q8_0, which do without",
)
"""What is wrong with a type where the library is missing, and what to do."""

_CODES = {name: code for code, (name, _, _) in GGML_BLOCKS.items()}
# What ggml calls the routine that takes blocks of each type apart again.
_DECODERS = {
    **{name: f"dequantize_row_{name.lower()}" for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS")},
    **{f"Q{bits}_K": f"dequantize_row_q{bits}_K" for bits in (2, 3, 4, 5, 6)},
}
QUANTISES = tuple(DTYPES[name] for name in _DECODERS)
"""The types that `Ggml` writes: those of a type mix that needs no importance matrix to be of use."""


@dataclass(frozen=True, slots=True)
class Ggml:
    """The functions of a library; both may be called from several threads."""

    _quantise: Callable[..., int]
    _decoders: Mapping[str, Callable[..., None]]

    def encode(
        self,
        values: "NDArray[np.float32]",
        dtype: Dtype,
        out: "NDArray[np.uint8]",
        importance: "NDArray[np.float32] | None" = None,
    ) -> None:
        """Quantises whole rows into `out`.

        Args:
            values: of shape (rows, row), one row after the other in memory, all finite.
            dtype: one of `QUANTISES`, whose blocks divide a row.
            out: room for just the bytes of these blocks.
            importance: of shape (row,), finite and none below zero: how much the error of each column weighs.
        """
        rows, row = values.shape
        _require(values.dtype == "<f4" and values.flags.c_contiguous, "values")
        _require(dtype in QUANTISES and row % dtype.block == 0, "type")
        _require(out.dtype == "u1" and out.flags.c_contiguous and out.flags.writeable, "out")
        _require(out.size == rows * row // dtype.block * dtype.block_bytes, "size of out")
        if importance is not None:
            _require(importance.dtype == "<f4" and importance.flags.c_contiguous, "importance")
            _require(importance.shape == (row,), "shape of importance")
        if values.size:
            weights = None if importance is None else importance.ctypes.data
            place = values.ctypes.data, out.ctypes.data
            written = self._quantise(_CODES[dtype.name], *place, 0, rows, row, weights)
            assert written == out.size, f"ggml wrote {written} bytes of {dtype}, not {out.size}"

    def decode(self, raw: "NDArray[np.uint8]", dtype: Dtype, out: "NDArray[np.float32]") -> None:
        """The numbers that whole blocks of one of `QUANTISES` stand for, into `out`, which has room for just these."""
        _require(dtype in QUANTISES and raw.dtype == "u1" and raw.flags.c_contiguous, "blocks")
        _require(raw.size % dtype.block_bytes == 0, "size of blocks")
        _require(out.dtype == "<f4" and out.flags.c_contiguous and out.flags.writeable, "out")
        _require(out.size == raw.size // dtype.block_bytes * dtype.block, "size of out")
        if out.size:
            self._decoders[dtype.name](raw.ctypes.data, out.ctypes.data, out.size)


def _require(fits: bool, what: str) -> None:
    """Also where Python runs without assertions: the process would end."""
    if not fits:
        raise ValueError(f"ggml cannot be called with this: {what}")


@cache
def ggml() -> Ggml | None:
    """The library, loaded once; None where the package is not installed, or its library has not these functions."""
    path = _library()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        quantise = library.ggml_quantize_chunk
        decoders = {name: library[symbol] for name, symbol in _DECODERS.items()}
    except (OSError, AttributeError):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    for decoder in decoders.values():
        decoder.restype, decoder.argtypes = None, [pointer, pointer, number]
    return Ggml(quantise, decoders)


def _library() -> Path | None:
    """Where the shared library of the package is."""
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    files = (folder / f"{PACKAGE}{suffix}" for folder in folders for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)
