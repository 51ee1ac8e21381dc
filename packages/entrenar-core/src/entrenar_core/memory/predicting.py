"""From a job to its memory: the whole of it traced, or a few layers of deep models and the others told from these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from entrenar_core.memory.adapting import adapt, has_layers_of_its_own
from entrenar_core.memory.closed_form import closed_form, looks_inside
from entrenar_core.memory.closed_inference import assumptions_of, closed_inference
from entrenar_core.memory.depth import Depths, depths_of, extrapolated
from entrenar_core.memory.estimate import Estimate, Trace
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Job, ReadingJob, Sharding, TrainingJob
from entrenar_core.memory.lengths import lengths_of, trace_context
from entrenar_core.memory.positions import require_positions
from entrenar_core.memory.sharding import sharded
from entrenar_core.memory.spread_jobs import is_spread, spread_trace
from entrenar_core.memory.steps import Layers, trace_reading, trace_training
from entrenar_core.memory.units import facts_of

Tracer = Callable[[Sequence[Layers | None]], Trace]
"""From how many layers of each model there are, all of them where it is None, to a trace."""


def predict(job: Job, granularity: int = 1) -> Estimate:
    """What a job takes of a device.

    Args:
        job: what is done.
        granularity: what the allocator of the device rounds the bytes of a tensor up to.

    Raises:
        ModelError: transformers cannot make a model, or adapters do not fit it.
        ConfigError: a loss does not fit the models.
        UsageError: a context is longer than the positions of a model.
    """
    try:
        found = _predicted(job, granularity)
    except _IMPOSSIBLE as error:
        found = closed_form(job, _reason(error))
    return _shared(found, job)


def _shared(estimate: Estimate, job: Job) -> Estimate:
    """Of each of several devices, where there are several."""
    if is_spread(job):
        made = spread_trace(estimate.trace, job)
    elif isinstance(job, ReadingJob) or job.sharding == Sharding():
        return estimate
    else:
        made = sharded(estimate.trace, facts_of(job), job.sharding)
    said = (*estimate.assumptions, *made.assumptions)
    return replace(estimate, trace=made.trace, host_bytes=made.host_bytes, assumptions=said)


_IMPOSSIBLE = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)
"""What tensors without data raise where an operation asks for values, or a model's own code is not made for them."""


def _reason(error: Exception) -> str:
    """Why a job cannot be traced.

    Raises:
        Exception: the error itself, where it is of code of entrenar, whose mistakes no formula is to hide.
    """
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    ours = place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith("entrenar")
    if ours and not isinstance(error, RuntimeError):
        raise error
    first = str(error).strip().partition("\n")[0]
    return f"its operations cannot be followed without data ({type(error).__name__}: {first})"


def _predicted(job: Job, granularity: int) -> Estimate:
    match job:
        case TrainingJob():
            depths = {} if looks_inside(job.terms or ()) else dict(_of_training(job))
            return _told(depths, 1 + len(job.teachers), lambda layers: trace_training(job, layers, granularity))
        case ReadingJob():
            depths = dict(_depths([(1, job.model)]))
            return _told(depths, 2, lambda layers: trace_reading(job, layers[1], granularity))
        case InferenceJob():
            return _inference(job, granularity)


def _of_training(job: TrainingJob) -> Iterator[tuple[int, Depths]]:
    """Of a student, its layers as adapters leave them, where these are not the same for all; and of live teachers."""
    if job.adapters is not None and has_layers_of_its_own(job.adapters):
        model = empty_model(job.student)
        adapt(model, job.adapters, job.student)
        if (found := depths_of(model)) is not None:
            yield 0, found
    else:
        yield from _depths([(0, job.student)])
    yield from _depths([(number, one.model) for number, one in enumerate(job.teachers, 1) if one.cached is None])


def _inference(job: InferenceJob, granularity: int) -> Estimate:
    """Formulas, where it cannot be traced, are of its own, which know of caches."""
    require_positions(job.model.config, job.context, job.model.name)
    try:
        depths = dict(_depths([(0, job.model)]))
        found = _told(depths, 1, lambda layers: trace_context(job, layers[0], granularity))
    except _IMPOSSIBLE as error:
        return closed_inference(job, _reason(error))
    said = (*found.assumptions, *assumptions_of(job))
    if (lengths := lengths_of(job.model.config.to_dict(), job.context)) is None:
        return replace(found, assumptions=said)
    short = f"the context is told from four short ones, the longest of {lengths.followed[-1]} tokens"
    return replace(found, method="extrapolated", assumptions=(*said, short))


def _told(depths: Mapping[int, Depths], models: int, trace: Tracer) -> Estimate:
    """By as few layers of each model as tell of all of them."""
    short = [depths[number].short if number in depths else None for number in range(models)]
    base = trace(short)
    if not depths:
        return Estimate(base, "traced")
    longer = {}
    for number, one in depths.items():
        layers = list(short)
        layers[number] = one.short + one.period
        longer[number] = trace(layers)
    traced = {number: (one.short, one.short + one.period) for number, one in depths.items()}
    return Estimate(extrapolated(base, longer, depths), "extrapolated", traced)


def _depths(models: Sequence[tuple[int, HeldModel]]) -> Iterator[tuple[int, Depths]]:
    """Of the models that are deep enough."""
    for number, held in models:
        if (found := _Asked(held).depths()) is not None:
            yield number, found


class _Asked:
    """A model by its configuration, so that what is found out of it is found out once."""

    def __init__(self, held: HeldModel) -> None:
        self.held = held
        self.key = held.config.to_json_string(use_diff=False), held.task

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key

    def depths(self) -> Depths | None:
        return _depths_of(self)


@lru_cache(maxsize=16)
def _depths_of(asked: _Asked) -> Depths | None:
    return depths_of(empty_model(asked.held))
