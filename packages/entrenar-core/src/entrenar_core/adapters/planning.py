"""What becomes of each tensor of a base model when adapters are merged into it; nothing is computed or written yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.adapters.combining import Combination
from entrenar_core.adapters.merge_config import settings_after
from entrenar_core.adapters.placing import OTHER_BASE, Placed, Target, placed_in
from entrenar_core.adapters.principal import PRINCIPAL
from entrenar_core.adapters.ties_of_heads import Tied
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.stored_model import StoredModel


@dataclass(frozen=True, slots=True)
class MergePlan:
    """`targets` by their names in the merged model: those of the base's tensors that change, and after them new ones.
    `prefix` is put before all names of the base, `config` is its settings as they are to be.
    """

    base: StoredModel
    targets: Mapping[str, Target]
    combination: Combination
    tied: Tied
    unties: bool
    config: Mapping[str, Any] | None
    prefix: str = ""
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many tensors of the base change."""
        return sum(name.removeprefix(self.prefix) in self.base.tensors for name in self.targets)


def plan_merge(
    base: StoredModel,
    adapters: Sequence[tuple[Adapter, float]],
    combination: Combination | None = None,
) -> MergePlan:
    """What merging adapters, each with its weight, makes of a base model.

    Raises:
        UsageError: an adapter's alpha is not known, or what is asked for cannot be had together.
        ModelError: as `placed_in`.
    """
    return _planned(placed_in(base, adapters), combination or Combination())


def _planned(placed: Placed, combination: Combination) -> MergePlan:
    prefix = _prefix(placed)
    targets = {}
    for name, parts in placed.parts.items():
        module, source = placed.modules[name], placed.sources[name]
        transposed = placed.weights.is_transposed(module)
        whole, source = placed.whole.pop(name, (None, source))
        targets[name] = Target(prefix + name, module, source, transposed, tuple(parts), whole=whole)
    for name, parts in placed.biases.items():
        whole, source = placed.whole.pop(name, (None, placed.base.tensors[name]))
        targets[name] = Target(prefix + name, name, source, parts=tuple(parts), bias=True, whole=whole)
    for name, (adapter, source) in placed.whole.items():
        targets[name] = Target(prefix + name, name, source, whole=adapter)
    unties = _untie(placed, targets, prefix)
    for name, (adapter, tensor) in placed.new.items():
        targets[name] = Target(name, name, tensor, whole=adapter)
    _require_possible(targets, combination)
    config, notes = settings_after(placed, unties=unties)
    return MergePlan(
        placed.base,
        {target.name: target for target in targets.values()},
        combination,
        placed.tied,
        unties,
        config,
        prefix,
        tuple(dict.fromkeys((*placed.notes, *notes))),
    )


def _require_possible(targets: Mapping[str, Target], combination: Combination) -> None:
    if combination.is_sum:
        return
    for target in targets.values():
        if any(part.adapter.settings.init in PRINCIPAL for part in target.parts):
            raise UsageError(
                f"--combine {combination.method} of adapters that began as a part of the base is not defined",
                "take --combine linear",
            )


def _prefix(placed: Placed) -> str:
    """What a new head's model puts before the names of the body, where the base is stored without."""
    if not placed.new:
        return ""
    if len(placed.prefixes) > 1:
        raise ModelError(f"the modules of the adapter lie under {', '.join(sorted(placed.prefixes))}", OTHER_BASE)
    return next(iter(placed.prefixes), "")


def _untie(placed: Placed, targets: dict[str, Target], prefix: str) -> bool:
    """Gives head and embeddings each a tensor, where one of them changes and the other does not do the same."""
    if placed.new:  # another head than the one that was tied
        return False
    touched = False
    for head, other in placed.tied.standing.items():
        if head not in targets and other not in targets:
            continue
        if _same_whole(targets.get(head), targets.get(other)):
            del targets[head]
            continue
        touched = True
    if not touched:
        return False
    for head, other in placed.tied.standing.items():
        source = placed.base.tensors[other]
        targets.setdefault(head, Target(prefix + head, head, source))
    return True


def _same_whole(one: Target | None, other: Target | None) -> bool:
    if one is None or other is None or one.whole is None or one.whole is not other.whole:
        return False
    import numpy as np

    return bool(np.array_equal(one.whole.values(one.tensor), one.whole.values(other.tensor)))
