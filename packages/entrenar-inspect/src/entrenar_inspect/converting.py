"""`entrenar-inspect convert`: a model of any format that is read, written in one that is."""

from dataclasses import asdict
from pathlib import Path

from entrenar_core.errors import UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.encoding import CASTS
from entrenar_core.references import HubReference, parse_reference
from entrenar_inspect.opening import format_called, opened
from entrenar_inspect.reports.conversion import ConversionReport

# What people write for a dtype, beside the names in headers.
DTYPES = {
    **{name.lower(): name for name in CASTS},
    "fp64": "F64",
    "fp32": "F32",
    "fp16": "F16",
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
}


def convert(
    text: str,
    to: str,
    output: Path,
    *,
    dtype: str | None = None,
    shard_size: str | None = None,
    force: bool = False,
    revision: str | None = None,
    format: str | None = None,  # noqa: A002 - as the flag is called
    file: str | None = None,
    allow_pickle: bool = False,
) -> ConversionReport:
    """Writes the model that `text` refers to; one on the Hub is fetched first.

    Raises:
        UsageError: the format, the dtype or the size cannot be meant.
        As `entrenar_core.conversion.convert`.
    """
    from entrenar_common.progress import Progress
    from entrenar_core.conversion import convert as write
    from entrenar_core.units import parse_size

    kind = format_called(to)
    cast = None if dtype is None else dtype_called(dtype)
    shard_bytes = None if shard_size is None else parse_size(shard_size)
    if shard_bytes is not None and shard_bytes < 1:
        raise UsageError(f"--shard-size {shard_size}: a file holds something", "write it as 5GB")
    read_as = None if format is None else format_called(format)
    place = _here(text, revision, read_as, file, allow_pickle)
    with opened(place, format=format, file=file, allow_pickle=allow_pickle) as model:
        with Progress() as display:
            task = display.task("writes", unit="bytes")

            def told(more: int, total: int) -> None:
                task.update(task.completed + more, total=total)

            done = write(model, kind, output, dtype=cast, shard_bytes=shard_bytes, force=force, progress=told)
        return ConversionReport(source=text, source_format=model.format, **asdict(done))


def dtype_called(name: str) -> str:
    """A dtype by any of its customary names.

    Raises:
        UsageError: weights are not cast to it.
    """
    try:
        return DTYPES[name.lower()]
    except KeyError as error:
        raise UsageError(f"weights are not cast to {name}", "the dtypes are bf16, fp16, fp32 and fp64") from error


def _here(
    text: str,
    revision: str | None,
    kind: WeightFormat | None,
    file: str | None,
    allow_pickle: bool,
) -> str:
    """Where the model lies on this machine; its bytes are needed, so what is on the Hub is fetched."""
    reference = parse_reference(text, revision=revision)
    if not isinstance(reference, HubReference):
        return text
    from entrenar_common.progress import Progress
    from entrenar_core.hub import fetch_model
    from entrenar_core.hub.progress import Transfer

    with Progress() as progress:
        task = progress.task(f"fetches {reference}", unit="bytes")

        def told(transfer: Transfer) -> None:
            task.update(transfer.done_bytes, total=transfer.total_bytes, note=transfer.name)

        artifact = fetch_model(
            reference,
            format=kind,
            files=[file] if file else None,
            allow_pickle=allow_pickle,
            progress=told,
        )
    return str(artifact.path)
