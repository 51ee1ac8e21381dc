"""What a merge says of itself: what changed, how it is stored, and how much of the update that loses."""

from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.results import Loss, MergeReport
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.quantization.mixes import MIXES
from entrenar_core.stored_model import StoredModel
from entrenar_core.units import percent, size

if TYPE_CHECKING:
    from entrenar_core.adapters.merged_values import Tally

_NOTHING = "what is added is zero everywhere: the weights are as the base has them"
_MUCH = 0.05
"""Of the update: what is lost beyond it is worth a wider dtype."""


def report_of(
    plan: MergePlan,
    output: Path,
    kind: WeightFormat,
    files: tuple[str, ...],
    size_bytes: int,
    tally: "Tally | None",
    dtype: str | None,
    quantization: str | None = None,
) -> MergeReport:
    """What was merged, with what storing it lost where that was measured; `quantization` is the mix of a GGUF."""
    adapters = {part.number: part for target in plan.targets.values() for part in target.parts}
    modules = {target.module for target in plan.targets.values() if target.parts and not target.bias}
    loss = None if tally is None else _loss(tally)
    every = {plan.prefix + name: tensor.dtype for name, tensor in plan.base.tensors.items()}
    every |= {target.name: target.tensor.dtype for target in plan.targets.values()}
    counts: dict[str, int] = {}
    for stored in every.values():
        name = dtype if dtype is not None and stored.kind == "float" else stored.name
        counts[name] = counts.get(name, 0) + 1
    advice = None if loss is None else _advice(plan, loss, dtype, quantization)
    return MergeReport(
        base=str(plan.base.reference),
        adapters=tuple(part.adapter.name for _, part in sorted(adapters.items())),
        weights=tuple(part.weight for _, part in sorted(adapters.items())),
        combination=plan.combination.method if len(adapters) > 1 else None,
        output=output,
        format=kind,
        files=files,
        size_bytes=size_bytes,
        modules=len(modules),
        tensors_changed=plan.changed,
        tensors_copied=len(plan.base.tensors) - plan.changed,
        tensors_new=len(plan.targets) - plan.changed,
        dtypes=counts,
        unties_head=plan.unties,
        loss=loss,
        advice=advice,
        notes=(*plan.notes, *([_NOTHING] if tally is not None and modules and tally.overall is None else [])),
    )


def _loss(tally: "Tally") -> Loss | None:
    overall, found = tally.overall, tally.lost
    if overall is None:
        return None
    worst = max(found, key=lambda module: found[module])
    return Loss(overall, found[worst], worst, found)


def _advice(plan: MergePlan, loss: Loss, dtype: str | None, quantization: str | None) -> str | None:
    if quantization is not None and MIXES[quantization].quantised:
        return _beside_blocks(loss, quantization)
    written = (quantization or dtype or usual_dtype(plan.base)).upper()
    if loss.overall < _MUCH or written not in ("F16", "BF16"):
        return None
    wide = size(size_of(plan, "F32"))
    if loss.overall > 1:
        return (
            f"{written.lower()} moves the changed weights by {loss.overall:.3g} times what the update does: --dtype "
            f"fp32 keeps it ({wide}), and so does loading the adapter beside its base"
        )
    return (
        f"{percent(loss.overall)} of the update is lost in {written.lower()}: --dtype fp32 keeps it ({wide}), "
        "and so does loading the adapter beside its base"
    )


def _beside_blocks(loss: Loss, quantization: str) -> str | None:
    """Blocks round every weight, whatever was added to it."""
    if loss.overall < _MUCH:
        return None
    return (
        f"{quantization} moves the changed weights by {loss.overall:.2g} times what the adapter changes of them, as it "
        "moves the base's: --quantize f16 keeps more of it, and so does llama.cpp's --lora with the adapter as a GGUF "
        "(`entrenar-lora convert ADAPTER --to gguf`)"
    )


def usual_dtype(base: StoredModel) -> str:
    """The dtype that most weights are stored in."""
    counts: dict[str, int] = {}
    for tensor in base.tensors.values():
        if tensor.dtype.kind == "float":
            counts[tensor.dtype.name] = counts.get(tensor.dtype.name, 0) + tensor.values
    return max(counts, key=lambda name: counts[name], default="F32")


def size_of(plan: MergePlan, dtype: str | None) -> int:
    """The bytes of all tensors as they would be written."""
    every = {plan.prefix + name: tensor for name, tensor in plan.base.tensors.items()}
    every |= {target.name: target.tensor for target in plan.targets.values()}
    sizes = (written_dtype(tensor, dtype).size_bytes(tensor.shape) for tensor in every.values())
    return sum(size_bytes or 0 for size_bytes in sizes)


def written_dtype(tensor: StoredTensor, dtype: str | None) -> Dtype:
    """What a tensor is written in where all floats are cast to a dtype, if they are."""
    return DTYPES[dtype] if dtype is not None and tensor.dtype.kind == "float" else tensor.dtype
