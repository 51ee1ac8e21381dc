"""What is asked of an export, and what cannot be asked together. Without torch, so that it is told at once."""

from dataclasses import dataclass
from pathlib import Path

from entrenar_core.errors import UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.quantization.mixes import Mix, mix_named

EXPORTED = (
    WeightFormat.SAFETENSORS, WeightFormat.GGUF, WeightFormat.APR, WeightFormat.APR_JSON, WeightFormat.ONNX,
)  # fmt: skip
"""The formats of an export."""
INT8 = "int8"
"""What the weights of an ONNX graph are quantised to."""
_MIXED = (WeightFormat.GGUF, WeightFormat.APR)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a model is exported.

    `quantize` is a mix of types, for GGUF and APR, or `int8` for ONNX; `dtype` what weights are cast to instead.
    `imatrix` is a file with an importance matrix, `calibration` a text that one is computed from, which `save_imatrix`
    keeps; `calibration_chunks` is how many pieces of it are read at most. `verify` loads a GGUF in llama.cpp, and
    compares it on `passage`, a text, with the model.
    """

    format: WeightFormat
    quantize: str | None = None
    dtype: str | None = None
    shard_bytes: int | None = None
    imatrix: Path | None = None
    calibration: Path | None = None
    calibration_chunks: int | None = None
    save_imatrix: Path | None = None
    verify: bool = False
    passage: Path | None = None
    include_metadata: bool = True
    allow_pickle: bool = False
    force: bool = False

    @property
    def mix(self) -> Mix | None:
        """The mix of types, of formats that have one.

        Raises:
            UsageError: there is none of this name.
        """
        return mix_named(self.quantize) if self.quantize is not None and self.format in _MIXED else None


def require_possible(settings: ExportSettings) -> None:
    """Refuses what cannot be asked together.

    Raises:
        UsageError: a setting has no meaning for the format, or contradicts another.
    """
    _require_type(settings)
    title = FORMATS[settings.format].title
    for flag, value in _OF_GGUF.items():
        if getattr(settings, value) and settings.format is not WeightFormat.GGUF:
            checked = "; an ONNX file is always run beside the model" if flag == "--verify" else ""
            raise UsageError(f"{flag} is for GGUF, and {title} is to be written", f"leave it out{checked}")
    _require_importance(settings)
    if settings.passage is not None and not settings.verify:
        raise UsageError("--verify-text is what --verify compares on", "give --verify too")
    if settings.shard_bytes is not None and settings.shard_bytes < 1:
        raise UsageError("--shard-size 0: a file holds something", "write it as 5GB")


def _require_type(settings: ExportSettings) -> None:
    kind, wanted = settings.format, settings.quantize
    title = FORMATS[kind].title
    if kind is WeightFormat.ONNX:
        if wanted is not None and wanted.lower() != INT8:
            raise UsageError(f"{title} is not quantised to {wanted}", f"it can be to {INT8}")
        if settings.shard_bytes is not None:
            raise UsageError("an ONNX graph is not cut", "leave out --shard-size")
        if settings.dtype is not None:
            raise UsageError("an ONNX graph computes in 32 bits", "leave out --dtype, or take --quantize int8")
    elif wanted is not None and kind not in _MIXED:
        raise UsageError(f"{title} files are not quantised", "take --format gguf, or cast weights with --dtype")
    _ = settings.mix  # which refuses a name that is none


def _require_importance(settings: ExportSettings) -> None:
    if settings.imatrix is not None and settings.calibration is not None:
        raise UsageError("--imatrix and --calibration both give an importance matrix", "give one of the two")
    if settings.save_imatrix is not None and settings.calibration is None:
        raise UsageError("--save-imatrix keeps what --calibration computes", "give a text with --calibration")
    if settings.calibration_chunks is not None and settings.calibration is None:
        raise UsageError("--calibration-chunks is how much of --calibration is read", "give a text with --calibration")
    if settings.calibration_chunks is not None and settings.calibration_chunks < 1:
        raise UsageError("--calibration-chunks 0: something has to be read", "leave it out to read the whole text")
    if (settings.imatrix or settings.calibration) and (settings.mix is None or not settings.mix.quantised):
        raise UsageError("an importance matrix changes nothing where nothing is quantised", "give --quantize q4_k_m")


_OF_GGUF = {
    "--verify": "verify",
    "--imatrix": "imatrix",
    "--calibration": "calibration",
}
