"""Troubles that show in how the loss and the scores go.

Pure functions from lines of metrics.jsonl to what was seen. They speak only where the figures are clear, for a warning
that is often wrong is not read: trends need at least 20 optimiser steps that were told, overfitting three evaluations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from entrenar_core.diagnosis.findings import Trouble
from entrenar_core.diagnosis.series import (
    FEWEST,
    Lines,
    comparable_losses,
    diagnostics,
    evaluations,
    is_number,
    judges_vectors,
    learns_vectors,
    level,
    spikes,
    steps,
    thirds,
)

SPIKES = 3
"""So many of them are no accident."""
ROSE = 1.25
"""Of the last third of the losses to the first one."""
STUCK = 0.95
"""Of a score before training, where less is better: what stays above it has not learnt."""
STEADY = 0.75
"""Of the fall from the first third to the second: a last third that falls as much has not come near an end."""
FELL = 0.1
"""Part of the loss that a fall is worth looking at."""
OVERFITTED = 1.1
"""Of the lowest evaluation loss; the highest mean average precision of the one at the end."""


@dataclass(frozen=True, slots=True)
class _Measure:
    """A score: what it is called, and where more of it is better, something of it where less is."""

    shown: str
    cost: Callable[[float], float] = float


_MEASURES = {
    "cross_entropy": _Measure("cross-entropy"),
    "kl": _Measure("KL to the teacher"),
    "mean_average_precision": _Measure("mean average precision", lambda value: 1 / max(value, 1e-12)),
    "rank_correlation": _Measure("rank correlation with the teacher", lambda value: 1 - value),  # it may be negative
}


def not_a_number(lines: Lines) -> Trouble | None:
    """An evaluation, a gradient, or most of the last ten steps under fp16, without a finite number."""
    remedy = (
        "set `training.mixed_precision: no` (or bf16) and `teacher.dtype: float32`, lower `training.learning_rate`, "
        "and look at the rows for texts without tokens"
    )
    for step, scores in evaluations(lines):
        if not judges_vectors(scores) and not is_number(scores.get("cross_entropy")):
            return Trouble("no number", f"the evaluation after step {step} gave no finite cross-entropy", remedy)
    for step, found in diagnostics(lines):
        broken = [group for group, norm in found.get("gradient_norms", {}).items() if not is_number(norm)]
        if broken:
            groups = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
            return Trouble("no number", f"at step {step} the gradient of {groups} is not finite", remedy)
    last = steps(lines)[-10:]
    overflowed = sum(not is_number(line.get("grad_norm")) for line in last)
    if len(last) == 10 and overflowed > 5:
        seen = f"the gradient overflowed in {overflowed} of the last 10 steps that were told, which were left out"
        return Trouble("no number", seen, remedy)
    return None


def instability(lines: Lines) -> Trouble | None:
    """Spikes of the loss, a loss that rises, or a student that is worse than before training and has not learnt."""
    losses = comparable_losses(lines)
    if len(losses) < FEWEST:
        return None
    remedy = (
        "lower `training.learning_rate` (1e-5 to 1e-4 suits pretrained students), raise `training.warmup_steps`, and "
        "keep `training.max_grad_norm: 1.0`"
    )
    found = list(spikes(losses))
    if len(found) >= SPIKES:
        highest = max(losses[place] for place in found)
        seen = f"the loss jumped {len(found)} times, up to {highest:.4g} where its median is {median(losses):.4g}"
        return Trouble("instability", seen, remedy)
    first, _, last = thirds(losses)
    error = math.hypot(first.error, last.error)
    if last.value - first.value > max((ROSE - 1) * abs(first.value), 4 * error):
        seen = f"the loss rose from {first.value:.4g} in the first third to {last.value:.4g} in the last"
        return Trouble("instability", seen, remedy)
    changes = _before_and_after(lines)
    if last.value >= losses[0] and changes and all(change.ratio > ROSE for change in changes):
        told = " and ".join(map(str, changes))
        return Trouble("instability", f"training made the student worse: {told} on held-out rows", remedy)
    return None


def plateau(lines: Lines) -> Trouble | None:
    """The loss stands still near where it began, and held-out rows agree that nothing was learnt."""
    told = steps(lines)
    losses, changes = comparable_losses(lines), _before_and_after(lines)
    if not changes or len(losses) != len(told) or not losses:
        return None
    # before its peak, the learning rate is too small to say anything
    peak = max(range(len(told)), key=lambda place: told[place].get("learning_rate", 0.0))
    after_peak = losses[peak:]
    if len(after_peak) < FEWEST:
        return None
    _, middle, last = thirds(after_peak)
    still = abs(middle.value - last.value) <= max(0.02 * abs(middle.value), 3 * math.hypot(middle.error, last.error))
    stuck = all(change.ratio > STUCK for change in changes)
    if not still or not stuck or last.value < 0.9 * losses[0]:
        return None
    softer = "" if learns_vectors(lines) else "lower `distillation.temperature` to 2 or less, "
    return Trouble(
        "plateau",
        f"the loss stands still at {last.value:.4g}, from {losses[0]:.4g}; on held-out rows "
        f"{' and '.join(map(str, changes))}",
        f"{softer}raise `training.learning_rate`, and start the student from layers of the teacher "
        "(`student.init_from`)",
    )


def slow_convergence(lines: Lines) -> Trouble | None:
    """At the end of a training, the loss falls as fast as it did in the middle."""
    losses = comparable_losses(lines)
    if len(losses) < FEWEST:
        return None
    first, middle, last = thirds(losses)
    early, late = first.value - middle.value, middle.value - last.value
    certain = late > 3 * math.hypot(middle.error, last.error)
    if not certain or first.value - last.value < FELL * abs(first.value) or late < STEADY * early:
        return None
    leading = ", or let the teacher lead at first: `distillation.alpha: {schedule: linear, start: 0.9, end: 0.1}`"
    return Trouble(
        "slow convergence",
        f"the loss still fell at the end as it did before: {first.value:.4g}, {middle.value:.4g}, {last.value:.4g} "
        "in the thirds of the training",
        "raise `training.epochs` or `training.learning_rate`" + ("" if learns_vectors(lines) else leading),
    )


def overfitting(lines: Lines) -> Trouble | None:
    """The loss on held-out rows rises from its lowest while that in training goes on falling; of a sentence encoder,
    whose losses have no labels, its mean average precision falls from its highest.
    """
    name = "mean_average_precision" if learns_vectors(lines) else "cross_entropy"  # what `select: best` goes by
    measure = _MEASURES[name]
    found = [(step, scores[name]) for step, scores in evaluations(lines) if step > 0 and is_number(scores.get(name))]
    if len(found) < 3:
        return None
    best = min(range(len(found)), key=lambda place: measure.cost(found[place][1]))
    (best_step, at_best), (last_step, last) = found[best], found[-1]
    worse = measure.cost(last) > OVERFITTED * measure.cost(at_best) and abs(last - at_best) > 0.02
    told = steps(lines)
    losses = comparable_losses(lines)
    if best > len(found) - 3 or not worse or len(losses) != len(told):
        return None
    before = [value for line, value in zip(told, losses, strict=True) if line["step"] <= best_step][-5:]
    after = [value for line, value in zip(told, losses, strict=True) if line["step"] > best_step][-5:]
    if not before or not after or level(after).value > STUCK * level(before).value:
        return None
    return Trouble(
        "overfitting",
        f"on held-out rows {measure.shown} {'rose' if last > at_best else 'fell'} from {at_best:.4g} at step "
        f"{best_step} to {last:.4g} at step {last_step}, while the loss in training fell from "
        f"{level(before).value:.4g} to {level(after).value:.4g}",
        "give more rows (unlabelled ones do), set `training.select: best` or `training.early_stopping`, raise "
        "`student.dropout` or `training.weight_decay`",
    )


@dataclass(frozen=True, slots=True)
class _Change:
    """A score before training, or in the first evaluation, and in the last; `ratio` is above 1 for the worse."""

    shown: str
    before: float
    after: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.shown} {self.before:.4g} → {self.after:.4g}"


def _before_and_after(lines: Lines) -> list[_Change]:
    found = evaluations(lines)
    if len(found) < 2:
        return []
    first, last = found[0][1], found[-1][1]
    return [
        _change(measure, first[name], last[name])
        for name, measure in _MEASURES.items()
        if is_number(first.get(name)) and is_number(last.get(name))
    ]


def _change(measure: _Measure, before: float, after: float) -> _Change:
    costs = measure.cost(before), measure.cost(after)
    return _Change(measure.shown, before, after, costs[1] / max(costs[0], 1e-12))
