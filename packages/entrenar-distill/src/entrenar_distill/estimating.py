"""`estimate`: the memory of a distillation before it is run, from configurations alone."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from entrenar_common.progress import Progress
from entrenar_core.architectures import architecture_of
from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.config import DistillationConfig
from entrenar_core.config.adapters import USUAL_RANK, LoraAdapter
from entrenar_core.config.one_teacher import each_teacher
from entrenar_core.config.teachers import ModelSource
from entrenar_core.data.columns import source_of
from entrenar_core.errors import EntrenarError, UsageError
from entrenar_core.formats import WeightFormat, read_json
from entrenar_core.hub import fetch_config
from entrenar_core.memory.jobs import DeviceType, LoadIn, Sharding, Strategy, TrainingJob
from entrenar_core.memory.report import MemoryReport
from entrenar_core.models.heads import CLASSIFICATION, UNTOLD, infer_task
from entrenar_core.references import HubReference, parse_reference
from entrenar_distill.assembly import Flags

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from entrenar_core.memory.jobs import Job
    from entrenar_core.memory.machine import Machine
    from entrenar_core.memory.runs import Part


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked beside a configuration: `sequence_length` tokens of a row in place of `dataset.max_length`; what of
    the student trains, adapters of a `rank` or all of it; over how many `devices`, and how, with what is kept in main
    memory (`offload`); of what kind, and with how much memory `available` (`16GB`), if not those of this machine; and
    whether to `calibrate`: to take real steps.
    """

    sequence_length: int | None = None
    method: Literal["full", "lora", "qlora"] | None = None
    rank: int | None = None
    devices: int = 1
    strategy: Strategy = "ddp"
    offload: bool = False
    device: DeviceType | None = None
    available: str | None = None
    calibrate: bool = False

    @property
    def adapters(self) -> LoraAdapter | None:
        """What trains of the student, if not all of it."""
        return None if self.method in (None, "full") else LoraAdapter(rank=self.rank or USUAL_RANK)

    @staticmethod
    def settings_without(file: Path | None, teacher: str | None, student: str | None) -> Flags:
        """What a configuration needs and no flag says, where there is no file: rows, and a student as large as the
        teacher.
        """
        if file is not None:
            return {}
        as_large: Flags = {} if student is not None else {("student", "model_id"): (teacher, "--teacher")}
        return {("dataset", "name"): ("stdlib-docstrings", "--teacher"), **as_large}


def estimate(config: DistillationConfig, wanted: Wanted, subject: str, *, rows: bool = True) -> MemoryReport:
    """What a distillation takes. `subject` is what it is called; `rows` says whether its data are meant, or any.

    Raises:
        EntrenarError: of the kind that fits.
    """
    from entrenar_core.memory.machine import asked_machine, named_machine

    if wanted.available is not None:
        named_machine(wanted.available)  # a mistake in it is told before torch is loaded
    with Progress() as progress:
        task = progress.task("loading libraries")
        from entrenar_core.memory.reporting import report

        machine = asked_machine(wanted.available, wanted.device)
        task.end()
        if wanted.offload and machine.device == "cpu":
            raise UsageError("--offload keeps weights beside a GPU, and cpu is asked about", "add --device cuda")
        task = progress.task("tracing a step")
        parts = _parts(config, wanted, machine)
        if wanted.method is not None:
            parts = [*parts[:-1], _adapted(parts[-1], wanted.adapters, quantized=wanted.method == "qlora")]
        found = report(
            parts,
            subject=subject,
            machine=machine,
            compare=True,
            words="settings",
            steps=_steps(config, parts[-1].job, machine, rows=rows),
            calibrate=wanted.calibrate,
        )
        task.end()
    return found


def _steps(config: DistillationConfig, job: "Job", machine: "Machine", *, rows: bool) -> int | None:
    """How many a run takes; None where nobody could tell their time, or data would have to be fetched."""
    training, data = config.training, config.dataset
    if training.max_steps is not None or machine.named:
        return training.max_steps
    if (
        not rows
        or data.streaming
        or data.packing
        or source_of(data) == "huggingface"
        or not isinstance(job, TrainingJob)
    ):
        return None
    from entrenar_core.data.sources import load_rows

    try:
        found = load_rows(data, task=job.student.task, seed=training.seed)
    except EntrenarError:  # which a run would tell
        return None
    passes = math.ceil(found.num_train_rows / training.batch_size)
    return training.epochs * math.ceil(passes / training.gradient_accumulation)


def _adapted(part: "Part", adapters: LoraAdapter | None, *, quantized: bool) -> "Part":
    """With what a flag says in place of what the configuration does."""
    job = part.job
    assert isinstance(job, TrainingJob), "the last part of a run"
    load_in: LoadIn | None = "nf4" if quantized else None
    student = replace(job.student, load_in=load_in, double_quantized=quantized, compute_dtype=None)
    return replace(part, job=replace(job, adapters=adapters, student=student))


def _parts(config: DistillationConfig, wanted: Wanted, machine: "Machine") -> "list[Part]":
    from entrenar_core.memory.positions import require_positions
    from entrenar_core.memory.runs import RunFacts, parts_of
    from entrenar_core.models.student_settings import planned_config

    sections = each_teacher(config)
    teachers = [_described(one.teacher, one.teacher.model_id) for one in sections]
    student = None if config.student.model_id is None else _described(config.student, config.student.model_id)
    task = config.task or infer_task(teachers[0], student, fitted=sections[0].teacher.finetune is not None)
    if task is None and sections[0].teacher.finetune is not None:
        task = CLASSIFICATION
    if task is None:
        raise UsageError(*UNTOLD)
    of_teachers = [_settings(one) for one in teachers]
    of_student = planned_config(config.student, of_teachers[0], task=task) if student is None else _settings(student)
    tokens = wanted.sequence_length or config.dataset.max_length
    for model, found in zip(teachers, of_teachers, strict=True):
        require_positions(found, tokens, str(model.reference))
    require_positions(of_student, tokens, "the student")
    spread = any(one.teacher.device_map is not None for one in sections)
    facts = RunFacts(
        task,
        of_teachers,
        of_student,
        tokens,
        sharding=Sharding() if spread else _sharding(config, wanted),
        device=machine.device,
        gpus=max(wanted.devices, machine.devices),
        room_bytes=machine.available_bytes,
    )
    return parts_of(config, facts)


def _sharding(config: DistillationConfig, wanted: Wanted) -> Sharding:
    from entrenar_core.memory.asking import sharding_of

    return sharding_of(wanted.devices, wanted.strategy, config.training.batch_size, offload=wanted.offload)


def _described(source: ModelSource, model_id: str) -> ModelArtifact:
    """A model by its configuration: of the Hub, nothing else is fetched."""
    reference = parse_reference(model_id, revision=source.revision)
    if not isinstance(reference, HubReference):
        kind = WeightFormat(source.format) if source.format else None
        return inspect_folder(
            reference.locate(),
            format=kind,
            files=source.files,
            allow_pickle=True,
            weights_needed=False,
            reference=reference,
        )
    folder = fetch_config(reference)
    if folder.is_file():
        return inspect_folder(folder, reference=reference)
    settings = read_json(folder / "config.json")
    return ModelArtifact(reference, folder, (), 0, WeightFormat.SAFETENSORS, settings, architecture_of(settings), None)


def _settings(model: ModelArtifact) -> "PreTrainedConfig":
    from entrenar_core.models.loading import load_config

    return load_config(model)
