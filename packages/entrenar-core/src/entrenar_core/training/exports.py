"""The student in the further formats of `output.formats`, written beside its weights when a run ends."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from entrenar_core.artifact import inspect_folder
from entrenar_core.config.schema import OutputConfig
from entrenar_core.errors import EntrenarError
from entrenar_core.exporting.exporting import write_export
from entrenar_core.exporting.result import ExportReport
from entrenar_core.exporting.settings import ExportSettings
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.reports import ExportFacts

OnPart = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exports:
    """What came of further formats: reports of those that were written, and by its name why another was not."""

    reports: tuple[ExportReport, ...]
    failures: Mapping[str, str]


def export_student(folder: Path, output: OutputConfig, on_part: OnPart, *, beside: Path | None = None) -> Exports:
    """Writes the student of a result folder in every further format. One that fails does not take from the others, nor
    from the run, whose weights are there: it can be written later. Files go to the folder `beside`, if given.
    """
    artifact = inspect_folder(folder, format=WeightFormat.SAFETENSORS)
    reports: list[ExportReport] = []
    failures: dict[str, str] = {}
    for kind, settings in _wanted(output):
        on_part(FORMATS[kind].title)
        file = (beside or folder) / file_name(kind, settings.quantize)
        try:
            reports.append(write_export(artifact, file, settings))
        except EntrenarError as error:
            failures[kind.value] = f"{error.message}; {error.hint}; `{_again(folder, file, settings)}` then writes it"
    return Exports(tuple(reports), failures)


def _again(folder: Path, file: Path, settings: ExportSettings) -> str:
    """The command that writes it."""
    flags = ["--quantize", settings.quantize] if settings.quantize else []
    verify = ["--verify"] if settings.verify else []
    return shlex.join(["entrenar-distill", "export", "--input", str(folder), "--output", str(file), *flags, *verify])


def _wanted(output: OutputConfig) -> Iterator[tuple[WeightFormat, ExportSettings]]:
    for name in output.formats:
        kind = WeightFormat(name)
        if kind is WeightFormat.SAFETENSORS:
            continue
        of_gguf = kind is WeightFormat.GGUF
        settings = ExportSettings(
            kind,
            quantize=output.quantize if of_gguf else None,
            verify=output.verify and of_gguf,
            force=True,
        )
        yield kind, settings


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
        largest_difference=None if report.onnx is None else report.onnx.largest_difference,
        passed=None if checked is None else checked.passed,
        notes=report.notes,
    )


def warnings_of(report: ExportReport) -> tuple[str, ...]:
    """Where a file does not answer as the student does."""
    wrong = report.verification.reasons if report.verification is not None else ()
    return tuple(f"{report.files[0]}: {text}" for text in wrong)
