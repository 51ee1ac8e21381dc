"""What an export wrote: a plain value that a terminal shows and JSON carries. Without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entrenar_core.exporting.onnx import OnnxExport
    from entrenar_core.hub.pushing import Pushed
    from entrenar_core.verification import Verification


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A model in another format.

    `types` counts the tensors of each dtype, `bits_per_weight` is of all of them together, and `relative_rms` is the
    root mean square of what casting or quantising changed over that of the values, `largest_error` the largest of these
    changes; None where nothing did. Of what was quantised, both are estimates from some of the rows of large
    tensors.
    `importance` is what importances of inputs were taken from. `onnx` has what was measured of an ONNX file,
    `verification` of a GGUF in llama.cpp, and `pushed` where the files are on the Hub; each is None where that was not
    asked for.
    """

    source: str
    source_format: str
    output: Path
    format: str
    files: tuple[str, ...]
    size_bytes: int
    tensors: int | None = None
    quantization: str | None = None
    types: Mapping[str, int] = field(default_factory=dict)
    bits_per_weight: float | None = None
    relative_rms: float | None = None
    largest_error: float | None = None
    importance: str | None = None
    notes: tuple[str, ...] = ()
    onnx: "OnnxExport | None" = None
    verification: "Verification | None" = None
    pushed: "Pushed | None" = None

    @property
    def exit_status(self) -> int:
        """1 where the file is there, and is further from the model than its type explains."""
        return int(self.verification is not None and not self.verification.passed)
