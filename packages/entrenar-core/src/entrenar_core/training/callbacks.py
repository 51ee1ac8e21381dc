"""What can watch a run: progress displays, trackers, one's own code."""

from collections.abc import Mapping
from dataclasses import dataclass

from entrenar_core.reports import Scores


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimiser step. Losses are means over what counts.

    `losses` are those with weight, before their weights, by name; `schedules` are what schedules say in this step.
    """

    step: int
    total_steps: int
    loss: float
    losses: Mapping[str, float]
    schedules: Mapping[str, float]
    learning_rate: float
    grad_norm: float | None
    examples: int


class Callback:
    """Does nothing; override what you want to see. Called on the main process only."""

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        """A part of the run begins, such as `teacher`, `student` or `baseline`; some have a number of steps."""

    def on_batch(self, done: int, total: int) -> None:
        """The next batch of an evaluation, or of the texts that the teacher reads, begins."""

    def on_step(self, metrics: StepMetrics) -> None:
        """An optimiser step is done."""

    def on_evaluate(self, step: int, scores: Scores) -> None:
        """The student was evaluated after `step`."""

    def on_checkpoint(self, step: int, path: str) -> None:
        """A checkpoint was written."""

    def on_note(self, text: str) -> None:
        """Something worth telling happened."""
