"""`entrenar-inspect convert`: a model of any format that is read, written in one that is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.encoding import dtype_called
from entrenar_core.formats.places import LocalPlace
from entrenar_core.references import HubReference, parse_reference
from entrenar_inspect.opening import format_called, opened
from entrenar_inspect.reports.conversion import ConversionReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from entrenar_core.formats.gguf_values import Value
    from entrenar_core.stored_model import StoredModel


@dataclass(frozen=True, slots=True)
class _Source:
    """Which model is meant."""

    text: str
    revision: str | None
    format: str | None
    file: str | None
    allow_pickle: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """What is written, and where."""

    kind: WeightFormat
    output: Path
    dtype: str | None
    quantize: str | None
    shard_bytes: int | None
    include_metadata: bool
    force: bool


def convert(
    text: str,
    to: str,
    output: Path,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    shard_size: str | None = None,
    include_metadata: bool = True,
    force: bool = False,
    revision: str | None = None,
    format: str | None = None,  # noqa: A002 - as the flag is called
    file: str | None = None,
    allow_pickle: bool = False,
) -> ConversionReport:
    """Writes the model that `text` refers to; one on the Hub is fetched first.

    Raises:
        UsageError: the format, the dtype or the size cannot be meant.
        As `entrenar_core.conversion.convert` and `export_onnx`.
    """
    source = _Source(text, revision, format, file, allow_pickle)
    cast = None if dtype is None else dtype_called(dtype)
    target = _Target(format_called(to), output, cast, quantize, _size(shard_size), include_metadata, force)
    return _graph(source, target) if target.kind is WeightFormat.ONNX else _written(source, target)


def _size(text: str | None) -> int | None:
    from entrenar_core.units import parse_size

    found = None if text is None else parse_size(text)
    if found is not None and found < 1:
        raise UsageError(f"--shard-size {text}: a file holds something", "write it as 5GB")
    return found


def _written(source: _Source, target: _Target) -> ConversionReport:
    from entrenar_common.progress import Progress
    from entrenar_core.conversion import convert as write
    from entrenar_core.conversion.converting import Quantizing
    from entrenar_core.exporting.exporting import requantised
    from entrenar_core.exporting.source import require_ready
    from entrenar_core.quantization.mixes import mix_named

    quantizing = None if target.quantize is None else Quantizing(mix_named(target.quantize))
    with (
        opened(_here(source), format=source.format, file=source.file, allow_pickle=source.allow_pickle) as model,
        Progress() as display,
    ):
        if isinstance(model.place, LocalPlace):
            require_ready(model.place.folder)
        task = display.task("writes", unit="bytes")
        done = write(
            model,
            target.kind,
            target.output,
            dtype=target.dtype,
            quantizing=quantizing,
            shard_bytes=target.shard_bytes,
            card=_card(model, source, target),
            include_metadata=target.include_metadata,
            force=target.force,
            progress=lambda more, total: task.update(task.completed + more, total=total),
        )
        told = asdict(done) | {"notes": (*done.notes, *(requantised(done) if target.quantize else ()))}
        del told["errors"]  # of each tensor: for those who ask what they are beside an update
        return ConversionReport(source=source.text, source_format=model.format, **told)


def _card(model: "StoredModel", source: _Source, target: _Target) -> "Mapping[str, Value] | None":
    from entrenar_core.exporting.source import told_in_file

    if not target.include_metadata or not isinstance(model.place, LocalPlace):
        return None
    reference = parse_reference(source.text, revision=source.revision)
    return told_in_file(target.kind, model.format, model.place.folder, reference)


def _graph(source: _Source, target: _Target) -> ConversionReport:
    """The model as an ONNX graph, which is made of its code and not of its files."""
    from entrenar_core.exporting.settings import ExportSettings, require_possible

    if target.shard_bytes is not None:
        raise UsageError("an ONNX graph is one file", "leave out --shard-size")
    require_possible(ExportSettings(target.kind, quantize=target.quantize, dtype=target.dtype))
    artifact = _fetched(source)
    from entrenar_core.conversion.beside import copy_beside
    from entrenar_core.exporting.exporting import ALONE
    from entrenar_core.exporting.onnx import export_onnx
    from entrenar_core.exporting.source import require_ready

    require_ready(artifact.path)
    done = export_onnx(
        artifact,
        target.output,
        int8=target.quantize is not None,
        include_metadata=target.include_metadata,
        force=target.force,
    )
    within = target.output.is_dir()
    beside = copy_beside(artifact.path, target.output) if within else ()
    return ConversionReport(
        source=source.text,
        source_format=artifact.format,
        output=target.output,
        format=target.kind,
        files=(*done.files, *beside),
        size_bytes=done.size_bytes,
        tensors=None,
        copied=0,
        cast=0,
        dequantised={},
        relative_rms=None,
        largest_error=None,
        notes=(*done.notes, *(() if within else (ALONE,))),
        quantization=target.quantize,
        types={},
        bits_per_weight=None,
        largest_difference=done.largest_difference,
    )


def _here(source: _Source) -> str:
    """Where the model lies on this machine; its bytes are needed, so what is on the Hub is fetched."""
    if not isinstance(parse_reference(source.text, revision=source.revision), HubReference):
        return source.text
    return str(_fetched(source).path)


def _fetched(source: _Source) -> ModelArtifact:
    from entrenar_common.progress import Progress
    from entrenar_core.hub import fetch_model
    from entrenar_core.hub.progress import Transfer

    reference = parse_reference(source.text, revision=source.revision)
    with Progress() as progress:
        task = progress.task(f"fetches {reference}", unit="bytes")

        def told(transfer: Transfer) -> None:
            task.update(transfer.done_bytes, total=transfer.total_bytes, note=transfer.name)

        return fetch_model(
            reference,
            format=None if source.format is None else format_called(source.format),
            files=[source.file] if source.file else None,
            allow_pickle=source.allow_pickle,
            progress=told,
        )
