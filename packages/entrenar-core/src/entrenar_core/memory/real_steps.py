"""Steps of a job on real tensors: how long they take, and how much memory. Weights are random, so that none is fetched.

Losses, teachers and optimisers are those of a training; the batch has the job's size, and its tokens are drawn.
"""

import copy
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import BitsAndBytesConfig

from entrenar_core.data.collating import Batch
from entrenar_core.data.labels import IGNORED
from entrenar_core.memory.adapting import adapt
from entrenar_core.memory.fakes import class_of
from entrenar_core.memory.jobs import SEQ2SEQ, DeviceType, HeldModel, TrainingJob
from entrenar_core.memory.optimizers import RATE
from entrenar_core.memory.saying import saying
from entrenar_core.memory.steps import labels_alone
from entrenar_core.memory.surroundings import SketchedRun
from entrenar_core.models.quiet import quietly
from entrenar_core.training.losses import make_objective
from entrenar_core.training.objective import Now
from entrenar_core.training.optimizer import optimizer_of
from entrenar_core.training.step import DistillationStep

_FIRST_ID = 3
"""Tokens below stand for padding, beginnings and ends, as a rule."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each step but the first, and the most memory above what the process had before, in bytes; None where
    the system does not tell.
    """

    steps_s: tuple[float, ...]
    peak_bytes: int | None


def measure(job: TrainingJob, steps: int = 4) -> Measured:
    """Takes real steps of a job.

    Raises:
        ModelError: transformers has no such model, or bitsandbytes is not installed.
        torch.OutOfMemoryError, RuntimeError: the memory is not enough.
    """
    with quietly():
        before = set_back_peak(job.device)
        training = RealTraining(job)
        took = [training.timed_step() for _ in range(steps)]
        peak = peak_bytes(job.device)
    return Measured(tuple(took[1:]), None if peak is None or before is None else peak - before)


class _Stage:
    """Where models have data: what `saying` asks of one."""

    def __init__(self, device: torch.device) -> None:
        self.mode, self.tracking, self.device = device, self, device

    def note(self, tensor: Tensor, component: str) -> None:
        """Nobody watches."""

    def model(self, held: HeldModel, number: int, layers: int | None, prepare: Any) -> tuple[Any, Any, int]:
        """One of random weights."""
        del number, layers  # of models that are watched, or have few of their layers
        made = prepare(random_model(held, self.device))
        return made, SimpleNamespace(), sum(one.numel() for one in made.parameters())


class RealTraining:
    """A training of a job on real tensors."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.run = job, _OnDevice(job)
        model = random_model(job.student, self.run.device)
        if job.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        self.student: nn.Module = model
        if job.adapters is not None:
            if job.gradient_checkpointing:
                model.enable_input_require_grads()
            self.student = adapt(model, job.adapters, job.student).train()
        stage: Any = _Stage(self.run.device)
        self.teacher, _ = saying(job, self.run, stage, [None] * len(job.teachers))
        self.step: DistillationStep | None = None
        if job.student.task != SEQ2SEQ:
            objective = make_objective(job.terms or labels_alone(), self.run, model, self.teacher)
            self.step = DistillationStep(self.student, objective, self.run.output_layer(model))
            self.step.layers.to(self.run.device)
        self.trained = [one for one in (self.step or self.student).parameters() if one.requires_grad]
        self.optimizer = optimizer_of(job.optimizer, self.trained, RATE)

    def timed_step(self) -> float:
        """An optimiser step, in seconds."""
        return sum(self.timed_parts())

    def timed_parts(self) -> tuple[float, float]:
        """How long the forward and backward passes of a step took, and the optimiser's part, in seconds."""
        passed = sum(timed(self._pass, self.job.device) for _ in range(self.job.gradient_accumulation))
        return passed, timed(self._update, self.job.device)

    def _pass(self) -> None:
        self.loss(self.batch()).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        float(get_total_norm([one.grad for one in self.trained if one.grad is not None]))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def batch(self) -> Batch:
        """Tokens drawn anew."""
        batch = self.run.batch(-(-self.job.batch_size // self.job.sharding.devices))
        vocabulary = int(self.job.student.config.get_text_config().vocab_size)
        batch.input_ids_BT.random_(min(_FIRST_ID, vocabulary - 1), vocabulary)
        if self.job.padded:
            batch.attention_mask_BT[-1, -1] = 0
        return self._counted(batch).to(self.run.device)

    def _counted(self, batch: Batch) -> Batch:
        """With as many positions that losses count as the job has."""
        targets = batch.targets.clone()
        places = targets.flatten().nonzero().flatten()
        targets.view(-1)[places[self.run.counted(len(batch.rows_B)) :]] = False
        labels = batch.labels if batch.labels.shape != targets.shape else batch.labels.where(targets, IGNORED)
        return replace(batch, targets=targets, labels=labels)

    def loss(self, batch: Batch) -> Tensor:
        """Of one forward pass."""
        if self.step is None:
            given = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
            with self.run.autocast():
                made: Tensor = self.student(**given, labels=batch.input_ids_BT).loss
            return made
        objective = self.step.objective
        now = tuple(Now(1.0, 2.0, batch.num_soft) for _ in objective.terms)
        said = None
        if self.teacher is not None and objective.needs_teacher():
            with self.run.device:  # what a cache would have read is made there
                said = self.teacher.listening(objective.wants(1))(batch)
        with self.run.autocast():
            loss: Tensor = self.step(batch, said, now).loss
        return loss


class _OnDevice(SketchedRun):
    """What losses and teachers ask of a run, on tensors that are there."""

    __slots__ = ()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device(self.job.device)

    def autocast(self) -> AbstractContextManager[object]:
        """In which models compute."""
        if self.job.mixed_precision == "no":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.job.mixed_precision]
        return torch.autocast(self.job.device, dtype=dtype)


def random_model(held: HeldModel, device: torch.device) -> Any:
    """A model of random weights; one that is quantised is written to a folder first, and loaded from there."""
    kind, dtype = class_of(held), getattr(torch, held.dtype)
    attention = held.attention if getattr(kind, "_supports_sdpa", False) else "eager"
    with torch.device(device):
        model = kind._from_config(held.config, dtype=dtype, attn_implementation=attention)
    if held.load_in is None:
        return model
    settings = BitsAndBytesConfig(
        load_in_8bit=held.load_in == "int8",
        load_in_4bit=held.load_in != "int8",
        bnb_4bit_quant_type="nf4" if held.load_in == "int8" else held.load_in,
        bnb_4bit_use_double_quant=held.double_quantized,
        bnb_4bit_compute_dtype=dtype if held.compute_dtype is None else getattr(torch, held.compute_dtype),
    )
    with TemporaryDirectory(prefix="entrenar-") as folder:
        model.save_pretrained(folder)
        del model
        quantised = kind.from_pretrained(
            folder,
            config=copy.deepcopy(held.config),  # which loading changes
            quantization_config=settings,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": device},
        )
    for parameter in quantised.parameters():
        if parameter.is_floating_point():  # what is not quantised is still part of the file, which stays mapped whole
            parameter.data = parameter.data.clone()
    set_back_peak(device.type)
    return quantised


def timed(act: Callable[[], object], device: DeviceType) -> float:
    """Seconds until all of it is done, on a device that works on its own too."""
    _wait(device)
    began = time.perf_counter()
    act()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: DeviceType) -> None:
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def set_back_peak(device: str) -> int | None:
    """Forgets the most memory that there was, and gives what there is now, in bytes."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    return None


def peak_bytes(device: str) -> int | None:
    """The most memory since then."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        return _resident("VmHWM")
    return None


def _resident(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None
