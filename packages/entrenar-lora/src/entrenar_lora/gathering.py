"""The figures of an adapter's modules put together: by kind, by layer and over all, and as a strip."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from entrenar_lora.reports.inspect import Figures, GroupRow, ModuleRow, Strip

if TYPE_CHECKING:
    from entrenar_core.adapters.analysis import ModuleFigures

FIGURES: Mapping[str, Callable[[Figures], float | None]] = {
    "relative": lambda one: one.relative,
    "norm": lambda one: one.frobenius,
    "spectral": lambda one: one.spectral,
    "utilization": lambda one: one.utilization,
    "effective-rank": lambda one: one.effective_rank,
    "stable-rank": lambda one: one.stable_rank,
    "k99": lambda one: float(one.k99),
    "intruders": lambda one: None if one.intruders is None else float(one.intruders),
}
"""What the strip can show of each module."""
Number = TypeVar("Number", int, float)


def distinct(numbers: Iterable[Number]) -> tuple[Number, ...]:
    """Every number once, in their order."""
    return tuple(sorted(set(numbers)))


def module_row(one: "ModuleFigures") -> ModuleRow:
    """One module, with its figures."""
    return ModuleRow(
        one.module,
        one.stack,
        one.layer,
        one.kind,
        one.shape,
        one.rank,
        one.alpha,
        one.scale,
        one.dtypes,
        one.down,
        one.up,
        gathered([one]),
        one.spectrum.values,
        one.fate,
        one.reason,
        None if one.base is None or one.base.intruders is None else one.base.exact,
    )


def gathered(modules: "Sequence[ModuleFigures]") -> Figures:
    """The figures of several modules together."""
    from entrenar_core.adapters.analysis import relative_of

    alive = [one for one in modules if one.fate != "dead"]
    spectra = [one.spectrum for one in alive]
    searched = [one.base for one in modules if one.base is not None and one.base.intruders is not None]
    return Figures(
        parameters=sum(one.parameters for one in modules),
        effective_rank=_mean([one.effective_rank for one in spectra]),
        utilization=_mean([one.utilization for one in alive]),
        stable_rank=_mean([one.stable_rank for one in spectra]),
        participation=_mean([one.participation for one in spectra]),
        k90=max((one.keeping(0.90) for one in spectra), default=0),
        k99=max((one.keeping(0.99) for one in spectra), default=0),
        unused=sum(one.spectrum.unused for one in modules),
        frobenius=sqrt(sum(one.spectrum.frobenius**2 for one in modules)),
        spectral=max((one.spectrum.spectral for one in modules), default=0.0),
        sparsity=_weighted(
            [(one.zeros_down, one.values_down) for one in modules] + [(one.zeros_up, one.values_up) for one in modules]
        ),
        zeros_down=_weighted([(one.zeros_down, one.values_down) for one in modules]),
        zeros_up=_weighted([(one.zeros_up, one.values_up) for one in modules]),
        relative=relative_of(modules),
        intruders=sum(one.intruders or 0 for one in searched) if searched else None,
        searched=sum(one.searched for one in searched) if searched else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _weighted(shares: Sequence[tuple[float, int]]) -> float:
    total = sum(count for _, count in shares)
    return sum(share * count for share, count in shares) / total if total else 0.0


def groups_of(modules: "Sequence[ModuleFigures]", key: "Callable[[ModuleFigures], str]") -> tuple[GroupRow, ...]:
    """The modules that have a key in common, in the order in which keys come."""
    found: dict[str, list[ModuleFigures]] = {}
    for one in modules:
        found.setdefault(key(one), []).append(one)
    return tuple(
        GroupRow(name, len(same), distinct(one.rank for one in same), gathered(same)) for name, same in found.items()
    )


def kind_names(modules: "Sequence[ModuleFigures]") -> Mapping[tuple[str, str], str]:
    """Short names of the kinds of modules, by stack and kind: the last parts that nothing else ends with, after the
    first part of the stack where several stacks have the kind.
    """
    places = list(dict.fromkeys((one.stack, one.kind) for one in modules))
    kinds = [kind for _, kind in places]
    names = {}
    for stack, kind in places:
        several = stack and kinds.count(kind) > 1
        names[stack, kind] = (
            f"{stack.partition('.')[0]} {_shortest(kind, kinds)}" if several else _shortest(kind, kinds)
        )
    whole = {place: ".*.".join(filter(None, place)) for place in places}
    return names if len(set(names.values())) == len(names) else whole


def _shortest(kind: str, kinds: Sequence[str]) -> str:
    """The fewest last parts of a name that no other ends with."""
    parts = kind.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if {other for other in kinds if f".{other}".endswith(f".{end}")} == {kind}), kind)


def strip_of(modules: "Sequence[ModuleFigures]", names: Mapping[tuple[str, str], str], figure: str) -> Strip | None:
    """A figure of each module that lies in a layer; None where none does, or none has the figure."""
    inside = [one for one in modules if one.layer is not None]
    layers = distinct(one.layer or 0 for one in inside)
    at = {layer: place for place, layer in enumerate(layers)}
    rows: dict[str, list[float | None]] = {}
    for one in inside:
        row = rows.setdefault(names[one.stack, one.kind], [None] * len(layers))
        row[at[one.layer or 0]] = FIGURES[figure](gathered([one]))
    if all(value is None for row in rows.values() for value in row):
        return None
    fates = {
        fate: tuple((names[one.stack, one.kind], one.layer or 0) for one in inside if one.fate == fate)
        for fate in ("dead", "exploding")
    }
    return Strip(figure, layers, {name: tuple(row) for name, row in rows.items()}, fates["dead"], fates["exploding"])
