"""How long a step takes: as measured, or from its counted operations and what the machine was measured to do.

Of a job that was not run it is an estimate. Operations are those of matrix products and attention, as the tracker of
memory counts them; a machine does more of them in a second the larger a step is, so the rate is that of the models
that were measured, between them in proportion to the logarithm of their size, beyond them that of the nearest. How far
off it may be is told by the slowest and the fastest round of all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from entrenar_core.memory.calibration import Calibration, Kind, Precision, Rate
from entrenar_core.memory.jobs import InferenceJob, Job, TrainingJob
from entrenar_core.memory.machine import Machine

CALIBRATE = "run `entrenar-inspect calibrate`"
_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step, between `low_s` and `high_s`; None where they are not known. `how` says from what, or why
    not.
    """

    seconds: float | None
    how: str
    low_s: float | None = None
    high_s: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is a time."""
        return self.seconds is not None

    def times(self, steps: int) -> "StepTime":
        """Of so many steps."""
        if self.seconds is None or self.low_s is None or self.high_s is None:
            return self
        return StepTime(self.seconds * steps, self.how, self.low_s * steps, self.high_s * steps)


def precision_of(job: Job) -> Precision:
    """In which a job multiplies: that of autocast, or of its weights."""
    model = job.student if isinstance(job, TrainingJob) else job.model
    mixed = "no" if isinstance(job, InferenceJob) else job.mixed_precision
    return _PRECISIONS.get(model.dtype, "fp32") if mixed == "no" else mixed


def time_of(
    flops: int,
    precision: Precision,
    machine: Machine,
    calibration: Calibration | None,
    steps: Sequence[float] | None = None,
    *,
    kind: Kind = "training",
    trained_parameters: int = 0,
) -> StepTime:
    """The time of a step.

    Args:
        flops: of all forward and backward passes of it.
        steps: seconds that real ones took, the first left out, which took longer; then nothing else is asked.
        kind: `training`, or `reading` for forward passes alone.
        trained_parameters: what AdamW updates at the end of it.
    """
    if steps:
        number = f"{len(steps)} step{'s' * (len(steps) != 1)}"
        return StepTime(median(steps), f"measured on {number}", min(steps), max(steps))
    if calibration is None:
        return StepTime(None, f"not known: {CALIBRATE}")
    if (why := _unfit(machine, calibration)) is not None:
        return StepTime(None, why)
    asked: list[tuple[int, Kind]] = [(flops, kind)]
    if trained_parameters:
        asked.append((trained_parameters, "update"))
    return _sum(asked, precision, calibration)


def time_of_token(size_bytes: int, precision: Precision, machine: Machine, calibration: Calibration | None) -> StepTime:
    """The time in which a token is written, for which so many bytes of weights, keys and values are read."""
    return time_of(size_bytes, precision, machine, calibration, kind="decoding")


def _unfit(machine: Machine, calibration: Calibration) -> str | None:
    """Why a calibration says nothing of a machine."""
    if machine.named:
        return f"not known: of {machine.name}, only the memory is known"
    setting = calibration.setting
    if (machine.device, machine.name) != (setting.device, setting.name):
        return f"not known: the calibration is of {setting.name}, and this is {machine.name}; {CALIBRATE}"
    return None


def _sum(asked: Sequence[tuple[int, Kind]], precision: Precision, calibration: Calibration) -> StepTime:
    seconds = low_s = high_s = 0.0
    models = 0
    for amount, kind in asked:
        rates = calibration.rates_of(kind, precision)
        if not rates:
            return StepTime(None, f"not known: {kind} in {precision} was not measured on {calibration.day}")
        models = max(models, len(rates))
        seconds += amount / _rate(rates, amount)
        low_s += amount / max(rate.fastest for rate in rates)
        high_s += amount / min(rate.slowest for rate in rates)
    what = "bytes" if asked[0][1] == "decoding" else "counted operations"
    spread = "by the spread of rounds" if models == 1 else f"by the spread of {models} models"
    how = f"estimated from {what} and the rate that was measured on {calibration.day}, {spread}"
    return StepTime(seconds, how, low_s, high_s)


def _rate(rates: Sequence[Rate], amount: int) -> float:
    """Of this amount per step; `rates` begin with the smallest."""
    above = next((place for place, rate in enumerate(rates) if rate.amount >= amount), len(rates))
    if above in (0, len(rates)):
        return rates[min(above, len(rates) - 1)].per_second
    small, large = rates[above - 1], rates[above]
    share = math.log(amount / small.amount) / math.log(large.amount / small.amount)
    return math.exp((1 - share) * math.log(small.per_second) + share * math.log(large.per_second))
