"""The memory of a distillation, from its configuration: what its parts take, one after the other.

A run may fit its teacher, let it read all texts before training, and then train. Each part is a job of its own; the
largest decides whether the run fits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.one_teacher import OneTeacher, each_teacher
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.sentences import for_task
from entrenar_core.config.teachers import (
    EndpointTeacher,
    GradientFinetuning,
    MovingAverageTeacher,
)
from entrenar_core.memory.jobs import (
    CachedSignals,
    CacheKind,
    DeviceType,
    HeldModel,
    Job,
    ReadingJob,
    Sharding,
    Spreading,
    Teaching,
    TrainingJob,
)
from entrenar_core.models.heads import CAUSAL_LM
from entrenar_core.models.reading import reads_tokens
from entrenar_core.training.names import student_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_ALONE = Sharding()


@dataclass(frozen=True, slots=True)
class Part:
    """A job of a run, and what it is called."""

    name: str
    job: Job


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a configuration does not say by itself.

    `teachers` and `student` are the configurations of the models, `length` the tokens of the longest row and
    `mean_length` of one on average, where rows were looked at; `gpus` how many a teacher may be spread over, each with
    `room_bytes` for its weights.
    """

    task: str
    teachers: "Sequence[PreTrainedConfig]"
    student: "PreTrainedConfig"
    length: int
    mean_length: float | None = None
    sharding: Sharding = _ALONE
    device: DeviceType = "cpu"
    gpus: int = 1
    room_bytes: int = 0


def parts_of(config: DistillationConfig, facts: RunFacts) -> list[Part]:
    """The jobs of a run, in the order in which they are done."""
    sections = each_teacher(config)
    parts: list[Part] = []
    teachings: list[Teaching] = []
    for place, (section, found) in enumerate(zip(sections, facts.teachers, strict=True)):
        name = "the teacher" if len(sections) == 1 else f"teacher {place + 1}"
        parts += _before(config, section, found, facts, name)
        teachings.append(_teaching(config, section, found, facts))
    return [*parts, Part("training", _training(config, sections[0], teachings, facts))]


def _training(
    config: DistillationConfig, section: OneTeacher, teachings: Sequence[Teaching], facts: RunFacts
) -> TrainingJob:
    training = config.training
    terms = terms_of(for_task(section, facts.task).distillation)
    taught = any(term.needs_teacher for term in terms)
    return TrainingJob(
        _student(config, facts),
        batch_size=training.batch_size,
        length=facts.length,
        teachers=tuple(teachings) if taught else (),
        terms=terms,
        counted=_counted(config, facts),
        padded=training.batch_size > 1 or config.dataset.packing,
        adapters=config.student.adapter,
        optimizer=training.optimizer,
        mixed_precision=training.mixed_precision,
        gradient_accumulation=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        evaluation_rows=training.evaluation_batch_size,
        device=facts.device,
        sharding=facts.sharding,
    )


def _student(config: DistillationConfig, facts: RunFacts) -> HeldModel:
    student = config.student
    held = HeldModel(
        student_name(config), facts.student, facts.task, student.dtype, trust_remote_code=student.trust_remote_code
    )
    return held if student.quantization is None else held.quantised(student.quantization)


def _counted(config: DistillationConfig, facts: RunFacts) -> int | None:
    """Positions that losses count in the batch of the longest row: beside it, rows as they are on average."""
    rows = -(-config.training.batch_size // facts.sharding.devices)
    if facts.task == "masked-lm":
        return round(rows * facts.length * config.dataset.mask_probability)
    if facts.task != CAUSAL_LM or facts.mean_length is None or config.dataset.packing:
        return None
    return round(facts.length + (rows - 1) * facts.mean_length)


def _held(section: OneTeacher, found: "PreTrainedConfig", task: str) -> HeldModel:
    teacher = section.teacher
    return HeldModel(
        str(teacher.model_id),
        found,
        task,
        dtype=teacher.dtype,
        load_in=teacher.load_in,
        trust_remote_code=teacher.trust_remote_code,
    )


def _teaching(config: DistillationConfig, section: OneTeacher, found: "PreTrainedConfig", facts: RunFacts) -> Teaching:
    model = _held(section, found, facts.task)
    if isinstance(config.teacher, EndpointTeacher):
        return Teaching(model, cached=CachedSignals("topk", config.teacher.top_logprobs))
    if isinstance(config.teacher, MovingAverageTeacher):
        return Teaching(replace(model, config=facts.student, dtype="float32", load_in=None))
    cached = _cached(section, facts)
    return Teaching(model, batch_size=section.teacher.batch_size, cached=cached, spreading=_spreading(section, facts))


def _spreading(section: OneTeacher, facts: RunFacts) -> Spreading | None:
    how = section.teacher.device_map
    return None if how is None else Spreading(how, facts.gpus, facts.room_bytes)


def _cached(section: OneTeacher, facts: RunFacts) -> CachedSignals | None:
    """What is read in place of the teacher: a cache, or what it said of all texts before training."""
    use = section.teacher.cache
    if use is not None and use.dir is not None and use.missing == "refuse":
        from entrenar_core.teachers.cache.manifest import read_manifest

        kind = read_manifest(use.dir).kind
        count = int(kind.get("k", kind.get("samples", kind.get("draws", 0))))
        return CachedSignals(cast(CacheKind, kind["name"]), count)
    if use is not None and use.memory is not None:
        return CachedSignals("hidden" if facts.task == CAUSAL_LM else "logits", held_bytes=use.memory)
    return None if reads_tokens(section, facts.task) else CachedSignals("logits")


def _before(
    config: DistillationConfig, section: OneTeacher, found: "PreTrainedConfig", facts: RunFacts, name: str
) -> Iterator[Part]:
    """What the teacher does before training."""
    teacher, training = section.teacher, config.training
    if isinstance(config.teacher, EndpointTeacher | MovingAverageTeacher):
        return
    model = _held(section, found, facts.task)
    if isinstance(teacher.finetune, GradientFinetuning):
        fitted = TrainingJob(
            model,
            batch_size=teacher.finetune.batch_size,
            length=facts.length,
            mixed_precision=training.mixed_precision,
            device=facts.device,
            sharding=facts.sharding,
        )
        yield Part(f"{name} is fitted", fitted)
    needed = _cached(section, facts)
    if needed is None or (teacher.cache is not None and teacher.cache.dir is not None):
        return
    rows = teacher.batch_size or training.evaluation_batch_size
    yield Part(
        f"{name} reads all rows",
        ReadingJob(
            model,
            rows,
            facts.length,
            training.mixed_precision,
            rows > 1,
            facts.device,
            _spreading(section, facts),
        ),
    )
