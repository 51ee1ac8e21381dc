"""What adapters add to one stored tensor, from the matrices that they have for it."""

import torch
from torch import Tensor

from entrenar_core.adapters.changes import Change, Difference, Factors, Rescaled
from entrenar_core.adapters.combining import Weighted, combined
from entrenar_core.adapters.placing import Part, Target
from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.principal import PRINCIPAL, principal_part
from entrenar_core.formats.blocks import raw_blocks
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's types of the weights that are merged."""


def is_by_rows(plan: MergePlan, target: Target) -> bool:
    """Whether any rows of a tensor can be read, and changed, without a look at the others."""
    source = target.model(plan.base).sources[target.tensor.file]
    in_order = isinstance(source, FileSource) and target.tensor.strides is None and not target.tensor.inline
    alone = all(
        part.adapter.settings.init not in PRINCIPAL
        and (part.pair.magnitude is None or not (target.transposed or part.pair.embedding))
        for part in target.parts
    )
    return in_order and plan.combination.is_sum and alone


def change_of(plan: MergePlan, target: Target) -> Change:
    """What is added to the tensor of a target, of two dimensions: a bias is a single row.

    Raises:
        ModelError: a value of an adapter is not finite.
    """
    if target.bias:
        return _bias_change(target)
    base = None
    if not plan.combination.is_sum or any(part.adapter.settings.init in PRINCIPAL for part in target.parts):
        base = stored_values(target.model(plan.base), target.tensor)
    parts = [
        Weighted(_part_change(part, target, base), part.weight, part.pair.rank, part.number) for part in target.parts
    ]
    return combined(parts, plan.combination, target.name, base)


def stored_values(model: StoredModel, tensor: StoredTensor) -> Tensor:
    """A whole stored tensor in float32, or float64 where it is that."""
    raw = bytearray()
    for block in raw_blocks(model, tensor):
        raw += block
    found = torch.frombuffer(raw, dtype=TORCH_DTYPES[tensor.dtype.name]).reshape(tensor.shape)
    return found if found.dtype == torch.float64 else found.float()


def part_factors(part: Part, *, transposed: bool) -> Factors:
    """s · B · A as the matrix is stored: of a transposed one, or of an embedding, both change places."""
    adapter, pair = part.adapter, part.pair
    down, up = (torch.from_numpy(adapter.values(one)) for one in (pair.down, pair.up))
    assert pair.scale is not None, "scales are required before"
    if transposed or pair.embedding:
        return Factors(down.T.contiguous() * pair.scale, up.T.contiguous())
    return Factors(up * pair.scale, down)


def _part_change(part: Part, target: Target, base_RC: Tensor | None) -> Change:
    factors = part_factors(part, transposed=target.transposed)
    if part.pair.magnitude is not None:
        magnitude = torch.from_numpy(part.adapter.values(part.pair.magnitude)).reshape(-1)
        return Rescaled(factors, magnitude, by_column=target.transposed or part.pair.embedding)
    if part.adapter.settings.init in PRINCIPAL and not part.pair.embedding:
        assert base_RC is not None, "it is read before"
        return _less_principal(part, factors, base_RC, transposed=target.transposed)
    return factors


def _less_principal(part: Part, factors: Factors, base_RC: Tensor, *, transposed: bool) -> Factors:
    init, scale = part.adapter.settings.init, part.pair.scale
    assert scale is not None
    # OLoRA looks at the weight as it lies, PiSSA as torch multiplies by it
    weight = base_RC.T if transposed and init == "pissa" else base_RC
    taken = principal_part(weight, init, part.pair.rank, scale)
    if transposed and init == "pissa":
        taken = Factors(taken.right_kC.T.contiguous(), taken.left_Rk.T.contiguous())
    return Factors(
        torch.cat([factors.left_Rk, -taken.left_Rk], dim=1), torch.cat([factors.right_kC, taken.right_kC], dim=0)
    )


def _bias_change(target: Target) -> Difference:
    total = torch.zeros(1, target.tensor.values)
    for part in target.parts:
        bias, scale = part.pair.up_bias, part.pair.scale
        assert bias is not None, "parts of a bias have one"
        assert scale is not None, "scales are required before"
        total += torch.from_numpy(part.adapter.values(bias)).reshape(1, -1) * (scale * part.weight)
    return Difference(total)
