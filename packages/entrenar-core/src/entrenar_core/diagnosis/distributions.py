"""The teacher's distributions, measured in one pass over rows of logits: on labels, and by temperature.

At the inverse temperature β = 1/T, with Z = Σ exp(β z), everything that is asked follows from three numbers of a row:
log Z, the mean E[z] and the variance Var[z] of its logits under the softened distribution. Its entropy is
log Z − β E[z], with the slope −β Var[z] in β; the cross-entropy with a label y is log Z − β z_y, with the slope
E[z] − z_y, and it is convex in β. So values and slopes on a grid of temperatures are enough to find, by a cubic in each
interval, the temperature where a slope is zero or an entropy is reached, and no row is read twice.

Shapes: N rows that count, V classes or vocabulary, G temperatures.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.diagnosis.calibration import Bins
from entrenar_core.diagnosis.findings import AtTemperature, OnLabels, TemperatureAdvice
from entrenar_core.diagnosis.grid import crossing
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.models.rows import Rows

GRID = tuple(2 ** (power / 2) for power in range(-8, 13))
"""Temperatures from 1/16 to 64, two an octave."""
SHOWN = (1.0, 2.0, 4.0, 8.0)
TOPS = (1, 5, 10, 100)
TILE = 256
"""Rows of logits at a time."""
_RULED_OUT = -1e5
"""A logit so far below the largest has no probability at any temperature of the grid."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of rows of logits under softmax(β z): log Σ exp(β z), the mean and the variance of z, each (N,)."""

    log_partition_N: Tensor
    mean_N: Tensor
    variance_N: Tensor


def moments(logits_NV: Tensor, temperatures: Sequence[float]) -> Iterator[Moments]:
    """Of each row at each temperature, relative to its largest logit, in fp32 or better. Logits may hold −inf.

    Raises:
        ValueError: a temperature is not positive.
    """
    if min(temperatures) <= 0:
        raise ValueError(f"temperature must be positive, got {min(temperatures)}")
    below_NV = relative(logits_NV)
    squares_NV, weights_NV = below_NV.square(), torch.empty_like(below_NV)
    for temperature in temperatures:
        torch.mul(below_NV, 1 / temperature, out=weights_NV).exp_()
        total_N = weights_NV.sum(-1)
        mean_N = torch.einsum("nv,nv->n", weights_NV, below_NV) / total_N
        square_N = torch.einsum("nv,nv->n", weights_NV, squares_NV) / total_N
        yield Moments(total_N.log(), mean_N, (square_N - mean_N.square()).clamp_min(0))


def entropy(at: Moments, temperature: float) -> Tensor:
    """Of each row at the temperature of its moments, in nats, (N,): log Z − β E[z]."""
    return at.log_partition_N - at.mean_N / temperature


def relative(logits_NV: Tensor) -> Tensor:
    """Logits less the largest of their row, and none of them infinite."""
    logits_NV = at_least_fp32(logits_NV)
    return (logits_NV - logits_NV.amax(-1, keepdim=True)).clamp_min(_RULED_OUT)


class TeacherStudy:
    """Adds up, over any number of batches, what is told of a teacher. Sums are in 64 bits."""

    def __init__(self, temperatures: Sequence[float]) -> None:
        self.temperatures = tuple(sorted({*GRID, *SHOWN, *temperatures}))
        self.shown = tuple(sorted({*SHOWN, *temperatures}))
        self.targets = self.classes = 0
        self.bins = Bins()
        self.cross_entropy = 0.0
        grid = len(self.temperatures)
        self.entropy_G, self.entropy_slope_G, self.label_slope_G, self.label_curve_G = (
            torch.zeros(grid, dtype=torch.float64) for _ in range(4)
        )
        self.mass_GK = torch.zeros(len(self.shown), len(TOPS), dtype=torch.float64)

    @torch.no_grad()
    def add(self, teacher: Rows, labels_N: Tensor) -> None:
        """The rows of a batch that count, in tiles; a label may be −1 or −100, which is none."""
        for start in range(0, len(teacher), TILE):
            tile = slice(start, start + TILE)
            self._add(at_least_fp32(teacher.of(tile)), labels_N[tile])

    def _add(self, logits_NV: Tensor, labels_N: Tensor) -> None:
        self.targets, self.classes = self.targets + len(logits_NV), logits_NV.shape[-1]
        labelled_N = (labels_N >= 0) & (labels_N != IGNORED)
        label_N = logits_NV.gather(-1, labels_N.clamp_min(0).unsqueeze(-1)).squeeze(-1) - logits_NV.amax(-1)
        top_NK = relative(logits_NV).topk(min(max(TOPS), self.classes), -1).values
        for place, (temperature, at) in enumerate(
            zip(self.temperatures, moments(logits_NV, self.temperatures), strict=True)
        ):
            beta = 1 / temperature
            sums = torch.stack(
                [
                    entropy(at, temperature).double().sum(),
                    (-beta * at.variance_N).double().sum(),
                    (at.mean_N - label_N)[labelled_N].double().sum(),
                    at.variance_N[labelled_N].double().sum(),
                ]
            ).cpu()
            for into, value in zip(self._sums(), sums, strict=True):
                into[place] += value
            if temperature in self.shown:
                share_NK = (beta * top_NK - at.log_partition_N.unsqueeze(-1)).exp().cumsum(-1)
                self.mass_GK[self.shown.index(temperature)] += _at_tops(share_NK)
            if temperature == 1:
                nll_N = (at.log_partition_N - label_N)[labelled_N]
                self.cross_entropy += float(nll_N.double().sum())
                correct_N = (logits_NV.argmax(-1) == labels_N)[labelled_N]
                self.bins.add((-at.log_partition_N).exp()[labelled_N], correct_N)

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.entropy_G, self.entropy_slope_G, self.label_slope_G, self.label_curve_G

    def on_labels(self) -> OnLabels | None:
        """The teacher on the labels; None where there is none."""
        labels = self.bins.rows
        if labels == 0:
            return None
        # the slope of the cross-entropy in β, and its own slope, against log β: smooth, and of one sign change
        slopes = [float(value) / labels for value in self.label_slope_G]
        curves = [float(c) / labels / t for c, t in zip(self.label_curve_G, self.temperatures, strict=True)]
        return OnLabels(
            labels,
            self.bins.accuracy,
            self.cross_entropy / labels,
            self.bins.error,
            # it is convex in β: without a change of sign it falls, or rises, all the way
            self._temperature_where(slopes, curves, 0.0) if slopes[0] > 0 > slopes[-1] else None,
        )

    def entropies(self) -> dict[float, float]:
        """The mean entropy at each temperature, in nats."""
        return {
            temperature: float(total) / max(self.targets, 1)
            for temperature, total in zip(self.temperatures, self.entropy_G, strict=True)
        }

    def by_temperature(self) -> tuple[AtTemperature, ...]:
        """The distributions at the temperatures that are shown."""
        entropies = self.entropies()
        rows = []
        for temperature, mass_K in zip(self.shown, self.mass_GK, strict=True):
            entropy = entropies[temperature]
            mass = {
                top: float(share) / max(self.targets, 1)
                for top, share in zip(TOPS, mass_K, strict=True)
                if top < self.classes
            }
            rows.append(AtTemperature(temperature, entropy, math.exp(entropy), mass))
        return tuple(rows)

    def advice(self) -> TemperatureAdvice:
        """The temperature, at least 1, where the effective support is √V, and so the mean entropy ½ log V: half-way
        between one class for certain and all of them alike. A rule of thumb, that looks at the teacher alone.
        """
        target = math.log(max(self.classes, 1)) / 2
        if self.entropies()[1.0] >= target:
            return TemperatureAdvice(1.0, math.exp(target))
        values = list(self.entropies().values())
        # dH/d log β = β · (−β Var)
        slopes = [
            float(slope) / max(self.targets, 1) / temperature
            for slope, temperature in zip(self.entropy_slope_G, self.temperatures, strict=True)
        ]
        return TemperatureAdvice(self._temperature_where(values, slopes, target), math.exp(target))

    def _temperature_where(self, values: Sequence[float], slopes: Sequence[float], level: float) -> float | None:
        places = [-math.log(temperature) for temperature in self.temperatures]  # log β
        found = crossing(places, values, slopes, level)
        return None if found is None else math.exp(-found)


def _at_tops(share_NK: Tensor) -> Tensor:
    """The summed share of the likeliest `TOPS`; all of them where there are fewer."""
    most = share_NK.shape[-1]
    return torch.stack([share_NK[:, min(top, most) - 1].double().sum() for top in TOPS]).cpu()
