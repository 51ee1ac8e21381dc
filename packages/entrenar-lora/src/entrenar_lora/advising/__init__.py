"""What is measured of a model before a plan is made: the errors of quantisation, and the gradients of sample rows."""

from typing import TYPE_CHECKING

from entrenar_core.errors import UsageError
from entrenar_lora.reports.advice import Advice

if TYPE_CHECKING:
    from entrenar_common.progress import Progress
    from entrenar_lora.resolving import Subject

USUAL_SAMPLE = 32
"""Rows whose gradients are looked at, where none is said."""


def advise(
    subject: "Subject", dataset: str | None, sample: int | None, length: int, progress: "Progress", *, gradients: bool
) -> Advice:
    """Of a model at hand. Without a data set nothing is said of modules and ranks.

    Args:
        gradients: whether modules or a rank are still to be chosen.

    Raises:
        UsageError: sample rows are for a model of which only the configuration is known.
        EntrenarError: of the kind that fits: the model or the data cannot be read.
    """
    if dataset is not None and gradients and subject.at_hand is None:
        raise UsageError(
            f"gradients of {dataset} need the weights of {subject.reference}, and only its configuration is here",
            "fetch the model first and name its folder; or leave --sample out, and --dataset is written into the plan",
        )
    from entrenar_lora.advising.quantisation import quantisation_advice

    task = progress.task("errors of quantisation")
    quantised = quantisation_advice(subject)
    task.end()
    if dataset is None or not gradients:
        return Advice(quantised)
    from entrenar_lora.advising.gradients import module_advice, rank_advice, sample_gradients

    task = progress.task("gradients of sample rows")
    found = sample_gradients(subject, dataset, sample or USUAL_SAMPLE, length)
    task.end()
    task = progress.task("directions of the gradients")
    advice = Advice(quantised, module_advice(found), rank_advice(found))
    task.end()
    return advice
