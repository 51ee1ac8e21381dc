"""Whether a model is of a layout at all, or of another kind with many of the same names."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping

from entrenar_core.architectures.completeness import are_equal
from entrenar_core.architectures.fitting import Fit, Indices, is_beside
from entrenar_core.architectures.layouts import Template

_FEW = 2  # tensors that may be wrong without a doubt of what the model is: a renamed one is missing, and strange


def is_of(fitted: Fit) -> bool:
    """Whether a checkpoint has the tensors that distinguish the layout, and the layout two thirds of what it has."""
    names = {template.name for template in fitted.found}
    unknown = {fitted.own(pattern): same for pattern, same in fitted.extra}
    foreign = sum(len(same) for pattern, same in fitted.extra if not is_beside(pattern, fitted))
    return (
        fitted.explained >= 2 * foreign
        and all(any(name in names for name in either) for either in fitted.layout.distinguishing)
        and fitted.layout.never.isdisjoint(unknown)
    )


def is_another(fitted: Fit) -> bool:
    """Whether what differs, differs in most layers, or much does: then nothing was lost or renamed, it is a model of
    another kind. Its sizes must have been measured.
    """
    wrong = {mismatch.name for mismatch in fitted.mismatched}
    expected = list(_expected(fitted))
    present = _present(fitted)
    strange = [(pattern, names) for pattern, names in fitted.extra if _is_strange(pattern, fitted)]
    lost = [template for template in expected if all(name in wrong for name in fitted.names(template).values())]
    return (
        any(are_equal(sizes, fitted) for sizes in fitted.layout.unequal)
        or any(_differs(template, fitted, present, wrong) for template in expected)
        or any(_is_common(names, present) for _, names in strange)
        or len(strange) + len(lost) > max(_FEW, len(expected) // 10)
    )


def _expected(fitted: Fit) -> Iterable[Template]:
    """The tensors of the body that all models have, and those of the options that this one took."""
    for group in fitted.layout.groups:
        if group.kind == "body" or (group.kind == "option" and fitted.has(group)):
            yield from (template for template in group.templates if not template.optional)


def _present(fitted: Fit) -> Mapping[str, set[int]]:
    """The layers of each stack that have anything."""
    present: defaultdict[str, set[int]] = defaultdict(set)
    for template, names in fitted.found.items():
        if template.axes:
            present[template.axes[0]].update(indices[0] for indices in names)
    return present


def _differs(template: Template, fitted: Fit, present: Mapping[str, set[int]], wrong: Container[str]) -> bool:
    """Whether most layers lack a tensor, or have it in another shape."""
    layers = present.get(template.axes[0], set()) if template.axes else set()
    if not layers:
        return False
    right = {indices[0] for indices, name in fitted.names(template).items() if name not in wrong}
    return len(layers) > 1 and 2 * len(layers - right) > len(layers)


def _is_strange(pattern: str, fitted: Fit) -> bool:
    """Whether an unknown tensor is in the body, and not only something more beside a known weight."""
    own = fitted.own(pattern)
    inside = any(name.partition(".")[0] == own.partition(".")[0] for name in fitted.layout.body)
    return inside and (own.endswith((".weight", ".bias")) or not is_beside(pattern, fitted))


def _is_common(names: Iterable[Indices], present: Mapping[str, set[int]]) -> bool:
    """Whether most layers have a tensor."""
    layers = {numbers[0] for numbers in names if numbers}
    return len(layers) > 1 and any(2 * len(layers & own) > len(own) for own in present.values())
