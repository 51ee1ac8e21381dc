"""A merged model as if it were stored: for conversions into other formats, with no file of it in between.

Changed tensors are held "by the header", as ONNX graphs hold some of theirs: their bytes are computed when they are
asked for, in float32, one tensor at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entrenar_core.adapters.placing import Target
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from entrenar_core.adapters.merged_values import Merge


@dataclass(frozen=True, slots=True)
class _Computed(Mapping[str, bytes]):
    """The bytes of changed tensors by name."""

    merge: "Merge"
    targets: Mapping[str, Target]

    def __getitem__(self, name: str) -> bytes:
        from entrenar_core.adapters.merged_values import F32, merged_bytes

        target = self.targets[name]
        if target.parts:
            return bytes(merged_bytes(self.merge, target, F32))
        return target.model(self.merge.plan.base).array(target.tensor.name).astype("<f4").tobytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


def merged_model(merge: "Merge") -> StoredModel:
    """The base with its changed tensors in place of its own, new ones, and the settings that it is to have. It is open
    as long as the base is, and not to be closed itself.
    """
    plan = merge.plan
    first, *others = plan.base.files
    inline = _Computed(merge, plan.targets)
    held = replace(first, header=replace(first.header, inline=inline))  # files that are merged into hold none
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in plan.base.tensors.items():
        known = plan.targets.get(plan.prefix + name)
        tensors[plan.prefix + name] = (
            replace(tensor, name=plan.prefix + name) if known is None else _inline(known, first.name)
        )
    for name, target in plan.targets.items():
        tensors.setdefault(name, _inline(target, first.name))
    return replace(plan.base, files=(held, *others), tensors=tensors, config=plan.config)


def _inline(target: Target, file: str) -> StoredTensor:
    values = target.tensor.values
    return StoredTensor(target.name, DTYPES["F32"], target.tensor.shape, file, 0, 4 * values, inline=True)
