"""What a training tells of itself as it goes: to `metrics.jsonl`, to experiment trackers, to callbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from entrenar_core.data.collating import Batch
from entrenar_core.reports import Scores
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.training.objective import Now
from entrenar_core.training.run_folder import Metrics, flat


class Journal:
    """One training's record; `name` is what trackers call its series. Processes but the main one say nothing."""

    def __init__(self, name: str, accelerator: Accelerator, callbacks: Sequence[Callback], log_every: int) -> None:
        self.name, self.accelerator, self.log_every = name, accelerator, log_every
        self.callbacks = callbacks if accelerator.is_main_process else ()
        self.metrics: Metrics | None = None

    def open(self, file: Path, up_to_step: int) -> None:
        """Goes on in `file` after that step."""
        if self.accelerator.is_main_process:
            self.metrics = Metrics(file, up_to_step=up_to_step)

    def gradients(self, step: int, batches: Sequence[Batch], now: Sequence[Now]) -> None:
        """The gradients of a step are there; writes down what callbacks find."""
        for callback in self.callbacks:
            found = callback.on_gradients(step, batches, now)
            if found and self.metrics is not None:
                self.metrics.add(step=step, diagnostics=found)
                self._track(step, {f"diagnostics/{name}": value for name, value in flat(found).items()})

    def step(self, metrics: StepMetrics, examples_per_s: float, *, last: bool) -> None:
        """An optimiser step; the file and the trackers get the first, every `log_every`th and the last."""
        for callback in self.callbacks:
            callback.on_step(metrics)
        if self.metrics is None or not (last or metrics.step == 1 or metrics.step % self.log_every == 0):
            return
        told = asdict(metrics)
        line = {key: value for key, value in told.items() if key != "total_steps" and value not in (None, {})}
        self.metrics.add(**line, examples_per_s=round(examples_per_s, 2))
        self._track(metrics.step, _flat(line))

    def evaluation(self, step: int, scores: Scores) -> None:
        """The student was evaluated after a step."""
        if self.metrics is not None:
            self.metrics.add(step=step, evaluation=asdict(scores))
            self._track(step, {f"evaluation/{key}": value for key, value in asdict(scores).items()})
        for callback in self.callbacks:
            callback.on_evaluate(step, scores)

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was written."""
        for callback in self.callbacks:
            callback.on_checkpoint(step, str(path))

    def _track(self, step: int, values: Mapping[str, Any]) -> None:
        if self.accelerator.trackers:
            named = {f"{self.name}/{key}": value for key, value in values.items() if value is not None}
            self.accelerator.log(named, step=step)


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """As trackers want it: `losses/forward_kl`."""
    flat = {key: value for key, value in line.items() if key != "step" and not isinstance(value, Mapping)}
    groups = ((key, value) for key, value in line.items() if isinstance(value, Mapping))
    return flat | {f"{group}/{key}": value for group, values in groups for key, value in values.items()}
