"""The student in the further formats of `output.formats`, written beside its weights when a run ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

from entrenar_core.artifact import inspect_folder
from entrenar_core.config.schema import OutputConfig
from entrenar_core.exporting.exporting import write_export
from entrenar_core.exporting.result import ExportReport
from entrenar_core.exporting.settings import ExportSettings
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.reports import ExportFacts

OnPart = Callable[[str], None]


def export_student(folder: Path, output: OutputConfig, on_part: OnPart) -> Iterator[ExportReport]:
    """Writes the student of a result folder in every further format.

    Raises:
        EntrenarError: a format cannot hold it, or it cannot be written.
    """
    artifact = inspect_folder(folder, format=WeightFormat.SAFETENSORS)
    for name in output.formats:
        kind = WeightFormat(name)
        if kind is WeightFormat.SAFETENSORS:
            continue
        on_part(FORMATS[kind].title)
        of_gguf = kind is WeightFormat.GGUF
        settings = ExportSettings(
            kind,
            quantize=output.quantize if of_gguf else None,
            verify=output.verify and of_gguf,
            force=True,
        )
        yield write_export(artifact, folder / file_name(kind, settings.quantize), settings)


def file_name(kind: WeightFormat, quantize: str | None) -> str:
    """What a file of the student is called: `model-q4_k_m.gguf`, `model.onnx`."""
    return f"model{f'-{quantize}' if quantize else ''}{FORMATS[kind].suffixes[0]}"


def facts_of(report: ExportReport) -> ExportFacts:
    """What the report of a run says of a file."""
    checked = report.verification
    predicted = checked.predictions.distances if checked is not None and checked.predictions is not None else None
    seen = predicted or (checked.classes if checked is not None else None)
    vectors = checked.vectors if checked is not None else None
    return ExportFacts(
        format=report.format,
        file=report.files[0],
        size_bytes=report.size_bytes,
        quantization=report.quantization,
        bits_per_weight=report.bits_per_weight,
        kl=None if seen is None else seen.kl_mean,
        agreement=None if seen is None else seen.agreement,
        cosine=None if vectors is None else vectors.cosine_min,
        notes=report.notes,
    )


def warnings_of(report: ExportReport) -> tuple[str, ...]:
    """Where a file does not answer as the student does."""
    wrong = report.verification.reasons if report.verification is not None else ()
    return tuple(f"{report.files[0]}: {text}" for text in wrong)
