"""Settings that change as training goes on, each a function of the optimiser step alone: a resumed run needs no state.

Without torch, so that a plan can show where a schedule leads.
"""

import math

from entrenar_core.config.schedules import Remainder, Schedule, Setting


def moves(setting: Setting) -> bool:
    """Whether it is another number in some step than in another."""
    if isinstance(setting, Remainder):
        return moves(setting.of)
    return isinstance(setting, Schedule) and (setting.schedule != "constant" or setting.warmup_steps > 0)


def value_at(setting: Setting, step: int, total_steps: int) -> float:
    """What a setting is in optimiser step `step`, counted from 0, of `total_steps`.

    Over the warm-up it rises or falls linearly from `warmup_from` to `start`. Then it stays (constant), or goes to
    `end`, which the last step has: in even steps (linear), along half a cosine, or by an even factor (exponential).

    A run of one step after its warm-up stays at `start`.
    """
    if isinstance(setting, Remainder):
        return 1 - value_at(setting.of, step, total_steps)
    if not isinstance(setting, Schedule):
        return setting
    begins = setting.start if setting.warmup_from is None else setting.warmup_from
    if step < setting.warmup_steps:
        return begins + (setting.start - begins) * step / setting.warmup_steps
    end = setting.start if setting.end is None else setting.end
    done = min((step - setting.warmup_steps) / max(total_steps - 1 - setting.warmup_steps, 1), 1.0)
    match setting.schedule:
        case "linear":
            return setting.start + (end - setting.start) * done
        case "cosine":
            return end + (setting.start - end) * (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return float(setting.start * (end / setting.start) ** done)
        case "constant":
            return setting.start
