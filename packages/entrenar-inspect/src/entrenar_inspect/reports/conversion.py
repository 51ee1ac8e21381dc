"""What `convert` returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion wrote. `dequantised` counts tensors by the dtype of blocks that they had, `cast` those whose
    dtype changed otherwise, `copied` those whose bytes did not. `relative_rms` is the root mean square of what casting
    and rounding changed over that of the values, and None where nothing was cast; of what was quantised, it and
    `largest_error` are estimates from some of the rows of large tensors. `quantization` is the mix of types of a
    GGUF or APR file, `types` counts tensors by dtype. Of an ONNX graph, whose tensors are those of its operators, there
    is `largest_difference` instead, between onnxruntime's numbers and torch's.
    """

    source: str
    source_format: str
    output: Path
    format: str
    files: tuple[str, ...]
    size_bytes: int
    tensors: int | None
    copied: int
    cast: int
    dequantised: Mapping[str, int]
    relative_rms: float | None
    largest_error: float | None
    notes: tuple[str, ...]
    quantization: str | None
    types: Mapping[str, int]
    bits_per_weight: float | None
    largest_difference: float | None = None
