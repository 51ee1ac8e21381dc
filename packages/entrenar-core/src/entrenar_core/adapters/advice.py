"""What follows from an adapter's figures: the rank that would do, of each module where they differ, and the alpha that
gives another rank the same scale.

Sentences say what was computed and nothing of how well a smaller adapter would answer, which only an evaluation tells.
Source of the scales: Hu et al. 2021, "LoRA", arXiv:2106.09685 (α / r); Kalajdzievski 2023, "A Rank Stabilization
Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732 (α / √r).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from math import sqrt

from entrenar_core.adapters.analysis import AdapterAnalysis, ModuleFigures
from entrenar_core.adapters.settings import AdapterSettings
from entrenar_core.units import percent

ENERGY = 0.99
RANKS = (8, 16, 32, 64, 128, 256)
"""The ranks that scales are shown for."""
_APART, _WORTH = 2, 0.9
"""Ranks are told apart where one kind needs so many times another's, and this leaves less than the share of values."""


@dataclass(frozen=True, slots=True)
class RankAdvice:
    """The smallest rank at which every module keeps `energy` of the squares of its singular values.

    `together` is the rank at which all modules together keep it, weak ones among them less. `pattern` has the ranks of
    the kinds of modules that need fewer, in peft's words `rank_pattern`; it is empty where that is not worth it.
    `parameters` are those of A and B then, with the pattern, and `before` those that they are now.
    """

    energy: float
    rank: int
    together: int
    largest: int
    pattern: Mapping[str, int]
    parameters: int
    before: int

    @property
    def smaller(self) -> bool:
        return self.parameters < self.before


@dataclass(frozen=True, slots=True)
class ScaleAdvice:
    """What an alpha is worth at a rank: `same` the alpha that gives each rank the adapter's scale, `plain` and
    `stabilised` the scales that its own alpha would have there, as α / r and as α / √r.
    """

    alpha: float
    rank: int
    scale: float
    rslora: bool
    same: Mapping[int, float]
    plain: Mapping[int, float]
    stabilised: Mapping[int, float]


def scale_of(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """α / r, or α / √r of rsLoRA."""
    return alpha / (sqrt(rank) if rslora else rank)


def alpha_for(scale: float, rank: int, *, rslora: bool = False) -> float:
    """The alpha that has this scale at a rank."""
    return scale * (sqrt(rank) if rslora else rank)


def rank_advice(analysis: AdapterAnalysis, energy: float = ENERGY) -> RankAdvice | None:
    """The rank from the spectra of a trained adapter; None where none of its modules does anything.

    Args:
        energy: the share that every module is to keep.
    """
    alive = analysis.alive
    if not alive:
        return None
    needed: dict[str, int] = {}
    for one in alive:
        kind = one.kind or one.module
        needed[kind] = max(needed.get(kind, 1), one.spectrum.keeping(energy))
    rank = max(needed.values())
    uniform = _parameters(analysis.modules, {}, rank)
    pattern = {kind: count for kind, count in needed.items() if count < rank}
    parameters = _parameters(analysis.modules, pattern, rank)
    if rank < _APART * min(needed.values()) or parameters > _WORTH * uniform:
        pattern, parameters = {}, uniform
    return RankAdvice(
        energy,
        rank,
        min(_together(alive, energy), rank),
        max(one.rank for one in analysis.modules),
        pattern,
        parameters,
        sum(one.values_down + one.values_up for one in analysis.modules),
    )


def scale_advice(settings: AdapterSettings, analysis: AdapterAnalysis, rank: int | None = None) -> ScaleAdvice | None:
    """What the alpha of an adapter is worth; None where it is not known, or its modules have more than one.

    Args:
        rank: another rank that is thought of.
    """
    pairs = {(one.alpha, one.rank, one.scale) for one in analysis.modules}
    if len(pairs) != 1:
        return None
    alpha, own, scale = pairs.pop()
    if alpha is None or scale is None:
        return None
    ranks = sorted({*RANKS, own, *(() if rank is None else (rank,))})
    return ScaleAdvice(
        alpha,
        own,
        scale,
        settings.rslora,
        {one: alpha_for(scale, one, rslora=settings.rslora) for one in ranks},
        {one: scale_of(alpha, one) for one in ranks},
        {one: scale_of(alpha, one, rslora=True) for one in ranks},
    )


def sentences(
    settings: AdapterSettings, analysis: AdapterAnalysis, rank: RankAdvice | None, name: str = "ADAPTER"
) -> tuple[str, ...]:
    """What the figures say, in words; the first is about the rank.

    Args:
        rank: what `rank_advice` says.
        name: what the adapter is called in commands.
    """
    if rank is None:
        return ("none of its modules changes anything: it was not trained, or its tensors were lost",)
    scale = scale_advice(settings, analysis, rank.rank)
    return (*_of_rank(rank, name), *_of_modules(analysis), *([] if scale is None else _of_scale(scale, rank)))


def _of_rank(rank: RankAdvice, name: str) -> list[str]:
    share, fewer = percent(rank.energy, 0), percent(1 - rank.parameters / rank.before, 0)
    command = f"`entrenar-lora extract --adapter {name} --rank {{}} --output DIR`"
    found = []
    if not rank.smaller:
        found.append(f"{share} of the energy takes all {rank.rank} directions in at least one module")
    elif rank.pattern:
        listed = ", ".join(f'"{kind}": {count}' for kind, count in sorted(rank.pattern.items()))
        found.append(
            f"{share} of the energy takes rank {rank.rank} in some modules and {min(rank.pattern.values())} in others: "
            f"`r: {rank.rank}` with `rank_pattern: {{{listed}}}` has {fewer} fewer "
            "parameters"
        )
    else:
        found.append(
            f"rank {rank.rank} would keep {share} of the energy of every module, with "
            f"{fewer} fewer parameters: {command.format(rank.rank)}"
        )
    if rank.together < rank.rank:
        found.append(
            f"rank {rank.together} would keep {share} of the energy of all modules together, and less of the weakest: "
            f"{command.format(rank.together)}"
        )
    return found


def _of_modules(analysis: AdapterAnalysis) -> list[str]:
    found = []
    rank = sum(one.rank for one in analysis.modules)
    if analysis.unused:
        found.append(f"{analysis.unused:,} of {rank:,} directions do nothing at all")
    for fate, meaning in (("dead", "changes nothing"), ("exploding", "stands out")):
        listed = [one for one in analysis.modules if one.fate == fate]
        if listed:
            first, more = listed[0], f", as {len(listed) - 1} more" if len(listed) > 1 else ""
            found.append(f"{first.module} {meaning}: {first.reason}{more}")
    return found


def _of_scale(scale: ScaleAdvice, rank: RankAdvice) -> list[str]:
    spelled = "α / √r" if scale.rslora else "α / r"
    found = []
    if rank.rank != scale.rank:
        found.append(
            f"at rank {rank.rank} an alpha of {scale.same[rank.rank]:.4g} gives the scale that it has, "
            f"{scale.scale:.4g} ({spelled})"
        )
    if not scale.rslora:
        wide = max(RANKS)
        found.append(
            f"its alpha of {scale.alpha:g} is a scale of {scale.scale:.4g} at rank {scale.rank}, and would be "
            f"{scale.plain[wide]:.4g} at rank {wide}, where rsLoRA (α / √r, arXiv:2312.03732) has "
            f"{scale.stabilised[wide]:.4g}: raise alpha with the rank, or use rsLoRA"
        )
    return found


def _together(modules: Sequence[ModuleFigures], energy: float) -> int:
    """The rank at which some modules together keep a share of their energy."""
    kept = [
        sum(value * value for value in same)
        for same in zip_longest(*(one.spectrum.values for one in modules), fillvalue=0.0)
    ]
    total = sum(kept)
    return next((rank for rank, so_far in enumerate(accumulate(kept), 1) if so_far >= energy * total), len(kept))


def _parameters(modules: Sequence[ModuleFigures], pattern: Mapping[str, int], rank: int) -> int:
    """Of A and B at these ranks, none of which is raised."""
    return sum(min(pattern.get(one.kind or one.module, rank), one.rank) * sum(one.shape) for one in modules)
