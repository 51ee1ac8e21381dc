"""Which tensors a model lacks that every model of its layout has."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from entrenar_core.architectures.fitting import Fit
from entrenar_core.architectures.layouts import Group, Template

MAX_MISSING = 200_000
"""No checkpoint lacks more tensors than this: whoever writes a layer of number 10⁹ does not get as many names back."""

_Places = tuple[Template, list[Sequence[int]]]


def look_for_missing(fitted: Fit) -> bool:
    """Lists what is missing; false where that is out of all proportion, so that it is no such model."""
    if any(fitted.sizes.get(size, 0) > MAX_MISSING for size in fitted.layout.counts):
        return False
    wanted = list(_wanted(fitted))
    if sum(prod(map(len, places)) - len(fitted.names(template)) for template, places in wanted) > MAX_MISSING:
        return False
    for template, places in wanted:
        names = fitted.names(template)
        if len(names) < prod(map(len, places)):
            prefix = "" if template.pattern in fitted.layout.heads else fitted.prefix
            fitted.missing += [prefix + template.at(indices) for indices in product(*places) if indices not in names]
    return True


def are_equal(sizes: Sequence[str], fitted: Fit) -> bool | None:
    """Whether sizes by these names are the same; None where one is not known."""
    found = [fitted.sizes.get(size) for size in sizes]
    return None if None in found else len(set(found)) == 1


def _wanted(fitted: Fit) -> Iterator[_Places]:
    """The templates whose tensors must be there, with the indices at which."""
    choices: defaultdict[str, list[Group]] = defaultdict(list)
    for group in fitted.layout.groups:
        if group.kind == "one_of":
            choices[group.name].append(group)
        elif group.kind == "body" or fitted.has(group) or _is_needed(group, fitted):
            yield from _at(group, fitted, None)
    for groups in choices.values():
        yield from _chosen(groups, fitted)


def _is_needed(group: Group, fitted: Fit) -> bool:
    bridge = fitted.layout.bridges.get(group.name) if group.kind == "option" else None
    return bridge is not None and are_equal(bridge, fitted) is False


def _chosen(groups: Sequence[Group], fitted: Fit) -> Iterator[_Places]:
    """Each layer has what it began with; one with nothing should have what most layers have."""
    axes = groups[0].templates[0].axes
    layers = set(range(fitted.sizes.get(axes[0], 0))) if axes else {0}
    taken = [_layers_with(group, fitted) & layers for group in groups]
    commonest = max(range(len(groups)), key=lambda number: len(taken[number]))
    taken[commonest] |= layers.difference(*taken)
    for group, own in zip(groups, taken, strict=True):
        if own:
            yield from _at(group, fitted, sorted(own))


def _layers_with(group: Group, fitted: Fit) -> set[int]:
    """The layers that have any of a group's tensors; without layers, 0 stands for the model."""
    return {indices[0] if indices else 0 for template in group.templates for indices in fitted.names(template)}


def _at(group: Group, fitted: Fit, layers: Sequence[int] | None) -> Iterator[_Places]:
    for template in group.templates:
        if not template.optional and template.name not in fitted.layout.tied:
            places: list[Sequence[int]] = [range(fitted.sizes.get(size, 0)) for size in template.axes]
            if places and layers is not None:
                places[0] = layers
            yield template, places
