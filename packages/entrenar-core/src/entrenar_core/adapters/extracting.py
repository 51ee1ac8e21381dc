"""A low-rank adapter out of two models: the difference of each of their matrices, cut to its largest directions.

One matrix at a time is read, in float32; only the adapter itself stays in memory. B has the left singular vectors and A
the right ones, both times the roots of the singular values, and alpha is the rank: base and adapter are then as near to
the tuned model as the rank allows, in the sum of squares of each matrix. What is no matrix, or was not asked for, and
differs all the same is told with its size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.extract_targets import Wanted, wanted_modules
from entrenar_core.adapters.placing import FLOATS, require_base, stored_name
from entrenar_core.adapters.results import AdapterReport, ExtractedModule, LeftOut
from entrenar_core.adapters.ties_of_heads import Tied, tied_tensors
from entrenar_core.adapters.writing import Matrices, write_adapter
from entrenar_core.conversion.files import require_apart
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats.blocks import raw_blocks
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT = ".weight"
_TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Extraction:
    """What is taken of each matrix: a rank, or as many directions as keep a share `energy` of the squares.

    Args:
        targets: names of modules as peft matches them, or a group such as `attention`; all linear layers if not given.
        save: modules whose tensors the adapter is to hold whole: those whose names end so, as peft has it.

    Raises:
        UsageError: not just one of rank and energy is given, or one is out of range.
    """

    rank: int | None = None
    energy: float | None = None
    targets: tuple[str, ...] | None = None
    save: tuple[str, ...] = ()
    dtype: str = "F32"
    seed: int = 42

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UsageError("an adapter has either a rank or a share of the change", "give --rank 64 or --energy 0.99")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank} is no rank", "give a whole number above 0")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"--energy {self.energy:g} is no share", "give a number above 0, at most 1")


@dataclass(slots=True)
class _Found:
    matrices: list[Matrices] = field(default_factory=list)
    modules: list[ExtractedModule] = field(default_factory=list)
    whole: dict[str, "Tensor"] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    left: list[LeftOut] = field(default_factory=list)
    square: float = 0.0
    kept: float = 0.0
    unchanged: int = 0
    transposed: bool = False


Progress = Callable[[int, int], None]


class _Models:
    """The two models, and which modules are asked for."""

    def __init__(self, base: StoredModel, tuned: StoredModel, wanted: Wanted) -> None:
        self.base, self.tuned, self.wanted = base, tuned, wanted
        self._weights = BaseWeights(tuned)

    def counterpart(self, tensor: StoredTensor) -> StoredTensor | None:
        """The tensor of the base that one of the tuned model was trained from.

        Raises:
            ModelError: it has another shape.
        """
        name = stored_name(self.base, tensor.name) or self._tied.standing.get(tensor.name)
        if name is None:
            return None
        old = self.base.tensors[name]
        if old.shape != tensor.shape:
            raise ModelError(
                f"{shown(tensor.name)} is {_by(tensor)} in {self.tuned.reference} and {_by(old)} in "
                f"{self.base.reference}",
                "they are not of one architecture: name the model that was trained",
            )
        return old

    def same_bytes(self, old: StoredTensor, tensor: StoredTensor) -> bool:
        """Whether a tensor is stored in both alike, which is most of a model where few modules were trained."""
        import numpy as np

        if old.dtype != tensor.dtype or old.strides != tensor.strides:
            return False
        blocks = zip(raw_blocks(self.base, old), raw_blocks(self.tuned, tensor), strict=True)
        return all(
            np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)) for one, other in blocks
        )

    def is_transposed(self, module: str) -> bool:
        """Whether its matrices are (in, out)."""
        return self._weights.is_transposed(module)

    @cached_property
    def _tied(self) -> Tied:
        return tied_tensors(self.base)


def extract(
    base: StoredModel,
    tuned: StoredModel,
    output: Path,
    how: Extraction,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> AdapterReport:
    """Writes the adapter that makes `tuned` of `base`, as far as its rank goes, to a folder as peft loads it.

    Args:
        progress: is told how many tensors are done, and how many there are.

    Raises:
        UsageError: a target is none of the model's.
        ModelError: the models are of different shapes, quantised, or do not differ in any matrix that is asked for.
        OutputError: the output is there already, is where a model is read from, or cannot be written.
    """
    for model in (base, tuned):
        require_base(model)
    require_apart((base, tuned), output)
    models = _Models(base, tuned, wanted_modules(tuned, how.targets))
    found, total = _Found(), len(tuned.tensors)
    for done, tensor in enumerate(tuned.tensors.values()):
        _take(found, models, tensor, how)
        if progress is not None:
            progress(done + 1, total)
    if not found.matrices:
        raise ModelError(
            f"{tuned.reference} differs from {base.reference} in no matrix that is asked for", _hint(found)
        )
    _require_saved(found, how)
    files, size_bytes = write_adapter(
        output,
        found.matrices,
        found.whole,
        base=str(base.reference),
        task=_task(tuned.config or base.config or {}),
        transposed=found.transposed,
        modules_to_save=tuple(dict.fromkeys(found.saved)),
        dtype=how.dtype,
        force=force,
    )
    return _report(found, base, tuned, output, files, size_bytes)


def _report(
    found: _Found, base: StoredModel, tuned: StoredModel, output: Path, files: tuple[str, ...], size_bytes: int
) -> AdapterReport:
    ranks = [one.rank for one in found.modules]
    return AdapterReport(
        sources=(str(base.reference), str(tuned.reference)),
        output=output,
        files=files,
        size_bytes=size_bytes,
        parameters=sum(one.parameters for one in found.matrices) + sum(one.numel() for one in found.whole.values()),
        ranks=(min(ranks), max(ranks)),
        kept=found.kept / found.square if found.square else 1.0,
        worst=min(found.modules, key=lambda one: one.kept),
        modules=tuple(found.modules),
        unchanged=found.unchanged,
        saved=tuple(found.whole),
        left_out=tuple(found.left),
        randomised=sum(not one.exact for one in found.modules),
    )


def _hint(found: _Found) -> str:
    if not found.left:
        return "name two models of which one was trained from the other"
    first = found.left[0]
    return f"what differs is {shown(first.name)} and {len(found.left) - 1} more: name others as --targets"


def _take(found: _Found, models: _Models, tensor: StoredTensor, how: Extraction) -> None:
    """Adds what one tensor of the tuned model is to the adapter."""
    if tensor.dtype.kind in ("integer", "boolean"):
        return
    saved = [one for one in how.save if tensor.name.rpartition(".")[0].endswith(one)]
    if saved:
        found.whole[tensor.name] = _values(models.tuned, tensor)
        found.saved.extend(saved)
        return
    old = models.counterpart(tensor)
    if old is None:
        reason = "the base has none: --modules-to-save keeps it"
        found.left.append(LeftOut(tensor.name, tensor.values, None, reason))
        return
    module = tensor.name.removesuffix(_WEIGHT)
    matrix = len(tensor.shape) == 2 and tensor.name.endswith(_WEIGHT) and models.wanted(module, tensor)
    if models.same_bytes(old, tensor):
        found.unchanged += matrix
        return
    difference, square, size = _difference(models.base, old, models.tuned, tensor)
    relative = math.sqrt(square) / size if size else None
    if square == 0.0:
        found.unchanged += matrix
    elif not matrix:
        reason = "it is no matrix of a layer" if len(tensor.shape) != 2 else "it is not among the targets"
        found.left.append(LeftOut(tensor.name, tensor.values, relative, reason))
    else:
        if models.is_transposed(module):
            difference = difference.T.contiguous()
            found.transposed = True
        _cut(found, module, difference, square, relative, how)


def _cut(
    found: _Found, module: str, difference_OI: "Tensor", square: float, relative: float | None, how: Extraction
) -> None:
    from entrenar_core.adapters.factoring import cut_matrix

    cut = cut_matrix(difference_OI, rank=how.rank, energy=how.energy, seed=how.seed)
    factors = cut.factors
    found.matrices.append(Matrices(module, factors.right_kC.contiguous(), factors.left_Rk.contiguous()))
    found.modules.append(ExtractedModule(module, cut.rank, cut.kept, relative, cut.exact))
    found.square += square
    found.kept += cut.kept * square


def _difference(
    base: StoredModel, old: StoredTensor, tuned: StoredModel, tensor: StoredTensor
) -> tuple["Tensor", float, float]:
    """What was added, in float32, the sum of its squares, and the Frobenius norm of what it was added to."""
    from entrenar_core.adapters.factoring import square_of

    before = _values(base, old)
    size = math.sqrt(square_of(before))
    difference = _values(tuned, tensor).sub_(before)
    square = square_of(difference)
    if not math.isfinite(square):
        raise ModelError(
            f"tensor {shown(tensor.name)} holds values that are not finite in one of the two models",
            "`entrenar-inspect validate` lists all such values: go back to a checkpoint without them",
        )
    return difference, square, size


def _values(model: StoredModel, tensor: StoredTensor) -> "Tensor":
    from entrenar_core.adapters.target_changes import stored_values

    if tensor.dtype.name not in FLOATS:
        raise ModelError(
            f"{model.reference}: {shown(tensor.name)} is stored as {tensor.dtype}, of which no difference is taken",
            "take the model in 16 or 32 bits that it was made of",
        )
    return stored_values(model, tensor).float()


def _require_saved(found: _Found, how: Extraction) -> None:
    missing = [one for one in how.save if one not in found.saved]
    if missing:
        raise UsageError(f"the tuned model has no module {missing[0]} to save", "name one of its modules")


def _task(config: Mapping[str, Any]) -> str | None:
    named = str(next(iter(config.get("architectures") or ()), ""))
    return next((task for end, task in _TASKS.items() if named.endswith(end)), None)


def _by(tensor: StoredTensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
