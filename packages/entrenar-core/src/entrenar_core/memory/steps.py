"""One optimiser step on tensors without data: losses, teachers and optimiser are those of a real training."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from entrenar_core.config.desugaring import Term, without_teacher
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.data.collating import Batch
from entrenar_core.losses.tiles import tiles_looked_at
from entrenar_core.memory.adapting import adapt, fake_quantized_, quantize_, quantized_tensors
from entrenar_core.memory.estimate import Trace
from entrenar_core.memory.fakes import empty_model, fake_, keep_layers_, taken_for_real
from entrenar_core.memory.jobs import SEQ2SEQ, HeldModel, TrainingJob
from entrenar_core.memory.ledger import Ledger
from entrenar_core.memory.optimizers import OPTIMIZERS
from entrenar_core.memory.saying import saying
from entrenar_core.memory.surroundings import SketchedRun
from entrenar_core.memory.tracking import Tracking
from entrenar_core.memory.watching import Watch
from entrenar_core.models.quiet import quietly
from entrenar_core.teachers.source import Said, TeacherSays
from entrenar_core.training.losses import make_objective
from entrenar_core.training.objective import Now
from entrenar_core.training.step import DistillationStep

Layers = Sequence[int]
_TILES = 2


class Stage:
    """Where models without data are watched."""

    def __init__(self, granularity: int, *, padded: bool) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.ledger = Ledger(granularity)
        self.tracking = Tracking(self.ledger, padded=padded)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, operations are watched."""
        with self.mode, self.tracking, tiles_looked_at(self._first_of), taken_for_real():
            yield

    def _first_of(self, starts: range) -> Iterator[int]:
        """All tiles take the same memory, and as much to compute: some stand for all of them."""
        before = self.tracking.flops
        yield from starts[:_TILES]
        done = min(len(starts), _TILES)
        self.tracking.flops += (self.tracking.flops - before) * (len(starts) - done) // max(done, 1)

    def model(
        self, held: HeldModel, number: int, layers: Layers | None, prepare: Callable[[PreTrainedModel], nn.Module]
    ) -> tuple[Any, Watch, int]:
        """The student (0) or a teacher with some of its layers, its watch, and how many parameters it has with these."""
        model = empty_model(held)
        if layers is not None:
            keep_layers_(model, layers)
        if held.load_in is not None:
            quantize_(model, held.load_in)
        whole = prepare(model)
        parameters = parameter_count(whole)
        fake_(whole, self.mode)
        if held.load_in is not None:
            fake_quantized_(whole, self.mode, held.load_in, double_quantized=held.double_quantized)
        for tensor in (*whole.parameters(), *whole.buffers(), *quantized_tensors(whole)):
            self.tracking.note(tensor, "teacher weights" if number else "student weights")
        return whole, Watch(model, self.tracking, number), parameters


def parameter_count(model: nn.Module) -> int:
    """How many numbers its weights are, shared ones once; of a model whose weights are not packed yet."""
    return sum(parameter.numel() for parameter in model.parameters())


def trace_training(job: TrainingJob, layers: Sequence[Layers | None], granularity: int = 1) -> Trace:
    """What a step of a job holds, with some layers of the student and of each teacher, all of them where it is None.

    Raises:
        ModelError: transformers cannot make a model, or adapters do not fit it.
        ConfigError: a loss does not fit the models.
    """
    with quietly():
        return _Training(job, layers, granularity).trace()


class _Training:
    def __init__(self, job: TrainingJob, layers: Sequence[Layers | None], granularity: int) -> None:
        self.job, self.run = job, SketchedRun(job)
        self.stage = Stage(granularity, padded=job.padded)
        self.rows = -(-job.batch_size // job.sharding.devices)
        self.student, self.watch, self.parameters = self.stage.model(
            job.student, 0, layers[0], self._prepared
        )
        self.trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.teacher_parameters = 0
        self.teacher = self._teacher(layers[1:])
        self.step = self._step()

    def _prepared(self, model: PreTrainedModel) -> nn.Module:
        """On `meta`: with adapters and checkpoints where they are asked for."""
        if self.job.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        if self.job.adapters is None:
            return model
        if self.job.gradient_checkpointing:
            model.enable_input_require_grads()
        return adapt(model, self.job.adapters, self.job.student.name).train()

    def _teacher(self, layers: Sequence[Layers | None]) -> Any:
        self.says: TeacherSays | None = None
        source, self.teacher_parameters = saying(self.job, self.run, self.stage, layers, self.student)
        return source

    def _step(self) -> DistillationStep | None:
        if self.run.task == SEQ2SEQ:
            return None
        terms = self.job.terms or labels_alone()
        if any(term.needs_teacher for term in terms):
            assert self.teacher is not None, "a loss between models needs a teacher"
        with self.stage.mode:
            objective = make_objective(terms, self.run, _plain(self.student), self.teacher)
            output = self.run.output_layer(_plain(self.student))
        for parameter in objective.modules:
            for tensor in parameter.parameters():
                self.stage.tracking.note(tensor, "student weights")
                self.trained.append(cast(nn.Parameter, tensor))
        return DistillationStep(self.student, objective, output)

    def trace(self) -> Trace:
        stage, job = self.stage, self.job
        with stage.mode:
            optimizer = self._optimizer()
        for tensor in optimizer.states():
            stage.tracking.note(tensor, "optimizer")
        if job.gradient_accumulation > 1:
            with stage.mode:
                for parameter in self.trained:
                    parameter.grad = torch.empty_like(parameter)
                    stage.tracking.note(parameter.grad, "gradients")
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(
                lambda one: stage.tracking.belongs(cast(Tensor, one.grad), "gradients")
            )
        self._pass()
        stage.ledger.enter("optimizer")
        stage.tracking.component = "workspace"
        with stage.acting():
            get_total_norm([one.grad for one in self.trained if one.grad is not None])
            optimizer.step()
        for parameter in self.trained:
            parameter.grad = None
        if job.evaluation_rows is not None and self.step is not None:
            self._evaluate(job.evaluation_rows)
        return Trace(
            tuple(stage.ledger.moments()),
            stage.tracking.flops,
            self.parameters,
            sum(parameter.numel() for parameter in self.trained),
            self.teacher_parameters,
        )

    def _optimizer(self) -> Any:
        """One that has its state already, as after the first step."""
        optimizer = OPTIMIZERS[self.job.optimizer](self.trained)
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        for parameter in self.trained:
            parameter.grad = None
        return optimizer

    def _batch(self, rows: int) -> Batch:
        """A batch without data."""
        real = self.run.batch(rows)
        made = copy.copy(real)
        for name in ("input_ids_BT", "attention_mask_BT", "labels", "targets", "rows_B"):
            tensor: Tensor = getattr(real, name)
            with self.stage.mode:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype)
            self.stage.tracking.note(fake, "activations")
            object.__setattr__(made, name, fake)
        self.stage.tracking.counted[id(made.targets.untyped_storage())] = self.run.counted(rows)
        return made

    def _pass(self) -> None:
        batch = self._batch(self.rows)
        with self.stage.acting():
            loss = self._loss(batch)
            with self.watch.back():
                loss.backward()

    def _loss(self, batch: Batch) -> Tensor:
        if self.step is None:
            with self.watch.during("forward"), self.run.autocast():
                made = self.student(
                    input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels
                )
            return cast(Tensor, made.loss)
        objective = self.step.objective
        now = tuple(Now(1.0, 2.0, 1) for _ in objective.terms)
        said: Said | None = None
        if self.teacher is not None and objective.needs_teacher(now):
            self.stage.tracking.component = "activations"
            self.stage.ledger.enter("teacher")
            said = self.teacher.listening(objective.wants(1))(batch)
        with self.watch.during("forward"), self.run.autocast():
            return cast(Tensor, self.step(batch, said, now).loss)

    def _evaluate(self, rows: int) -> None:
        pass


def _plain(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside of adapters."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def labels_alone() -> tuple[Term, ...]:
    """The cross-entropy with labels."""
    return without_teacher(DistillationSection())
