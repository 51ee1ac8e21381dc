"""How fast a plan is, by real steps on this machine: those of the plan, and those of full training where they fit."""

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from entrenar_core.errors import UsageError
from entrenar_lora.planning_jobs import Predictions, with_speed
from entrenar_lora.planning_search import FULL, Candidate, Search
from entrenar_lora.reports.plan import PlanReport, Speed

if TYPE_CHECKING:
    from entrenar_core.memory.jobs import TrainingJob
    from entrenar_core.memory.machine import Machine

_STEPS = 3


def seconds_of(job: "TrainingJob") -> float:
    """Of a forward and backward pass with its share of the optimiser, measured on random weights.

    Raises:
        UsageError: the memory was not enough after all.
    """
    from entrenar_core.memory.real_steps import measure

    try:
        return median(measure(job, _STEPS).steps_s) / job.gradient_accumulation
    except (MemoryError, RuntimeError) as error:
        raise UsageError(f"--calibrate: a step could not be taken: {error}", "leave --calibrate out") from error


def measured(report: PlanReport, predictions: Predictions, search: Search, machine: "Machine") -> PlanReport:
    """The report with the time of real steps in place of counted operations."""
    if report.chosen is None:
        return report
    chosen, _ = search.best()
    assert chosen is not None, "it was reported"
    own = seconds_of(predictions.job(chosen)) / chosen.micro_batch
    full = Candidate(FULL, None, None, None, checkpointing=False, micro_batch=chosen.micro_batch, optimizer="adamw")
    needed = predictions.needs(full)
    speed = report.chosen.speed
    if chosen.method == FULL or needed is None or needed > machine.available_bytes:
        why = "full training does not fit here, so the ratio is of counted operations"
        speed = Speed(speed.flops_per_token, speed.times, f"measured on {_STEPS - 1} steps; {why}", own)
    else:
        other = seconds_of(predictions.job(full)) / full.micro_batch
        speed = Speed(speed.flops_per_token, other / own, f"measured on {_STEPS - 1} steps of each", own)
    rows = report.chosen.batch_size
    return replace(report, chosen=with_speed(report.chosen, replace(speed, seconds=own * rows)))
