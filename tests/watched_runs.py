"""Runs in this process, and what happened in them."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from entrenar_core import Callback, RunReport, Scores, distill, parse_config
from entrenar_core.training.callbacks import StepMetrics


@dataclass
class Watch(Callback):
    """What happened in a run."""

    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: dict[int, Scores] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    workers: int = 0

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)
        self.workers = max(self.workers, len(multiprocessing.active_children()))

    def on_evaluate(self, step: int, scores: Scores) -> None:
        self.evaluations[step] = scores

    def on_checkpoint(self, step: int, path: str) -> None:
        assert Path(path).name == f"step-{step:08}"
        self.checkpoints.append(step)


def run(job: dict[str, Any]) -> tuple[RunReport, Watch]:
    watch = Watch()
    return distill(parse_config(job), force=True, callbacks=[watch]), watch


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "out" / "model.safetensors")


@contextmanager
def calls_of(kind: str, *, training: bool) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what modules of a class are given while open, in training or in evaluation.

    Of `Embedding`, that of words alone counts: it is the one that knows padding.
    """
    seen: list[tuple[int, ...]] = []

    def look(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        words = not isinstance(module, torch.nn.Embedding) or module.padding_idx is not None
        if type(module).__name__ == kind and module.training is training and words:
            seen.append(tuple(args[0].shape))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
