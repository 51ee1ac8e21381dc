"""A stored model written in another format: what is copied, what is cast, and what had to be dequantised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from entrenar_core.conversion.beside import metadata_of_file, require_beside, write_beside
from entrenar_core.conversion.content import telling
from entrenar_core.conversion.files import ADAPTER, cut, replacing, write_file, write_weights
from entrenar_core.conversion.planning import Plan
from entrenar_core.errors import OutputError, UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.encoding import CASTS
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

SHARDED = (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `dequantised` counts tensors by the quantised dtype that they had; `cast` those that changed
    their dtype otherwise, and `relative_rms` is how far that moved them, of all their values together.
    """

    output: Path
    format: WeightFormat
    files: tuple[str, ...]
    size_bytes: int
    tensors: int
    copied: int
    cast: int
    dequantised: Mapping[str, int]
    relative_rms: float | None
    largest_error: float | None
    notes: tuple[str, ...]


def convert(
    model: StoredModel,
    kind: WeightFormat,
    output: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a model as `kind` to a file, if `output` ends as one of that format does, else to a folder.

    Takes memory for a block of a tensor, or for a whole one where its values are put in another order.

    Args:
        dtype: one of `CASTS`, for all weights that are floats or quantised; as they are, if not given.
        shard_bytes: how large a file of a folder may be.
        progress: is told how many bytes of tensors more are written, and how many there are in all.

    Raises:
        UsageError: the format or an adapter has no shards, the format is not written, or the dtype is none that
            weights are cast to.
        ModelError: a tensor cannot be stored so, or is too large for the dtype; or a file beside the weights is too
            large for its kind.
        OutputError: the output is there already, or cannot be written.
    """
    _require_possible(kind, output, dtype, shard_bytes)
    _require_apart(model, output)
    adapter = model.adapter_config is not None and model.config is None
    if adapter and shard_bytes is not None:
        raise UsageError(f"{model.reference} is an adapter, of which peft loads no shards", "leave out --shard-size")
    plan = Plan(model, kind, dtype)
    tensors = plan.outgoing if progress is None else _telling(plan.outgoing, progress)
    single = output.name.endswith(FORMATS[kind].suffixes)
    metadata = metadata_of_file(plan, alone=single)  # what refuses a model is met before anything is written
    if not single:
        require_beside(plan)
    with replacing(output, folder=not single, force=force) as place:
        if single:
            write_file(place, kind, tensors, metadata)
            files: tuple[str, ...] = (output.name,)
        else:
            written = write_weights(place, kind, cut(tensors, shard_bytes), metadata, ADAPTER if adapter else None)
            files = (*written, *write_beside(plan, place))
        plan.require_kept()
        size = sum((place if single else place / name).stat().st_size for name in files)
    return _report(plan, output, files, size)


def _report(plan: Plan, output: Path, files: tuple[str, ...], size_bytes: int) -> Conversion:
    rounding, rounded = plan.rounding, plan.rounding.values > 0
    return Conversion(
        output,
        plan.kind,
        files,
        size_bytes,
        len(plan.outgoing),
        plan.copied,
        plan.cast,
        dict(plan.dequantised),
        rounding.relative_rms if rounded else None,
        rounding.largest_error if rounded else None,
        tuple(dict.fromkeys((*plan.notes, *(fault.message for fault in plan.model.faults)))),
    )


def _telling(tensors: Sequence[Outgoing], progress: Progress) -> list[Outgoing]:
    total = sum(tensor.size_bytes for tensor in tensors)
    return [telling(tensor, partial(_told, progress, total)) for tensor in tensors]


def _told(progress: Progress, total: int, done: int) -> None:
    progress(done, total)


def _require_possible(kind: WeightFormat, output: Path, dtype: str | None, shard_bytes: int | None) -> None:
    if FORMATS[kind].writer is None:
        written = [name for name, row in FORMATS.items() if row.writer is not None]
        raise UsageError(f"{kind} is not written", f"the formats are {', '.join(written)}")
    other = next((found for found, row in FORMATS.items() if output.name.endswith(row.suffixes)), kind)
    if other is not kind and not output.name.endswith(FORMATS[kind].suffixes):
        raise UsageError(f"{output} ends as a file of {other} does, and {kind} is to be written", "choose another name")
    if dtype is not None and dtype not in CASTS:
        raise UsageError(f"weights are not cast to {dtype}", f"the dtypes are {', '.join(CASTS)}")
    if shard_bytes is not None and (kind not in SHARDED or output.name.endswith(FORMATS[kind].suffixes)):
        raise UsageError(f"{output} is a single file", "--shard-size is for folders of safetensors or PyTorch files")


def _require_apart(model: StoredModel, output: Path) -> None:
    """What is read is not replaced."""
    target = output.resolve()
    for source in model.sources.values():
        path = source.path.resolve() if isinstance(source, FileSource) else None
        if path is not None and (path == target or path.is_relative_to(target)):
            raise OutputError(f"{output} is where the model is read from", "choose another --output")
