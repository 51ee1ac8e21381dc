"""What is said of a plan beside its settings: what was valued, what binds, and the runners-up."""

from collections.abc import Container, Iterator, Mapping, Sequence

from entrenar_core.units import percent, size
from entrenar_lora.planning_jobs import Predictions
from entrenar_lora.planning_search import Candidate, Given, Search, Values
from entrenar_lora.profiles import Dimension, Profile
from entrenar_lora.reports.plan import RunnerUp, Setting, ValuedRow


def rows_of(
    profile: Profile, values: Values, chosen: Candidate | None, advised: Mapping[Dimension, tuple[str, str]]
) -> Iterator[ValuedRow]:
    """What a profile values, and what was chosen of it; `advised` are reason and source of what sample rows say."""
    for one in profile.values:
        why, source = advised.get(one.dimension, (one.why, one.source))
        order = tuple(told(one.dimension, value) for value in values[one.dimension])
        value = None if chosen is None else getattr(chosen, one.dimension)
        picked = None if value is None else told(one.dimension, value)
        yield ValuedRow(one.dimension, order, picked, why, source)


def told(dimension: Dimension, value: object) -> str:
    """A value in words."""
    if dimension == "checkpointing":
        return "checkpoints" if value else "no checkpoints"
    if dimension == "quantisation":
        return "weights not quantised" if value == "none" else f"{value} weights"
    if isinstance(value, tuple):
        return ",".join(value)
    if dimension == "micro_batch":
        return f"{value} row{'s' * (value != 1)} of a pass"
    return f"rank {value}" if dimension == "rank" else str(value)


_TOLD_APART: tuple[Dimension, ...] = ("rank", "quantisation", "modules", "method", "checkpointing", "micro_batch")
"""In which runners-up differ: first in what a plan is called by."""
_RUNNERS_UP = 2


def runners_up(
    search: Search,
    predictions: Predictions,
    chosen: Candidate,
    setting: Setting,
    full: float,
    advised: Container[Dimension] = (),
) -> Iterator[RunnerUp]:
    """The best plans with the next value of something: of what sample rows advised, then of what was valued least,
    which are the better ones.
    """
    found = 0
    seen = {chosen}
    valued = [one for one in reversed(list(search.values)) if one in _TOLD_APART[:4]]
    valued.sort(key=lambda one: one not in advised)
    for dimension in [*valued, *(one for one in _TOLD_APART[4:] if one in search.values)]:
        value = getattr(chosen, dimension)
        if found == _RUNNERS_UP:
            return
        if value is None:
            continue
        other, _ = search.best(without=(dimension, value))
        if other is None or other in seen:
            continue
        seen.add(other)
        found += 1
        made = predictions.setting(other, full)
        times = None
        if made.speed.flops_per_token and setting.speed.flops_per_token:
            times = setting.speed.flops_per_token / made.speed.flops_per_token
        yield RunnerUp(
            _differences(chosen, other, search.values), made, setting.needed_bytes - made.needed_bytes, times
        )


def _differences(chosen: Candidate, other: Candidate, values: Values) -> str:
    changed = [
        told(one, getattr(other, one))
        for one in values
        if getattr(other, one) != getattr(chosen, one) and None not in (getattr(other, one), getattr(chosen, one))
    ]
    return ", ".join(changed) or other.method


def binding(given: Sequence[Given], setting: Setting) -> Iterator[str]:
    """When the peak is, and what something better would have needed."""
    largest = max(setting.components.items(), key=lambda item: item[1])
    yield (
        f"the peak is in the {setting.peak_phase}, where {largest[0]} take {size(largest[1])} "
        f"({percent(largest[1] / setting.peak_bytes, 0)} of it)"
    )
    for one in given:
        what = told(one.dimension, one.value)
        if one.least_bytes is None:
            yield f"{what}: the model does not take it"
        else:
            yield f"{what}, with all that is settled before it, would need {size(one.least_bytes)} at least"


def assumptions(predictions: Predictions, chosen: Candidate) -> Iterator[str]:
    """What the prediction takes for granted."""
    from entrenar_core.memory.assumptions import assumptions_of

    estimate = predictions.estimate(chosen)
    assert estimate is not None, "it fits"
    yield from assumptions_of([predictions.job(chosen)], [estimate], predictions.constants)
    yield "an evaluation reads as many rows as a pass of training, and keeps less"
