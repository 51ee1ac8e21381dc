"""Troubles of a training, recognised from its metrics: those of `trends`, of single losses, of gradients and of the
teacher's temperature.

Gradients and the teacher's entropy are in the diagnostics of `training.diagnose_every` alone.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from statistics import median

from entrenar_core.diagnosis.findings import Trouble
from entrenar_core.diagnosis.series import FEWEST, Lines, diagnostics, is_number, steps, term
from entrenar_core.diagnosis.trends import instability, not_a_number, overfitting, plateau, slow_convergence

VANISHED = 1e-6
"""Part of a term's first value."""
DEAD = 1e-6
"""Part of the median gradient norm of the other groups."""
FLAT = 0.98
"""Of the logarithm of the number of classes: an entropy above it tells none from the others."""
DECIDED = 0.9
"""Of the same: a teacher below it at temperature 1 has something to say."""
_LABELS = re.compile(r"cross_entropy(_\d+)?")


def vanished_losses(lines: Lines) -> Iterator[Trouble]:
    """Terms of the loss that are next to nothing over the last third."""
    told = steps(lines)
    labels = dict.fromkeys(label for line in told for label in line.get("losses", ()))
    for label in labels:
        values = term(told, label)
        if _LABELS.fullmatch(label):  # zero where a step has no label
            values = [value for value in values if value != 0]
        if len(values) < FEWEST:
            continue
        highest = max(map(abs, values[-(len(values) // 3) :]))
        if highest <= max(VANISHED * abs(values[0]), 1e-9):
            yield Trouble(
                "vanished loss",
                f"`{label}` was {highest:.2g} or less over the last third, from {values[0]:.4g}",
                "it teaches nothing: look at its `top_k`, `entropy_threshold` and `layers`, or take it out",
                label,
            )


def dead_gradients(lines: Lines) -> Iterator[Trouble]:
    """Groups of parameters that train and get no gradient, three times in a row."""
    found = [line.get("gradient_norms", {}) for _, line in diagnostics(lines)][-3:]
    if len(found) < 3:
        return
    for group in found[-1]:
        if all(_is_dead(group, norms) for norms in found):
            others = median(norm for name, norm in found[-1].items() if name != group and is_number(norm))
            projection = group.startswith(PROJECTIONS)
            yield Trouble(
                "dead projection" if projection else "dead gradient",
                f"the gradient of {group} is {found[-1][group]:.2g}, that of the others {others:.2g}",
                "it does not learn: look at the layers of its loss and at its `projection`, or take the loss out"
                if projection
                else "it does not learn: is it frozen, or cut off from every loss?",
                group,
            )


PROJECTIONS = "projections of "
"""How groups of parameters that belong to losses are called, before the name of the loss."""


def _is_dead(group: str, norms: Mapping[str, float]) -> bool:
    others = [norm for name, norm in norms.items() if name != group and is_number(norm)]
    norm = norms.get(group)
    return bool(others) and norm is not None and is_number(norm) and norm < DEAD * median(others)


def flat_teacher(lines: Lines) -> Iterator[Trouble]:
    """What the diagnostics that came last say of the teacher's entropy at the temperatures in use."""
    found = [line for _, line in diagnostics(lines) if "teacher_entropy" in line]
    if found:
        entropies = {float(temperature): entropy for temperature, entropy in found[-1]["teacher_entropy"].items()}
        yield from flatness(entropies, found[-1]["classes"])


def flatness(entropies: Mapping[float, float], classes: int) -> Iterator[Trouble]:
    """Temperatures that leave nothing of what the teacher knows, or a teacher that knows nothing.

    Args:
        entropies: mean entropy in nats at each temperature in use, and at 1.
        classes: how many there are; log of it is the largest entropy.
    """
    most = math.log(classes) if classes > 1 else 0.0
    if most == 0 or not all(map(is_number, entropies.values())):
        return
    if entropies[1.0] >= FLAT * most:
        yield Trouble(
            "undecided teacher",
            f"its mean entropy at temperature 1 is {entropies[1.0]:.4g} nats, and {most:.4g} is knowing nothing",
            "fit it to the labels (`teacher.finetune`), or take another one",
        )
    elif entropies[1.0] <= DECIDED * most:
        for temperature, entropy in entropies.items():
            if temperature > 1 and entropy >= FLAT * most:
                yield Trouble(
                    "flat temperature",
                    f"at temperature {temperature:g} the teacher's mean entropy is {entropy:.4g} nats of at most "
                    f"{most:.4g}: all {classes:,} look alike, and at temperature 1 it is {entropies[1.0]:.4g}",
                    "lower `distillation.temperature`; `entrenar-distill diagnose` shows where it says most",
                    f"{temperature:g}",
                )


_One = Callable[[Lines], Trouble | None]
_Many = Callable[[Lines], Iterator[Trouble]]
_ALONE: tuple[_One, ...] = (not_a_number, instability, plateau, slow_convergence, overfitting)
_SEVERAL: tuple[_Many, ...] = (vanished_losses, dead_gradients, flat_teacher)


def find_troubles(lines: Lines, *, ended: bool = True) -> tuple[Trouble, ...]:
    """All troubles that the lines show, the gravest first.

    Args:
        lines: of metrics.jsonl, in order.
        ended: whether the training is over: before, nothing can be said of how it converges.
    """
    found = [trouble for look in _ALONE if (trouble := look(lines)) is not None]
    found += [trouble for search in _SEVERAL for trouble in search(lines)]
    names = {trouble.name for trouble in found}
    if names & {"no number", "instability"} or not ended:  # what does not converge says nothing of its speed
        found = [trouble for trouble in found if trouble.name not in ("plateau", "slow convergence")]
    if "vanished loss" in names:  # which is why nothing moves
        found = [trouble for trouble in found if trouble.name != "plateau"]
    return tuple(found)
