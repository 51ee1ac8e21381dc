"""Adapters merged into their base model: read a block at a time, computed in float32, rounded once.

What no adapter changes is copied by the system, and shards stay as they are. What is stored in 16 bits holds only a
part of a small update: how much is lost so is measured while it is written. Output of another format than safetensors
goes through `conversion`, which is given the merged model as if it were stored (see `merged_model`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.adapters.merge_report import report_of, size_of, usual_dtype, written_dtype
from entrenar_core.adapters.placing import Target
from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.results import MergeReport
from entrenar_core.conversion.beside import copy_beside
from entrenar_core.conversion.content import as_it_is, cast, telling
from entrenar_core.conversion.files import cut, replacing, require_apart, write_file, write_weights
from entrenar_core.errors import UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import keeping_torch_threads

if TYPE_CHECKING:
    from entrenar_core.adapters.merged_values import Merge
    from entrenar_core.conversion.converting import Progress, Quantizing

_SAFE = WeightFormat.SAFETENSORS
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ALONE = "config.json is not written beside a single file: merge to a folder to have it as the model needs it now"
Check = Callable[[Path], None]


def write_merged(
    plan: MergePlan,
    output: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    check: Check | None = None,
    force: bool = False,
    progress: "Progress | None" = None,
) -> MergeReport:
    """Writes the merged model in safetensors: to a file where `output` ends so, else to a folder with all that lies
    beside the base's weights.

    Args:
        dtype: one of `CASTS`, for all weights that are floats; as the base has them, if not given.
        shard_bytes: how large a file of a folder may be; the base's own files, if not given.
        check: is given what was written before it has its name; what it raises leaves no output.
        progress: is told how many bytes more are written, and how many there are in all.

    Raises:
        ModelError: a value is not finite, or too large for the dtype.
        OutputError: the output is there already, is where something is read from, or cannot be written.
    """
    from entrenar_core.adapters.merged_values import Merge
    from entrenar_core.conversion.casting import Rounding

    single = is_file(output)
    if single and shard_bytes is not None:
        raise UsageError(f"{output} is a single file", "--shard-size is for folders")
    _apart(plan, output)
    merge, rounding = Merge(plan), Rounding()
    shards = _shards(merge, dtype, rounding)
    if single or shard_bytes is not None:
        shards = cut([tensor for shard in shards for tensor in shard], shard_bytes)
    shards = shards if progress is None else _told(shards, progress)
    with replacing(output, folder=not single, force=force) as place, keeping_torch_threads():
        names = _write(plan, place, shards, dtype, single=single)
        rounding.require_finite(str(dtype), "take --dtype bf16 or fp32, which hold them")
        if check is not None:
            check(place)
        size_bytes = sum((place if single else place / name).stat().st_size for name in names)
    found = report_of(plan, output, _SAFE, names, size_bytes, merge.tally, dtype)
    return replace(found, notes=(*found.notes, _ALONE)) if single and plan.config is not plan.base.config else found


def _write(
    plan: MergePlan, place: Path, shards: Sequence[Sequence[Outgoing]], dtype: str | None, *, single: bool
) -> tuple[str, ...]:
    """Writes the one file or the folder; returns the names of what it holds."""
    metadata = {"format": "pt", **(plan.base.metadata if plan.base.format is _SAFE else {})}
    if single:
        write_file(place, _SAFE, shards[0], metadata)
        return (place.name,)
    return (*write_weights(place, _SAFE, shards, metadata), *_write_beside(plan, place, dtype))


def convert_merged(
    plan: MergePlan,
    kind: WeightFormat,
    output: Path,
    *,
    dtype: str | None = None,
    quantizing: "Quantizing | None" = None,
    force: bool = False,
    progress: "Progress | None" = None,
) -> MergeReport:
    """Writes the merged model in another format, without one in safetensors before; raises as `convert` too.

    Changed tensors are given to the conversion in float32, so that they are rounded once, to what they are stored in.
    """
    from entrenar_core.adapters.merged_model import merged_model
    from entrenar_core.adapters.merged_values import Merge
    from entrenar_core.conversion.converting import Quantizing, convert
    from entrenar_core.conversion.gguf_writing import usual_mix

    _apart(plan, output)
    if quantizing is None and dtype is None and kind is WeightFormat.GGUF:
        quantizing = Quantizing(usual_mix(plan.base))
    elif quantizing is None and dtype is None:
        dtype = usual_dtype(plan.base)
    merge = Merge(plan)
    done = convert(
        merged_model(merge),
        kind,
        output,
        dtype=dtype,
        quantizing=quantizing,
        force=force,
        progress=progress,
    )
    for target in plan.targets.values():
        if target.parts and target.name in done.errors:
            merge.tally.error(target.module, (target.name, -1), done.errors[target.name])
    found = report_of(plan, output, kind, done.files, done.size_bytes, merge.tally, dtype, done.quantization)
    return replace(
        found,
        dtypes=done.types,
        quantization=done.quantization,
        rounding=done.relative_rms,
        notes=tuple(dict.fromkeys((*found.notes, *done.notes))),
    )


def describe_merge(plan: MergePlan, output: Path, kind: WeightFormat, dtype: str | None) -> MergeReport:
    """What would be written, with nothing written."""
    _apart(plan, output)
    return replace(report_of(plan, output, kind, (), size_of(plan, dtype), None, dtype), dry_run=True)


def is_file(output: Path) -> bool:
    """Whether it is one file of weights and not a folder."""
    return any(output.name.endswith(row.suffixes) for row in FORMATS.values())


def _apart(plan: MergePlan, output: Path) -> None:
    require_apart({id(one): one for one in (plan.base, *_adapters(plan))}.values(), output)


def _adapters(plan: MergePlan) -> Iterator[StoredModel]:
    for target in plan.targets.values():
        yield from (part.adapter.model for part in target.parts)
        if target.whole is not None:
            yield target.whole.model


def _shards(merge: "Merge", dtype: str | None, rounding: Any) -> list[list[Outgoing]]:
    """The tensors of each file, in the order that they lie there; what is new comes last."""
    plan = merge.plan
    base, left = plan.base, dict(plan.targets)
    shards = []
    for file in sorted(base.files, key=lambda one: one.name):
        shard = []
        for tensor in sorted(file.header.tensors, key=lambda one: one.offset):
            if base.tensors[tensor.name].file != tensor.file:  # which another file has too
                continue
            target = left.pop(plan.prefix + tensor.name, None)
            shard.append(_outgoing(merge, target, tensor, dtype, rounding))
        if shard:
            shards.append(shard)
    shards[-1].extend(_outgoing(merge, target, target.tensor, dtype, rounding) for target in left.values())
    return shards


def _outgoing(
    merge: "Merge", target: Target | None, tensor: StoredTensor, dtype: str | None, rounding: Any
) -> Outgoing:
    from entrenar_core.adapters.merged_values import merged_tensor

    plan = merge.plan
    written = written_dtype(tensor, dtype)
    if target is None:
        model, name = plan.base, plan.prefix + tensor.name
    else:
        written = written_dtype(_stored(plan, target) or tensor, dtype)
        if target.parts:
            return merged_tensor(merge, target, written)
        model, name, tensor = target.model(plan.base), target.name, target.tensor
    if written == tensor.dtype:
        return as_it_is(model, tensor, name)
    return cast(model, tensor, written, rounding, name=name)


def _stored(plan: MergePlan, target: Target) -> StoredTensor | None:
    """The base's tensor that one of an adapter stands for."""
    name = target.name.removeprefix(plan.prefix)
    return plan.base.tensors.get(name) or plan.base.tensors.get(plan.tied.standing.get(name, ""))


def _told(shards: Sequence[Sequence[Outgoing]], progress: "Progress") -> list[list[Outgoing]]:
    total = sum(tensor.size_bytes for shard in shards for tensor in shard)
    return [[telling(tensor, partial(_tell, progress, total)) for tensor in shard] for shard in shards]


def _tell(progress: "Progress", total: int, done: int) -> None:
    progress(done, total)


def _write_beside(plan: MergePlan, folder: Path, dtype: str | None) -> tuple[str, ...]:
    """Settings and tokenizer as the base has them; of an adapter nothing is left."""
    place = plan.base.place
    assert isinstance(place, LocalPlace), "values are read of files that are here"
    names = list(copy_beside(place.folder, folder)) if len(place.sizes) > 1 or "config.json" in place.sizes else []
    if "adapter_config.json" in names:
        (folder / "adapter_config.json").unlink()
        names.remove("adapter_config.json")
    config = merged_config(plan, dtype)
    if config is not None and config is not plan.base.config:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tuple(names)


def merged_config(plan: MergePlan, dtype: str | None) -> Mapping[str, Any] | None:
    """What config.json is to say."""
    if plan.config is None or dtype is None:
        return plan.config
    key = "torch_dtype" if "torch_dtype" in plan.config else "dtype"
    return {**plan.config, key: _TORCH_NAMES[dtype]}
