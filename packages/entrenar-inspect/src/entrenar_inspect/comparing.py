"""`entrenar-inspect compare`: what two models have in common, by their headers, and on request by their values.

Structure comes from headers alone. A tensor that only one side has was renamed if the other side has one of the same
dtype, shape and bytes under another name; for that, only such candidates are read, and only where both lie here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from entrenar_core.formats import WeightFormat
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.opening import require_values
from entrenar_inspect.reports.comparison import Change, Comparison, ModuleDifference, TensorDifference
from entrenar_inspect.tree import Module, groups, tree_of

FailOn = Literal["shape", "value", "any"]
Progress = Callable[[int], None]


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
        fail_on: which changes make the exit status 1.
        progress: is told how many bytes were read of each side.

    Raises:
        UsageError: values are to be compared, and one side is on the Hub.
        ModelError: a tensor cannot be read.
    """
    if values:
        require_values(first)
        require_values(second)
    here = first.is_here and second.is_here
    renamed = dict(_renamed(first, second)) if here else {}
    changes = (
        *_alone("removed", first.tensors, second.tensors, set(renamed)),
        *_alone("added", second.tensors, first.tensors, set(renamed.values())),
        *(Change("renamed", old, None, None, now=new) for old, new in renamed.items()),
        *_reshaped(first.tensors, second.tensors),
        *_retyped(first.tensors, second.tensors),
    )
    pairs = _pairs(first.tensors, second.tensors, renamed)
    told = [_told(first, second, *pair, progress) for pair in pairs] if values else []
    beyond = [tensor for tensor in told if _differs(tensor, tolerance)]
    return Comparison(
        str(first.reference),
        str(second.reference),
        changes,
        len(pairs),
        tuple(_by_module(first, told, depth, tolerance)) if told and not by_tensor else (),
        tuple(told) if by_tensor else (),
        len(beyond) if values else None,
        tolerance,
        _fails(fail_on, changes, bool(beyond)),
        tuple(_notes(first, second, values)),
    )


def _notes(first: StoredModel, second: StoredModel, values: bool) -> Iterator[str]:
    if not values:
        yield "values, settings and tokenizers were not compared; --values compares the values"
    if not (first.is_here and second.is_here):
        yield "renamed tensors are found by their bytes, which were not read: one side is on the Hub"
    if (first.format is WeightFormat.GGUF) != (second.format is WeightFormat.GGUF):
        yield "a GGUF has the names of llama.cpp: `entrenar-inspect convert` it to compare it with others"


def _alone(
    kind: Literal["added", "removed"],
    tensors: Mapping[str, StoredTensor],
    others: Mapping[str, StoredTensor],
    elsewhere: set[str],
) -> Iterator[Change]:
    """What one side alone has: whole modules as one."""
    alone = {name for name in tensors if name not in others and name not in elsewhere}
    for module in _whole(tree_of(tensors), alone):
        inside = list(module.tensors())
        yield Change(
            kind,
            _called(module.name, inside),
            inside[0].shape if len(inside) == 1 else None,
            sum(tensor.values for tensor in inside),
        )


def _called(module: str, inside: Sequence[StoredTensor]) -> str:
    """A whole module, or the only tensor in it."""
    return inside[0].name if len(inside) == 1 else f"{module}.*"


def _whole(module: Module, names: set[str]) -> Iterator[Module]:
    """The highest modules of which every tensor is among the names."""
    inside = [tensor.name in names for tensor in module.tensors()]
    if module.name and all(inside):
        yield module
    elif any(inside):
        for part in module.inside.values():
            yield from _whole(part, names)
        if module.inside and module.tensor is not None and module.tensor.name in names:
            yield Module(module.name, tensor=module.tensor)


def _reshaped(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> Iterator[Change]:
    for name, old in first.items():
        new = second.get(name)
        if new is not None and old.shape != new.shape:
            yield Change("reshaped", name, old.shape, None, now=new.shape)


def _retyped(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> Iterator[Change]:
    """What is stored in another dtype: whole modules as one where all that is in them changed alike."""
    changed: defaultdict[str, set[str]] = defaultdict(set)
    for name, old in first.items():
        if name in second and old.dtype != second[name].dtype:
            changed[f"{old.dtype} → {second[name].dtype}"].add(name)
    tree = tree_of(first)
    for now, names in changed.items():
        for module in _whole(tree, names):
            inside = list(module.tensors())
            yield Change(
                "retyped", _called(module.name, inside), None, sum(tensor.values for tensor in inside), now=now
            )


def _renamed(first: StoredModel, second: StoredModel) -> Iterator[tuple[str, str]]:
    """Tensors of one dtype, shape and content that each side has under a name of its own."""
    from entrenar_core.measuring.differences import same_bytes

    old, new = _alike(first, second)
    by_content = _by_content(second, new)
    for content, tensors in _by_content(first, old).items():
        for tensor in tensors:
            candidates = by_content.get(content, [])
            found = next((other for other in candidates if same_bytes(first, tensor, second, other)), None)
            if found is not None:
                candidates.remove(found)
                yield tensor.name, found.name


def _alike(first: StoredModel, second: StoredModel) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The tensors that one side alone has, of a dtype and shape that one of the other side's has too."""
    old = [tensor for name, tensor in first.tensors.items() if name not in second.tensors]
    new = [tensor for name, tensor in second.tensors.items() if name not in first.tensors]
    kinds = {_kind(tensor) for tensor in old} & {_kind(tensor) for tensor in new}
    return [tensor for tensor in old if _kind(tensor) in kinds], [tensor for tensor in new if _kind(tensor) in kinds]


def _kind(tensor: StoredTensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype.name, tensor.shape


def _by_content(model: StoredModel, tensors: Sequence[StoredTensor]) -> Mapping[object, list[StoredTensor]]:
    """Tensors by what finds those that may be equal."""
    from entrenar_core.measuring.differences import digest

    found: defaultdict[object, list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        found[_kind(tensor), digest(model, tensor)].append(tensor)
    return found


def _pairs(
    first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor], renamed: Mapping[str, str]
) -> list[tuple[StoredTensor, StoredTensor]]:
    """The tensors that both have in one shape."""
    named = {name: renamed.get(name, name) for name in first}
    found = [(tensor, second[named[name]]) for name, tensor in first.items() if named[name] in second]
    return [(old, new) for old, new in found if old.shape == new.shape]


def _told(
    first: StoredModel, second: StoredModel, old: StoredTensor, new: StoredTensor, progress: Progress | None
) -> TensorDifference:
    from entrenar_core.measuring.differences import difference

    found = difference(first, old, second, new, progress=progress)
    changed = found.differing / old.values if old.values else 0.0
    return TensorDifference(
        old.name, old.values, found.max_abs, found.mean_abs, found.cosine, changed, found.non_finite_differ
    )


def _by_module(
    model: StoredModel, told: Sequence[TensorDifference], depth: int, tolerance: float
) -> Iterator[ModuleDifference]:
    """What was told of tensors, together for each module; layers are told apart, however alike they are."""
    by_name = {tensor.name: tensor for tensor in told}
    for group in groups(tree_of({name: model.tensors[name] for name in by_name}), depth, alike=False):
        inside = [by_name[tensor.name] for tensor in group.module.tensors()]
        values = sum(tensor.values for tensor in inside)
        yield ModuleDifference(
            group.name,
            len(inside),
            sum(_differs(tensor, tolerance) for tensor in inside),
            sum(tensor.non_finite_differ for tensor in inside),
            max(tensor.max_abs for tensor in inside),
            sum(tensor.mean_abs * tensor.values for tensor in inside) / values if values else 0.0,
            min((tensor.cosine for tensor in inside if tensor.cosine is not None), default=None),
        )


def _differs(tensor: TensorDifference, tolerance: float) -> bool:
    return tensor.max_abs > tolerance or tensor.non_finite_differ


def _fails(fail_on: FailOn | None, changes: Sequence[Change], values_differ: bool) -> bool:
    structure = any(change.kind in ("added", "removed", "reshaped") for change in changes)
    match fail_on:
        case "shape":
            return structure
        case "value":
            return values_differ
        case "any":
            return bool(changes) or values_differ
    return False
