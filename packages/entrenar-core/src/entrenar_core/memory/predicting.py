"""From a job to its memory: the whole of it traced, or a few layers of deep models and the others told from these."""

from collections.abc import Iterator

from entrenar_core.config.desugaring import Term
from entrenar_core.config.losses import ExitLoss, compares_layers
from entrenar_core.memory.depth import Depths, depths_of, extrapolated
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import HeldModel, Job, TrainingJob
from entrenar_core.memory.steps import Layers, trace_training


def predict(job: Job) -> Estimate:
    """What a job takes.

    Raises:
        ModelError: transformers cannot make a model, or adapters do not fit it.
        ConfigError: a loss does not fit the models.
    """
    assert isinstance(job, TrainingJob)
    depths = {} if _looks_inside(job.terms or ()) else dict(_depths(job))
    numbers = range(1 + len(job.teachers))
    short: list[Layers | None] = [range(depths[number].short) if number in depths else None for number in numbers]
    base = trace_training(job, short)
    longer = {}
    for number, one in depths.items():
        layers = [range(one.short + one.period) if number == other else short[other] for other in numbers]
        longer[number] = trace_training(job, layers)
    trace = extrapolated(base, longer, depths) if depths else base
    return Estimate(trace, "extrapolated" if depths else "traced", (), 0)


def _looks_inside(terms: tuple[Term, ...]) -> bool:
    """Whether losses look at single layers, so that none can be left out."""
    return any(compares_layers(term.entry) or isinstance(term.entry, ExitLoss) for term in terms)


def _depths(job: TrainingJob) -> Iterator[tuple[int, Depths]]:
    """Of the models that are deep enough."""
    models: list[tuple[int, HeldModel]] = [(0, job.student)]
    models += [(number, one.model) for number, one in enumerate(job.teachers, start=1) if one.cached is None]
    for number, model in models:
        if (found := depths_of(empty_model(model))) is not None:
            yield number, found
