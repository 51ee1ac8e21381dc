"""A model on this machine out to a format that other programs load: what `entrenar-distill export` does."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.conversion.beside import copy_beside
from entrenar_core.conversion.converting import Conversion, Quantizing, convert
from entrenar_core.conversion.files import require_free
from entrenar_core.conversion.soundness import require_finite_weights
from entrenar_core.errors import DataError, OutputError, UsageError
from entrenar_core.exporting.result import ExportReport
from entrenar_core.exporting.settings import INT8, ExportSettings, require_possible
from entrenar_core.exporting.source import open_source, require_ready, told_in_file
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.plain_text import plain_text
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from entrenar_core.formats.gguf_values import Value
    from entrenar_core.importance import ImportanceMatrix
    from entrenar_core.verification import Verification

_COMPARED = "to compare on"
ALONE = "config.json and tokenizer are not in the file: programs need them too"
"""What is to be said of an ONNX graph without a folder."""
Watch = Callable[[str, str, int, int], None]
"""Is told what is done, in which unit, how much of it is done, and of how much."""


def _unwatched(part: str, unit: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One export on its way."""

    artifact: ModelArtifact
    output: Path
    settings: ExportSettings
    watch: Watch


def export(artifact: ModelArtifact, output: Path, settings: ExportSettings, watch: Watch = _unwatched) -> ExportReport:
    """Writes a model in a format; to a folder, or to a file where the output ends as one of the format does.

    Raises:
        UsageError: settings contradict each other, or the run in the folder has not ended.
        ModelError: the format cannot hold the model, or a program would compute something else with it.
        OutputError: the output is there already, or cannot be written.
    """
    require_possible(settings)
    require_ready(artifact.path)
    return write_export(artifact, output, settings, watch)


def write_export(
    artifact: ModelArtifact, output: Path, settings: ExportSettings, watch: Watch = _unwatched
) -> ExportReport:
    """As `export`, of a model that is ready, with settings that are possible together."""
    if artifact.format is WeightFormat.ONNX:
        raise UsageError(
            f"{artifact.reference} is an ONNX graph, whose weights have lost their places in a model",
            "export the model that it was made of",
        )
    _require_ready_to_write(output, settings)
    job = _Job(artifact, output, settings, watch)
    report = _onnx(job) if settings.format is WeightFormat.ONNX else _stored(job)
    return _described(job, report) if settings.include_metadata and output.is_dir() else report


def _require_ready_to_write(output: Path, settings: ExportSettings) -> None:
    """What would only be met after long work: an output that is there, a text or a program that is not."""
    if settings.format is not WeightFormat.ONNX:  # which looks itself, also for what lies beside a graph
        require_free(output, folder=not output.name.endswith(FORMATS[settings.format].suffixes), force=settings.force)
    if settings.save_imatrix is not None:
        _require_free_imatrix(settings.save_imatrix, force=settings.force)
        if os.path.realpath(settings.save_imatrix) == os.path.realpath(output):
            raise UsageError(f"{output} cannot be both the model and its importances", "name two files")
    if settings.verify:
        from entrenar_core.verification.server import require_llama_cpp

        require_llama_cpp()
    if settings.calibration is not None:
        plain_text(settings.calibration, "to calibrate on")
    if settings.passage is not None and not plain_text(settings.passage, _COMPARED).strip():
        raise DataError(f"{settings.passage} holds no text to compare on", "name a file of text")


def _require_free_imatrix(file: Path, *, force: bool) -> None:
    try:
        require_free(file, folder=False, force=force)
    except OutputError as error:
        raise OutputError(str(error), "choose another --save-imatrix, or replace it with --force") from error


def _stored(job: _Job) -> ExportReport:
    with open_source(job.artifact, allow_pickle=job.settings.allow_pickle) as model:
        if job.settings.format is not WeightFormat.GGUF:  # of which it is required anyway
            require_finite_weights(model)
        importance, named = _importance(job, model)
        check = _Check(job, model) if job.settings.verify else None
        done = _converted(job, model, importance, check)
        found, notes = (check.found, check.notes) if check is not None else (None, ())
        return _report(job, model, done, notes, importance=named, verification=found)


def _described(job: _Job, report: ExportReport) -> ExportReport:
    """Puts a card into the folder that was written."""
    from entrenar_core.exporting.card_files import CARD
    from entrenar_core.exporting.card_reports import card_of_export
    from entrenar_core.training.files import write_text

    write_text(job.output / CARD, card_of_export(report, job.artifact))
    return replace(report, files=(*report.files, CARD))


def _converted(
    job: _Job, model: StoredModel, importance: "ImportanceMatrix | None", check: Callable[[Path], None] | None
) -> Conversion:
    settings, written = job.settings, 0

    def told(more: int, total: int) -> None:
        nonlocal written
        written += more
        job.watch("writes", "bytes", written, total)

    return convert(
        model,
        settings.format,
        job.output,
        dtype=settings.dtype,
        quantizing=None if settings.mix is None else Quantizing(settings.mix, importance),
        shard_bytes=settings.shard_bytes,
        card=_card(job),
        include_metadata=settings.include_metadata,
        check=check,
        force=settings.force,
        progress=told,
    )


def _card(job: _Job) -> "Mapping[str, Value] | None":
    artifact = job.artifact
    if not job.settings.include_metadata:
        return None
    return told_in_file(job.settings.format, artifact.format, artifact.path, artifact.reference)


def _importance(job: _Job, model: StoredModel) -> "tuple[ImportanceMatrix | None, str | None]":
    """How much the inputs of each matrix count, and where that is from."""
    settings = job.settings
    if settings.imatrix is not None:
        from entrenar_core.importance import read_importance

        return read_importance(settings.imatrix), str(settings.imatrix)
    if settings.calibration is None:
        return None, None
    from entrenar_core.conversion.gguf_writing import names_in_gguf
    from entrenar_core.importance import importance_for, write_importance

    found = importance_for(
        job.artifact,
        settings.calibration,
        names_in_gguf(model),
        chunks=settings.calibration_chunks,
        progress=lambda done, total: job.watch("calibrates", "chunks", done, total),
    )
    if settings.save_imatrix is not None:
        write_importance(settings.save_imatrix, found, force=settings.force)
    chunks = "1 chunk" if found.chunk_count == 1 else f"{found.chunk_count:,} chunks"
    return found, f"{settings.calibration}, {chunks} of {found.chunk_size} tokens"


class _Check:
    """Runs a GGUF in llama.cpp beside its model, before it has its name. `found` is what came of it."""

    def __init__(self, job: _Job, model: StoredModel) -> None:
        from entrenar_core.conversion.gguf_writing import known_to_differ
        from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS

        differs = known_to_differ(model)
        self.job = job
        self.found: Verification | None = None
        self.texts = [text for text in TRIAL_TEXTS if not differs(text)]
        out = len(TRIAL_TEXTS) - len(self.texts)
        said = f"{out} of {len(TRIAL_TEXTS)} trial texts were not compared: such texts are cut otherwise, as noted"
        self.notes = (said,) if out else ()

    def __call__(self, gguf: Path) -> None:
        from entrenar_core.verification import verify

        passage, watch = self.job.settings.passage, self.job.watch
        self.found = verify(
            gguf,
            self.job.artifact,
            texts=self.texts,
            passage=None if passage is None else plain_text(passage, _COMPARED),
            progress=lambda what, part, total: watch(f"verifies {what}", what, part, total),
        )


def _onnx(job: _Job) -> ExportReport:
    from entrenar_core.exporting.onnx import export_onnx

    done = export_onnx(
        job.artifact,
        job.output,
        int8=job.settings.quantize is not None,
        include_metadata=job.settings.include_metadata,
        force=job.settings.force,
        progress=lambda step: job.watch(step, "", 0, 0),
    )
    beside = copy_beside(job.artifact.path, job.output) if job.output.is_dir() else ()
    alone = () if job.output.is_dir() else (ALONE,)
    return ExportReport(
        source=str(job.artifact.reference),
        source_format=job.artifact.format,
        output=job.output,
        format=WeightFormat.ONNX,
        files=(*done.files, *beside),
        size_bytes=done.size_bytes,
        quantization=INT8 if job.settings.quantize is not None else None,
        notes=(*done.notes, *alone),
        onnx=done,
    )


def _report(job: _Job, model: StoredModel, done: Conversion, notes: tuple[str, ...], **more: Any) -> ExportReport:
    return ExportReport(
        source=str(job.artifact.reference),
        source_format=model.format,
        output=done.output,
        format=done.format,
        files=done.files,
        size_bytes=done.size_bytes,
        tensors=done.tensors,
        quantization=done.quantization,
        types=done.types,
        bits_per_weight=done.bits_per_weight,
        relative_rms=done.relative_rms or None,
        largest_error=done.largest_error or None,
        notes=(*done.notes, *requantised(done), *notes),
        **more,
    )


def requantised(done: Conversion) -> tuple[str, ...]:
    """What was quantised before cannot be had back."""
    if not done.dequantised:
        return ()
    blocks = ", ".join(f"{number:,} of {name}" for name, number in done.dequantised.items())
    again = " and quantised again, which loses more than once" if done.quantization not in (None, "f32") else ""
    return (f"tensors were dequantised{again}: {blocks}",)
