"""What can watch a run: progress displays, trackers, one's own code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.reports import Scores

if TYPE_CHECKING:
    from entrenar_core.data.collating import Batch
    from entrenar_core.training.objective import Now


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimiser step. Losses are means over what counts.

    `losses` are those with weight, before their weights, by name; `schedules` are what schedules say in this step;
    `cache_hit_rate` is the share of the rows that the teacher's cache knew, None where none was asked.
    """

    step: int
    total_steps: int
    loss: float
    losses: Mapping[str, float]
    schedules: Mapping[str, float]
    learning_rate: float
    grad_norm: float | None
    examples: int
    cache_hit_rate: float | None = None


class Callback:
    """Does nothing; override what you want to see. Called on the main process only."""

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        """A part of the run begins, such as `teacher`, `student` or `baseline`; some have a number of steps."""

    def on_batch(self, done: int, total: int) -> None:
        """The next batch of an evaluation, or of the texts that the teacher reads, begins."""

    def on_gradients(self, step: int, batches: "Sequence[Batch]", now: "Sequence[Now]") -> Mapping[str, Any] | None:
        """The gradients of optimiser step `step`, counted from 1, are there, before they are clipped and the weights
        move. What is returned goes to the metrics as `diagnostics` of the step.

        Args:
            step: the optimiser step, counted from 1.
            batches: this process's micro-batches of the step.
            now: the objective's terms in it.
        """

    def on_step(self, metrics: StepMetrics) -> None:
        """An optimiser step is done."""

    def on_evaluate(self, step: int, scores: Scores) -> None:
        """The student was evaluated after `step`."""

    def on_checkpoint(self, step: int, path: str) -> None:
        """A checkpoint was written."""

    def on_note(self, text: str) -> None:
        """Something worth telling happened."""


def tell(callbacks: Sequence[Callback], text: str) -> None:
    """Something worth telling happened."""
    for callback in callbacks:
        callback.on_note(text)
