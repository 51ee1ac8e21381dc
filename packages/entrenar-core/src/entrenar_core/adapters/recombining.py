"""Several adapters, or one whose rank is too large, as one adapter again: no base model is needed.

The sum is exact where matrices are laid side by side (`linear`, `cat`), at the cost of a rank that is the sum of
theirs; `svd` cuts it to a rank, and so do `ties` and `dare`, whose changes have no low rank by themselves. How much of
the change is kept is told.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.adapters.adapter import Adapter, require_scales
from entrenar_core.adapters.combining import Combination, Weighted, combined
from entrenar_core.adapters.placing import Part
from entrenar_core.adapters.principal import PRINCIPAL, require_mergeable
from entrenar_core.adapters.results import AdapterReport, ExtractedModule
from entrenar_core.adapters.writing import Matrices, write_adapter
from entrenar_core.conversion.files import require_apart
from entrenar_core.errors import ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from entrenar_core.adapters.changes import Factors


def write_combined(
    adapters: Sequence[tuple[Adapter, float]],
    combination: Combination,
    output: Path,
    *,
    dtype: str = "F32",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AdapterReport:
    """Writes adapters, each with its weight, as one, to a folder as peft loads it.

    Raises:
        UsageError: an adapter's alpha is not known, or the rank is not said where it is needed.
        ModelError: an adapter is more than low-rank matrices: DoRA, PiSSA, whole modules or biases.
        OutputError: the output is there already, is one of them, or cannot be written.
    """
    _require_possible(adapters, combination, output)
    require_apart([adapter.model for adapter, _ in adapters], output)
    placed: dict[str, list[Part]] = {}
    for number, (adapter, weight) in enumerate(adapters):
        for pair in adapter.pairs:
            placed.setdefault(pair.module, []).append(Part(adapter, pair, weight, number))
    made = []
    for done, (module, parts) in enumerate(placed.items()):
        made.append(_made(module, parts, combination))
        if progress is not None:
            progress(done + 1, len(placed))
    matrices, modules = [one for one, _, _ in made], [one for _, one, _ in made]
    square = sum(one for _, _, one in made)
    kept = sum(module.kept * one for _, module, one in made)
    first = adapters[0][0].settings
    files, size_bytes = write_adapter(
        output,
        matrices,
        {},
        base=first.base,
        task=first.said.get("task_type"),
        transposed=first.transposed,
        dtype=dtype,
        force=force,
    )
    ranks = [one.rank for one in modules]
    return AdapterReport(
        sources=tuple(adapter.name for adapter, _ in adapters),
        output=output,
        files=files,
        size_bytes=size_bytes,
        parameters=sum(one.parameters for one in matrices),
        ranks=(min(ranks), max(ranks)),
        kept=kept / square if square else 1.0,
        worst=min(modules, key=lambda one: one.kept),
        modules=tuple(modules),
        randomised=sum(not one.exact for one in modules),
        notes=tuple(dict.fromkeys(note for adapter, _ in adapters for note in adapter.inferred)),
    )


def _require_possible(adapters: Sequence[tuple[Adapter, float]], combination: Combination, output: Path) -> None:
    for adapter, _ in adapters:
        _require_matrices(adapter)
        if Path(adapter.model.place.name).resolve() == output.resolve():
            raise OutputError(f"{output} is where {adapter.name} is read from", "choose another --output")
    if combination.method in ("ties", "dare") and combination.rank is None:
        raise UsageError(f"what {combination.method} makes has no low rank", "say how much of it to keep: --rank 64")


def _require_matrices(adapter: Adapter) -> None:
    """Refuses what is more than pairs of matrices."""
    require_scales(adapter)
    require_mergeable(adapter.settings, adapter.name)
    kinds = {
        "DoRA, whose change depends on the base": any(pair.magnitude is not None for pair in adapter.pairs),
        "with a bias of its own": any(pair.up_bias is not None for pair in adapter.pairs),
        "with whole modules or biases": bool(adapter.whole),
        f"{adapter.settings.init}, which takes a part out of the base": adapter.settings.init in PRINCIPAL,
    }
    found = next((kind for kind, there in kinds.items() if there), None)
    if found is not None:
        raise ModelError(
            f"{adapter.name} is {found}: it has no place in an adapter made of several",
            "merge into the base instead, and extract from that",
        )


def _made(module: str, parts: Sequence[Part], combination: Combination) -> tuple[Matrices, ExtractedModule, float]:
    """The matrices of one module, what they keep, and the square of the whole change."""
    from entrenar_core.adapters.changes import Difference, Factors, summed
    from entrenar_core.adapters.combining import weighed
    from entrenar_core.adapters.factoring import cut_matrix, cut_product
    from entrenar_core.adapters.target_changes import part_factors

    shapes = {part.pair.shape for part in parts}
    if len(shapes) > 1 or len({part.pair.embedding for part in parts}) > 1:
        raise ModelError(f"the adapters change {module} in other shapes", "they are for different bases")
    weighted = [
        Weighted(part_factors(part, transposed=False), part.weight, part.pair.rank, part.number) for part in parts
    ]
    rank = combination.rank or max(part.pair.rank for part in parts)
    embedding = parts[0].pair.embedding
    if combination.is_sum:
        whole = summed([weighed(one) for one in weighted])
        assert isinstance(whole, Factors)
        found = _matrices(module, whole, embedding=embedding)
        return found, ExtractedModule(module, found.rank, 1.0, None, exact=True), whole.square
    if combination.method == "svd":
        whole = summed([weighed(one) for one in weighted])
        assert isinstance(whole, Factors)
        cut = cut_product(whole, rank)
    else:
        change = combined(weighted, combination, module, None)
        assert isinstance(change, Difference)
        cut = cut_matrix(change.values_RC, rank=rank, seed=combination.seed)
    found = _matrices(module, cut.factors, embedding=embedding)
    return found, ExtractedModule(module, cut.rank, cut.kept, None, cut.exact), cut.square


def _matrices(module: str, factors: "Factors", *, embedding: bool) -> Matrices:
    """As peft has them: of an embedding both lie the other way."""
    left, right = factors.left_Rk, factors.right_kC
    if embedding:
        return Matrices(module, left.T.contiguous(), right.T.contiguous(), embedding=True)
    return Matrices(module, right.contiguous(), left.contiguous())
