"""A stored model written in another format: what is copied, what is cast, and what had to be dequantised."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.conversion.apr_blocks import APR_BASES
from entrenar_core.conversion.beside import metadata_of_file, require_beside, write_beside
from entrenar_core.conversion.content import telling
from entrenar_core.conversion.files import ADAPTER, cut, replacing, require_apart, write_file, write_weights
from entrenar_core.conversion.gguf_planning import GgufPlan
from entrenar_core.conversion.planning import Plan
from entrenar_core.errors import UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.encoding import CASTS
from entrenar_core.formats.writing import Outgoing
from entrenar_core.quantization.mixes import MIXES, Mix
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from entrenar_core.formats.gguf_values import Value
    from entrenar_core.importance import ImportanceMatrix

SHARDED = (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH)
_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # what a GGUF's weights are cast to
Progress = Callable[[int, int], None]
Check = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `dequantised` counts tensors by the quantised dtype that they had; `cast` those that changed
    their dtype otherwise, and `relative_rms` is how far that moved them, of all their values together, `largest_error`
    how far one of them: of what was quantised, both are estimates from some of the rows of large tensors.
    `quantization` is the mix of a GGUF, `types` counts its tensors by their dtype, and `errors` are the sums of the
    squares of what casting changed, by the names that tensors were read by.
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
    quantization: str | None
    types: Mapping[str, int]
    bits_per_weight: float
    errors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Quantizing:
    """To which mix of types a model is quantised, and how much the inputs of its matrices count."""

    mix: Mix
    importance: "ImportanceMatrix | None" = None


def convert(
    model: StoredModel,
    kind: WeightFormat,
    output: Path,
    *,
    dtype: str | None = None,
    quantizing: Quantizing | None = None,
    shard_bytes: int | None = None,
    card: "Mapping[str, Value] | None" = None,
    include_metadata: bool = True,
    check: Check | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a model as `kind` to a file, if `output` ends as one of that format does, else to a folder.

    Takes memory for a block of a tensor, or for a whole one where its values are put in another order.

    Args:
        dtype: one of `CASTS`, for all weights that are floats or quantised; as they are, if not given.
        quantizing: to what weights are quantised, in a GGUF or an APR file.
        shard_bytes: how large a file of a folder may be.
        card: what a GGUF says of where the model comes from: the `general.*` keys, of which APR takes some.
        include_metadata: whether a file says so at all, or keeps what the one before said.
        check: is given the file of weights, or the first of several, before the output has its name; what it raises
            leaves no output.
        progress: is told how many bytes of tensors more are written, and how many there are in all.

    Raises:
        UsageError: the format or an adapter has no shards, the format is not written, or the dtype or the mix is none
            that it has.
        ModelError: a tensor cannot be stored so, or is too large for the dtype; a file beside the weights is too
            large for its kind; or llama.cpp would not load the GGUF, or compute something else.
        OutputError: the output is there already, or cannot be written.
    """
    _require_possible(kind, output, dtype, quantizing, shard_bytes)
    require_apart([model], output)
    if _is_adapter(model) and shard_bytes is not None:
        raise UsageError(f"{model.reference} is an adapter, of which peft loads no shards", "leave out --shard-size")
    plan = _plan(model, kind, dtype, quantizing, card if include_metadata else None)
    if isinstance(plan, GgufPlan) and not include_metadata:
        plan.forget_origin()
    tensors = plan.outgoing if progress is None else _telling(plan.outgoing, progress)
    single = output.name.endswith(FORMATS[kind].suffixes)
    # what refuses a model is met first
    metadata = metadata_of_file(plan, alone=single, card=card, include=include_metadata)
    if not single:
        require_beside(plan)
    with closing(plan.quantiser), replacing(output, folder=not single, force=force) as place:
        if single:
            write_file(place, kind, tensors, metadata)
        names = (output.name,) if single else _write_folder(plan, tensors, place, shard_bytes, metadata)
        files = [place if single else place / name for name in names]
        plan.require_kept()
        if check is not None:
            check(files[0])
        size = sum(file.stat().st_size for file in files)
    return _report(plan, output, names, size)


def _is_adapter(model: StoredModel) -> bool:
    return model.adapter_config is not None and model.config is None


def _write_folder(
    plan: Plan | GgufPlan,
    tensors: Sequence[Outgoing],
    place: Path,
    shard_bytes: int | None,
    metadata: "Mapping[str, Any]",
) -> tuple[str, ...]:
    name = ADAPTER if _is_adapter(plan.model) else None
    written = write_weights(place, plan.kind, cut(tensors, shard_bytes), metadata, name)
    return (*written, *write_beside(plan, place))


def _plan(
    model: StoredModel,
    kind: WeightFormat,
    dtype: str | None,
    quantizing: Quantizing | None,
    card: "Mapping[str, Value] | None",
) -> Plan | GgufPlan:
    if kind is not WeightFormat.GGUF:
        plan = Plan(model, kind, dtype, None if quantizing is None else quantizing.mix)
        plan.require_blocks()
        return plan
    from entrenar_core.conversion.gguf_writing import plan_gguf

    if quantizing is not None:
        return plan_gguf(model, quantizing.mix, importance=quantizing.importance, card=card)
    return plan_gguf(model, None if dtype is None else MIXES[_FLOATS[dtype]], card=card)


def _report(plan: Plan | GgufPlan, output: Path, files: tuple[str, ...], size_bytes: int) -> Conversion:
    rounding = plan.roundings.all
    rounded = rounding.values > 0
    values = sum(math.prod(tensor.shape) for tensor in plan.outgoing)
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
        None if plan.mix is None else plan.mix.name,
        dict(Counter(tensor.dtype.name for tensor in plan.outgoing)),
        8 * sum(tensor.size_bytes for tensor in plan.outgoing) / max(values, 1),
        {name: one.square_error for name, one in plan.roundings.tensors.items()},
    )


def _telling(tensors: Sequence[Outgoing], progress: Progress) -> list[Outgoing]:
    total = sum(tensor.size_bytes for tensor in tensors)
    return [telling(tensor, partial(_told, progress, total)) for tensor in tensors]


def _told(progress: Progress, total: int, done: int) -> None:
    progress(done, total)


def _require_possible(
    kind: WeightFormat, output: Path, dtype: str | None, quantizing: Quantizing | None, shard_bytes: int | None
) -> None:
    if FORMATS[kind].writer is None:
        written = [name for name, row in FORMATS.items() if row.writer is not None]
        raise UsageError(f"{kind} is not written", f"the formats are {', '.join(written)}")
    other = next((found for found, row in FORMATS.items() if output.name.endswith(row.suffixes)), kind)
    if other is not kind and not output.name.endswith(FORMATS[kind].suffixes):
        raise UsageError(f"{output} ends as a file of {other} does, and {kind} is to be written", "choose another name")
    if shard_bytes is not None and (kind not in SHARDED or output.name.endswith(FORMATS[kind].suffixes)):
        raise UsageError(f"{output} is a single file", "--shard-size is for folders of safetensors or PyTorch files")
    _require_types(kind, dtype, quantizing)


def _require_types(kind: WeightFormat, dtype: str | None, quantizing: Quantizing | None) -> None:
    casts = tuple(_FLOATS) if kind is WeightFormat.GGUF else CASTS
    if dtype is not None and dtype not in casts:
        raise UsageError(f"weights are not cast to {dtype} in {kind}", f"the dtypes are {', '.join(casts)}")
    if quantizing is not None and dtype is not None:
        raise UsageError("--dtype and --quantize both say what weights become", "give one of the two")
    if quantizing is not None and kind is not WeightFormat.GGUF:
        _require_blocks(kind, quantizing.mix)


def _require_blocks(kind: WeightFormat, mix: Mix) -> None:
    """Of formats besides GGUF only the binary APR has blocks of ggml, and only of two types."""
    title = FORMATS[kind].title
    if kind is not WeightFormat.APR:
        raise UsageError(f"{title} files are not quantised", "take --to gguf or apr, or cast with --dtype")
    if mix.base.name not in APR_BASES:
        names = ", ".join(name for name, found in MIXES.items() if found.base.name in APR_BASES)
        raise UsageError(f"{title} has no {mix.name}", f"it has {names}")
