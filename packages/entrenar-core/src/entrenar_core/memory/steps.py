"""One optimiser step on tensors without data: losses, teachers and optimiser are those of a real training."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from entrenar_core.memory.adapting import adapt
from entrenar_core.memory.estimate import Trace
from entrenar_core.memory.experts import experts_without_data
from entrenar_core.memory.fakes import empty_model, fake_, taken_for_real
from entrenar_core.memory.jobs import SEQ2SEQ, DeviceType, HeldModel, ReadingJob, TrainingJob
from entrenar_core.memory.ledger import Ledger
from entrenar_core.memory.optimizers import traced_optimizer
from entrenar_core.memory.quantised import dequantised_without_data, fake_quantized_, quantize_, quantized_tensors
from entrenar_core.memory.saying import saying
from entrenar_core.memory.surroundings import SketchedRun, autocast
from entrenar_core.memory.tracking import Tracking
from entrenar_core.memory.watching import Watch
from entrenar_core.models.calling import called
from entrenar_core.models.quiet import quietly
from entrenar_core.models.rows import read_rows
from entrenar_core.models.sentences import vectors_of
from entrenar_core.teachers.source import Said
from entrenar_core.training.evaluation import sums_of
from entrenar_core.training.losses import make_objective
from entrenar_core.training.objective import Now
from entrenar_core.training.step import DistillationStep

Layers = int
"""How many of a model's first layers there are."""
_TILES = 2


class Stage:
    """Where models without data are watched."""

    def __init__(self, granularity: int, *, padded: bool, device: DeviceType = "cpu") -> None:
        self.device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.ledger = Ledger(granularity)
        self.tracking = Tracking(self.ledger, padded=padded, device=device)
        self.watches: list[Watch] = []
        self.dequantises = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, operations are watched."""
        with (
            self.mode,
            self.tracking,
            tiles_looked_at(self._first_of, self.device),
            taken_for_real(self.device),
            experts_without_data(),
            dequantised_without_data() if self.dequantises else nullcontext(),
        ):
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
        """The student (0) or a teacher with some of its layers, its watch, and how many parameters they have."""
        model = empty_model(held, layers)
        if held.load_in is not None:
            quantize_(model, held)
        whole = prepare(model)
        parameters = parameter_count(whole)
        fake_(whole, self.mode)
        if held.load_in is not None:
            fake_quantized_(whole, self.mode, held.load_in, double_quantized=held.double_quantized)
            self.dequantises |= hasattr(whole, "peft_config")
        for tensor in (*whole.parameters(), *whole.buffers(), *quantized_tensors(whole)):
            self.tracking.note(tensor, "teacher weights" if number else "student weights")
        watch = Watch(model, self.tracking, number)
        self.watches.append(watch)
        return whole, watch, parameters


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
        return TracedTraining(job, layers, granularity).trace()


def trace_reading(job: ReadingJob, layers: Layers | None, granularity: int = 1) -> Trace:
    """What a model that reads rows holds; raises as `trace_training`."""
    with quietly():
        stage = Stage(granularity, padded=job.padded, device=job.device)
        model, watch, parameters = stage.model(job.model, 1, layers, lambda one: one.eval().requires_grad_(False))
        with stage.mode:
            ids_BT = torch.empty(job.batch_size, job.length, dtype=torch.long)
            mask_BT = torch.empty_like(ids_BT)
        with stage.acting(), torch.no_grad(), autocast(job.mixed_precision), watch.during("teacher"):
            called(model, ids_BT, mask_BT)
        return Trace(tuple(stage.ledger.moments()), stage.tracking.flops, 0, 0, parameters)


class TracedTraining:
    """A training whose step can be traced once."""

    def __init__(self, job: TrainingJob, layers: Sequence[Layers | None], granularity: int) -> None:
        self.job, self.run = job, SketchedRun(job)
        self.stage = Stage(granularity, padded=job.padded, device=job.device)
        self.rows = -(-job.batch_size // job.sharding.devices)
        self.student, self.watch, self.parameters = self.stage.model(job.student, 0, layers[0], self._prepared)
        self.trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.teacher, self.teacher_parameters = saying(job, self.run, self.stage, layers[1:])
        self.step = self._step()

    def _prepared(self, model: PreTrainedModel) -> nn.Module:
        """On `meta`: with adapters and checkpoints where they are asked for."""
        if self.job.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        if self.job.adapters is None:
            plain: nn.Module = model
            return plain
        if self.job.gradient_checkpointing:
            model.enable_input_require_grads()
        adapted: nn.Module = adapt(model, self.job.adapters, self.job.student)
        adapted.train()
        return adapted

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
                self.trained.append(tensor)
        return DistillationStep(self.student, objective, output)

    def trace(self) -> Trace:
        """Lets it take a step."""
        stage, job = self.stage, self.job
        self.optimizer = optimizer = self._optimizer()
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
        stage = self.stage
        with stage.acting():
            optimizer = traced_optimizer(self.job.optimizer, self.trained, self.job.device)
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
        for parameter in self.trained:
            parameter.grad = None
        for tensor in optimizer.states():
            stage.tracking.belongs(tensor, "optimizer")
        stage.tracking.flops = 0
        stage.ledger.begin()
        return optimizer

    def _batch(self, rows: int) -> Batch:
        """A batch without data, which a row tells the shape of: one with data could be as large as the memory."""
        real = self.run.batch(1)
        made = copy.copy(real)
        for name in ("num_soft", "num_hard"):
            object.__setattr__(made, name, rows * getattr(real, name))
        for name in ("input_ids_BT", "attention_mask_BT", "labels", "targets", "rows_B"):
            tensor: Tensor = getattr(real, name)
            with self.stage.mode:
                fake = torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype)
            self.stage.tracking.note(fake, "activations")
            object.__setattr__(made, name, fake)
        self.stage.tracking.counted[id(made.targets.untyped_storage())] = self.run.counted(rows)
        return made

    def _pass(self) -> None:
        batch = self._batch(self.rows)
        with self.stage.acting():
            loss = self._loss(batch)
            with self.watch.back():
                loss.backward()  # type: ignore[no-untyped-call]

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
        """Student and teacher read evaluation rows, and are compared."""
        assert self.step is not None
        self.student.eval()
        batch, counting = self._batch(rows), self.run.counting
        for watch in self.stage.watches:
            watch.phase = "evaluation"
        with self.stage.acting(), torch.no_grad(), self.run.autocast(), self.watch.during("evaluation"):
            if self.step.objective.pool is not None:
                vectors_of(self.student, batch.input_ids_BT, batch.attention_mask_BT, self.step.objective.pool)
                return
            student = read_rows(self.student, batch, counting, self.step.output)
            said = None if self.teacher is None else self.teacher.rows(batch)
            sums_of(student, counting.labels(batch), said)


def _plain(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside of adapters."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def labels_alone() -> tuple[Term, ...]:
    """The cross-entropy with labels."""
    return without_teacher(DistillationSection())
