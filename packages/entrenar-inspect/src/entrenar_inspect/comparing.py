"""`entrenar-inspect compare`: what two models have in common, by their headers, and on request by their values.

Structure comes from headers alone, but for tensors with other names (see `renaming`); settings and tokenizers are
compared besides.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from entrenar_core.formats import WeightFormat
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.comparing_settings import beside_tensors
from entrenar_inspect.comparing_values import Pair, Progress, by_module, comparable, furthest, moved
from entrenar_inspect.opening import require_values
from entrenar_inspect.renaming import Renaming, renamings
from entrenar_inspect.reports.comparison import Change, Comparison
from entrenar_inspect.tree import Module, tree_of

FailOn = Literal["shape", "value", "any"]


def compare(
    first: StoredModel,
    second: StoredModel,
    *,
    values: bool = False,
    tolerance: float = 0.0,
    depth: int = 1,
    by_tensor: bool = False,
    fail_on: FailOn | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """What changed from the first model to the second.

    Args:
        values: whether to compare the values of the tensors that both have in one shape.
        tolerance: the largest absolute difference that is none.
        depth: how many levels of modules the differences of values are told apart by, as `layers` opens them.
        by_tensor: whether to tell those of every tensor.
        fail_on: which changes make the exit status 1. That of values does, too, where a tensor has none to be compared
            with: the other model lacks it, or has it in another shape, or of a type that is not known.
        progress: is told how many bytes were read of each side.

    Raises:
        UsageError: values are to be compared, and one side is on the Hub.
        ModelError: a tensor or a file of settings cannot be read.
        AccessError, FetchError: the Hub does not give settings.
    """
    if values:
        require_values(first)
        require_values(second)
    renamed = renamings(first, second)
    both = _both(first.tensors, second.tensors, renamed)
    changes = tuple(_changes(first, second, renamed, both))
    settings, tokenizer = beside_tensors(first, second)
    pairs = [(old, new) for old, new in both if old.shape == new.shape]
    known = [pair for pair in pairs if comparable(pair)]
    found = moved(first, second, known, progress) if values else []
    beyond = sum(one.beyond(tolerance) for one in found)
    unseen = not known or len(known) < len(pairs)
    failing = _failing(changes, values and (beyond > 0 or unseen), any((changes, settings, tokenizer)), values)
    return Comparison(
        str(first.reference),
        str(second.reference),
        changes,
        settings,
        tokenizer,
        len(pairs),
        () if by_tensor else tuple(by_module(first, found, depth, tolerance)),
        tuple(one.told() for one in found if by_tensor),
        furthest(found),
        beyond if values else None,
        tolerance,
        failing.get(fail_on, False),
        (*_notes(first, second, renamed), *_notes_of_values(values, pairs, known)),
    )


def _failing(changes: Sequence[Change], moved: bool, changed: bool, values: bool) -> dict[FailOn | None, bool]:
    """Whether each kind of change is there. A tensor of one side alone has no values to be compared with."""
    alone = any(change.kind in ("added", "removed", "reshaped") for change in changes)
    return {"shape": alone, "value": moved or (values and alone), "any": moved or changed}


def _changes(
    first: StoredModel, second: StoredModel, renamed: Sequence[Renaming], both: Sequence[Pair]
) -> Iterator[Change]:
    yield from _alone("removed", first.tensors, {old.name for old, _ in both})
    yield from _alone("added", second.tensors, {new.name for _, new in both})
    yield from (_renamed(renaming, first.tensors) for renaming in renamed)
    for old, new in both:
        if old.shape != new.shape:
            yield Change("reshaped", old.name, old.shape, None, now=new.shape)
    yield from _retyped(first.tensors, both)


def _both(
    first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor], renamed: Sequence[Renaming]
) -> list[Pair]:
    """The tensors that both have, whatever their names."""
    named = {name: name for name in first}
    for renaming in renamed:
        named |= renaming.names
    return [(tensor, second[named[name]]) for name, tensor in first.items() if named[name] in second]


def _notes(first: StoredModel, second: StoredModel, renamed: Sequence[Renaming]) -> Iterator[str]:
    if any(renaming.by == "names" for renaming in renamed):
        yield "what most names have more or other at their start is taken for a renaming: by names and shapes alone"
    if not (first.is_here and second.is_here):
        yield "one side is on the Hub: other names are not found by content, and files of tokenizers compared by size"
    if (first.format is WeightFormat.GGUF) != (second.format is WeightFormat.GGUF):
        yield "a GGUF has the names of llama.cpp, and settings of its own: `entrenar-inspect convert` it to compare it"


def _notes_of_values(values: bool, pairs: Sequence[Pair], known: Sequence[Pair]) -> Iterator[str]:
    if not values:
        yield "values were not compared; --values compares them"
    elif not pairs:
        yield "no tensor is in both in one shape: no value could be compared"
    elif len(known) < len(pairs):
        lost = next(old.name for old, new in pairs if not comparable((old, new)))
        number = len(pairs) - len(known)
        which = lost if number == 1 else f"{number:,} tensors, such as {lost},"
        yield f"the values of {which} are of types that cannot be compared"


def _alone(
    kind: Literal["added", "removed"], tensors: Mapping[str, StoredTensor], elsewhere: set[str]
) -> Iterator[Change]:
    """What one side alone has: whole modules as one."""
    for module in _whole(tree_of(tensors), tensors.keys() - elsewhere):
        inside = list(module.tensors())
        yield Change(
            kind,
            _called(module.name, inside),
            inside[0].shape if len(inside) == 1 else None,
            sum(tensor.values for tensor in inside),
            tensors=len(inside),
        )


def _called(module: str, inside: Sequence[StoredTensor]) -> str:
    """A whole module, or the only tensor in it."""
    return inside[0].name if len(inside) == 1 else f"{module}.*" if module else "*"


def _whole(module: Module, names: set[str], *, root: bool = False) -> Iterator[Module]:
    """The highest modules of which every tensor is among the names; `root`: or the whole model."""
    inside = [tensor.name in names for tensor in module.tensors()]
    if (module.name or root) and inside and all(inside):
        yield module
    elif any(inside):
        for part in module.inside.values():
            yield from _whole(part, names)
        if module.inside and module.tensor is not None and module.tensor.name in names:
            yield Module(module.name, tensor=module.tensor)


def _renamed(renaming: Renaming, first: Mapping[str, StoredTensor]) -> Change:
    names = renaming.names
    return Change(
        "renamed",
        renaming.old,
        None,
        sum(first[name].values for name in names),
        now=renaming.new,
        tensors=len(names),
        by=renaming.by,
    )


def _retyped(first: Mapping[str, StoredTensor], both: Sequence[Pair]) -> Iterator[Change]:
    """What is stored in another dtype: whole modules as one where all that is in them changed alike."""
    changed: defaultdict[str, set[str]] = defaultdict(set)
    for old, new in both:
        if old.dtype != new.dtype:
            changed[f"{old.dtype} → {new.dtype}"].add(old.name)
    tree = tree_of(first)
    for now, names in changed.items():
        for module in _whole(tree, names, root=True):
            inside = list(module.tensors())
            parameters = sum(tensor.values for tensor in inside)
            yield Change("retyped", _called(module.name, inside), None, parameters, now=now, tensors=len(inside))
