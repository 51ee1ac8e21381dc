"""The training loop. Losses are sums and counts, divided once per optimiser step over all micro-batches and ranks.

accelerate brings devices, DDP, mixed precision and gradient scaling; what is here decides what a step is, when to look
and when to save.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import ModuleList
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Batch
from entrenar_core.errors import FetchError, Interrupted
from entrenar_core.models.quiet import quietly
from entrenar_core.reports import Scores
from entrenar_core.teachers.moving_average import AverageOfStudent
from entrenar_core.teachers.source import TeacherSays
from entrenar_core.training.batches import Batches
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.training.checkpoints import (
    Progress,
    forget_best,
    load_best,
    load_checkpoint,
    random_state,
    save_best,
    save_checkpoint,
)
from entrenar_core.training.finite import largest, require_finite
from entrenar_core.training.journal import Journal
from entrenar_core.training.objective import Now
from entrenar_core.training.optimizer import MULTIPLE, learning_rate, make_optimizer
from entrenar_core.training.ranks import on_main
from entrenar_core.training.run_folder import complete_checkpoints
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What a loop needs to know besides its models and batches."""

    training: TrainingConfig
    folder: Path
    checkpoint_every: int
    keep: int
    evaluate: Callable[[], Scores]
    score: Callable[[Scores], float]
    """What selection and early stopping compare; more is better."""
    name: str = "student"
    """What is trained, as trackers call its series."""
    describe: Callable[[Path], None] = lambda _: None
    """Writes what makes a checkpoint a model that can be loaded."""
    remote: bool = False
    """Whether the teacher may go away in the middle of a step."""
    lora_plus_ratio: float | None = None
    """The learning rate of low-rank matrices B, as a multiple of the others'."""


class _StepResult(NamedTuple):
    loss: float
    terms: tuple[float, ...]
    now: tuple[Now, ...]
    grad_norm: float
    hit_rate: float | None


class Loop:
    """Trains one student from where its newest checkpoint is to the end."""

    def __init__(
        self,
        step_module: DistillationStep,
        batches: Batches,
        teacher: TeacherSays | None,
        accelerator: Accelerator,
        settings: LoopSettings,
        callbacks: Sequence[Callback],
        stop: StopRequest,
        average: AverageOfStudent | None = None,
    ) -> None:
        self.student, self.layers = step_module.student, step_module.layers
        self.objective = step_module.objective
        self.batches, self.teacher = batches, teacher
        self.accelerator, self.settings, self.training = accelerator, settings, settings.training
        self.journal, self.stop = Journal(settings.name, accelerator, callbacks, settings.training.log_every), stop
        if self.training.gradient_checkpointing:
            with quietly():  # its former name, which warns, is the one that every supported version has
                self.student.gradient_checkpointing_enable()  # type: ignore[operator]
        self.model = accelerator.prepare(step_module)
        self.optimizer = make_optimizer(step_module, self.training, ratio_of_b=settings.lora_plus_ratio)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.average = average
        self.beside = self.layers if average is None else ModuleList([self.layers, average.model])
        self.progress = Progress()
        self.saved_best: int | None = None
        """The step of the best weights that the newest checkpoint means."""

    def run(self, *, resume: bool) -> Progress:
        """Trains to the last step, to early stopping, or until stopped; leaves the selected weights in the student.

        Raises:
            TrainingError: the loss, the gradient or a weight is not a finite number.
            Interrupted: the user stopped the run; a checkpoint holds all that was done.
            OutputError: a checkpoint cannot be written.
        """
        if resume:
            self._restore()
        checkpoints = self.settings.folder / "checkpoints"
        self.journal.open(self.settings.folder / "metrics.jsonl", self.progress.step)
        self.model.train()
        self._steps(checkpoints)
        if self.training.select == "best" and self.progress.best_step is not None:
            load_best(checkpoints, self.student, self.progress.best_step)
        self.student.eval()
        return self.progress

    def _steps(self, checkpoints: Path) -> None:
        last = self.batches.total_steps if not self.progress.stopped_early else self.progress.step
        steps = self.batches.steps(self.progress.step) if self.progress.step < last else iter(())
        began = time.perf_counter()
        for micro_batches in steps:
            state = random_state() if self.settings.remote and self.accelerator.num_processes == 1 else None
            try:
                result, examples = self._step(micro_batches, checkpoints)
            except (FetchError, Interrupted):
                if state is not None and self.progress.step > 0:  # the steps before this one are done
                    self.optimizer.zero_grad()
                    self._write(checkpoints, [state])
                raise
            done = self.progress.step + 1 >= last
            self._advance(result, examples, time.perf_counter() - began, last=done)
            if self._look(micro_batches, checkpoints, done):
                break
            began = time.perf_counter()  # evaluations and checkpoints are not training

    def _look(self, micro_batches: list[Batch], checkpoints: Path, done: bool) -> bool:
        """Evaluates and saves where it is due, neither with weights that are no numbers; whether training is over."""
        stopped, evaluates = self._stopped(), self._evaluates(done)
        saves = stopped or self.progress.step % self.settings.checkpoint_every == 0
        if done or evaluates or saves:
            require_finite("largest weight", largest(self.student), self.progress.step, micro_batches, checkpoints)
        if evaluates:
            self._evaluate()
        done = done or self.progress.stopped_early
        if done or saves:
            self._save(checkpoints)
        if stopped and not done:
            raise Interrupted(f"stopped after step {self.progress.step} of {self.batches.total_steps}, and saved")
        return done

    def _step(self, micro_batches: list[Batch], checkpoints: Path) -> tuple[_StepResult, int]:
        rate = learning_rate(self.progress.step, self.batches.total_steps, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(MULTIPLE, 1.0)
        mine = [*self.objective.counts(micro_batches), sum(len(b.rows_B) for b in micro_batches if not b.blank)]
        *counts, examples = (int(value) for value in self._summed(torch.tensor(mine)).tolist())
        now = self.objective.at(self.progress.step, self.batches.total_steps, counts)
        loss, kept, *terms = self._summed(self._backward(micro_batches, now)).tolist()
        require_finite("loss", loss, self.progress.step + 1, micro_batches, checkpoints)
        norm = self._update(micro_batches, now, checkpoints)
        if self.average is not None:
            self.average.follow(self.progress.step + 1)
        return _StepResult(loss, tuple(terms), now, norm, None if kept < 0 else kept / max(examples, 1)), examples

    def _backward(self, micro_batches: list[Batch], now: tuple[Now, ...]) -> Tensor:
        """Gradients of the whole step; returns this rank's share of the loss, how many rows a cache knew, below zero
        where none was asked, and the share of each of the loss's terms.
        """
        sums = torch.zeros(2 + len(now), device=self.accelerator.device)
        taught = self.objective.needs_teacher(now)
        for index, cpu_batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = cpu_batch.to(self.accelerator.device)
                said = self.teacher(batch) if self.teacher and taught else None
                parts = self.model(batch, said, now)
                # DDP averages gradients over ranks, and this loss is already a share of the whole
                self.accelerator.backward(parts.loss * self.accelerator.num_processes)
                known = -1 if said is None or said.kept_rows is None else said.kept_rows
                sums += torch.cat(
                    [parts.loss.detach().float().reshape(1), sums.new_tensor([known]), parts.terms.float()]
                )
                del batch, said, parts  # they need not be there while the teacher reads the next
        return sums

    def _update(self, micro_batches: list[Batch], now: tuple[Now, ...], checkpoints: Path) -> float:
        """Clips, steps the optimiser and forgets the gradient, whose norm before clipping it returns.

        accelerate's wrapper of the optimiser does the same, and looks for packages in every step.
        """
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        self.journal.gradients(self.progress.step + 1, micro_batches, now)
        limit = math.inf if self.training.max_grad_norm is None else self.training.max_grad_norm
        total = get_total_norm([one.grad for one in self.trained if one.grad is not None])
        if not (norm := float(total)) <= limit:  # else every gradient would be multiplied by 1
            clip_grads_with_norm_(self.trained, limit, total)
        if scaler is None:
            require_finite("gradient norm", norm, self.progress.step + 1, micro_batches, checkpoints)
            self.optimizer.step()
        else:  # leaves a step out whose scaled gradient overflowed, and lowers its scale
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad()
        return norm

    def _summed(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum")  # type: ignore[no-any-return]

    def _advance(self, result: _StepResult, examples: int, step_s: float, *, last: bool) -> None:
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            train_s=self.progress.train_s + step_s,
            examples=self.progress.examples + examples,
            initial_loss=result.loss if self.progress.initial_loss is None else self.progress.initial_loss,
            final_loss=result.loss,
        )
        step_metrics = StepMetrics(
            step=self.progress.step,
            total_steps=self.batches.total_steps,
            loss=result.loss,
            losses=self._told(result),
            schedules=self.objective.moving(result.now),
            learning_rate=learning_rate(self.progress.step - 1, self.batches.total_steps, self.training),
            grad_norm=result.grad_norm if math.isfinite(result.grad_norm) else None,
            examples=self.progress.examples,
            cache_hit_rate=result.hit_rate,
        )
        self.journal.step(step_metrics, self.progress.examples / max(self.progress.train_s, 1e-9), last=last)

    def _told(self, result: _StepResult) -> dict[str, float]:
        """The terms that have weight, by their names."""
        named = zip(self.objective.terms, result.terms, result.now, strict=True)
        return {term.label: value for term, value, now in named if now.weight > 0}

    def _evaluates(self, done: bool) -> bool:
        every = self.training.eval_every
        return every is not None and (done or self.progress.step % every == 0)

    def _evaluate(self) -> None:
        scores = self.settings.evaluate()
        self.journal.evaluation(self.progress.step, scores)
        self._compare(self.settings.score(scores))

    def _compare(self, score: float) -> None:
        """Keeps the best weights, and stops when patience is at an end."""
        early, best = self.training.early_stopping, self.progress.best_score
        better = math.isfinite(score) and (best is None or score > best)
        if better:
            folder, step = self.settings.folder / "checkpoints", self.progress.step
            on_main(self.accelerator, lambda: save_best(folder, self.student, step, keep=self.saved_best))
            self.progress = dataclasses.replace(self.progress, best_step=self.progress.step, best_score=score)
        improved = better and (best is None or score > best + (early.min_delta if early else 0.0))
        stale = 0 if improved else self.progress.stale_evaluations + 1
        stopped = early is not None and stale >= early.patience
        self.progress = dataclasses.replace(self.progress, stale_evaluations=stale, stopped_early=stopped)

    def _stopped(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all."""
        return bool(self._summed(torch.tensor([int(self.stop.requested)])).item())

    def _save(self, folder: Path) -> None:
        states = [random_state()]
        if self.accelerator.num_processes > 1:
            gathered: list[Any] = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        on_main(self.accelerator, lambda: self._write(folder, states))
        self.saved_best = self.progress.best_step

    def _write(self, folder: Path, states: list[Any]) -> None:
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        path = save_checkpoint(
            folder,
            self.student,
            self.optimizer,
            self.progress,
            beside=self.beside,
            keep=self.settings.keep,
            random_states=states,
            scaler=scaler,
            describe=self.settings.describe,
        )
        forget_best(folder, {self.progress.best_step})
        self.journal.checkpoint(self.progress.step, path)

    def _restore(self) -> None:
        checkpoints = complete_checkpoints(self.settings.folder / "checkpoints")
        if checkpoints:
            self.progress = load_checkpoint(
                checkpoints[-1],
                self.student,
                self.optimizer,
                beside=self.beside,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                scaler=self.accelerator.scaler,
            )
            self.saved_best = self.progress.best_step
