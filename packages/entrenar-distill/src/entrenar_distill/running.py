"""`run`: the library's job with a progress display."""

from contextlib import ExitStack

from entrenar_common.output import detail, note, warning
from entrenar_common.progress import Progress, Task
from entrenar_core.config import DistillationConfig
from entrenar_core.hub import Transfer
from entrenar_core.reports import Plan, RunReport, Scores
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


def run(config: DistillationConfig, resume: bool, force: bool) -> RunReport:
    """Runs a distillation with its progress on stderr; raises as `distill`."""
    _require_usable(config, resume, force)
    with ExitStack() as stack:
        display = Display(stack.enter_context(Progress()))
        display.on_phase("loading libraries")
        from entrenar_core.training.distillation import distill

        display.on_phase("reading models and data")
        report = distill(config, resume=resume, force=force, callbacks=[display], download_progress=display.on_transfer)
        display.end()
    for text in report.warnings:
        warning(text)
    return report


def _require_usable(config: DistillationConfig, resume: bool, force: bool) -> None:
    """What stands in the way is told before torch is loaded."""
    from entrenar_core.training.run_folder import check_usable, is_complete

    if not resume or not is_complete(config.output.dir, config.model_dump(mode="json")):
        check_usable(config.output.dir, resume=resume, force=force)


def dry_run(config: DistillationConfig, resume: bool, force: bool) -> Plan:
    """The plan of a run; raises as `plan`."""
    _require_usable(config, resume, force)
    with Progress() as progress:
        task = progress.task("reading models and data")
        from entrenar_core.training.distillation import plan

        found = plan(config, resume=resume, force=force)
        task.end()
    return found
