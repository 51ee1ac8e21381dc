"""The parts of a training run on stderr, as they go on."""

from entrenar_common.output import detail, note
from entrenar_common.progress import Progress, Task
from entrenar_core.hub import Transfer
from entrenar_core.reports import Scores
from entrenar_core.training.callbacks import Callback, StepMetrics


class Display(Callback):
    """Shows the parts of a run on stderr as they go on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: Task | None = None
        self.download: Task | None = None

    def on_transfer(self, transfer: Transfer) -> None:
        """A download has come further."""
        if self.download is None:
            self.download = self.progress.task("fetching", total=transfer.total_bytes, unit="bytes")
        self.download.update(completed=transfer.done_bytes, total=transfer.total_bytes)

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        """Ends the line of the part before and begins one."""
        self.end()
        unit = "steps" if total_steps else ""
        self.task = self.progress.task(name, total=total_steps, unit=unit, completed=step)

    def on_batch(self, done: int, total: int) -> None:
        """Moves the line of a part without steps on."""
        if self.task is not None and self.task.unit != "steps":
            self.task.unit = "batches"
            self.task.update(completed=done, total=total)

    def on_step(self, metrics: StepMetrics) -> None:
        """Moves the line on."""
        if self.task is not None:
            self.task.update(completed=metrics.step, note=f"loss {metrics.loss:.4f}")

    def on_evaluate(self, step: int, scores: Scores) -> None:
        """Tells an evaluation."""
        note(f"step {step}: {scores.in_words}")

    def on_checkpoint(self, step: int, path: str) -> None:
        """Tells a checkpoint to those who want to know."""
        detail(f"step {step}: saved {path}")

    def on_note(self, text: str) -> None:
        """Tells it."""
        note(text)

    def end(self) -> None:
        """Ends the lines that are open."""
        if self.task is not None and self.task.unit == "batches":  # how long it took says more
            self.task.unit, self.task.completed, self.task.total = "", 0, None
        for task in filter(None, (self.task, self.download)):
            task.end()
        self.task = self.download = None
