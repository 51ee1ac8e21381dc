"""Accelerator, student and batches, as the configuration describes them."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from transformers import PreTrainedModel

from entrenar_core.config.adapters import LoraSettings
from entrenar_core.config.one_teacher import each_teacher
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.data.streams import shuffled
from entrenar_core.errors import UsageError
from entrenar_core.models.adapted import adapt
from entrenar_core.models.importance import Sample
from entrenar_core.models.loading import seeded
from entrenar_core.models.student import build_student
from entrenar_core.models.widths import is_measured
from entrenar_core.training.batches import Batches, StoredBatches, StreamedBatches
from entrenar_core.training.packing import packing_of
from entrenar_core.training.preparation import Preparation

SAMPLED_ROWS = 32
"""Training rows on which the importance of heads and neurons is measured."""


def make_accelerator(config: DistillationConfig) -> Accelerator:
    """accelerate, set up for one process or DDP.

    Raises:
        UsageError: the machine, the launcher or the environment cannot do what is asked.
    """
    missing = [name for name in config.training.trackers if name not in {str(t) for t in get_available_trackers()}]
    if missing:
        raise UsageError(
            f"tracker `{missing[0]}` is not installed",
            f"install the package that brings {missing[0]}, or remove it from `training.trackers`",
        )
    AcceleratorState._reset_state()
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        accelerator = Accelerator(
            mixed_precision=config.training.mixed_precision,
            # a loss is divided once, by the loop: the environment, which a launcher sets, may not divide it again
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=list(config.training.trackers) or None,
            project_dir=config.output.dir / "trackers",
            cpu=launched and not torch.cuda.is_available(),  # else accelerate takes torchrun's processes for strangers
        )
    except ValueError as error:
        raise UsageError(
            f"`training.mixed_precision: {config.training.mixed_precision}`: {error}", "use bf16 or no on this machine"
        ) from None
    if config.training.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("`training.mixed_precision: fp16` needs a GPU", "use bf16 or no on this machine")
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise UsageError(
            f"launched for {accelerator.distributed_type.value}, and training runs in one process or under DDP",
            "launch with torchrun, or with an accelerate configuration without FSDP and DeepSpeed",
        )
    if any(
        shares_gpus(one.teacher.device_map, accelerator.num_processes, torch.cuda.device_count())
        for one in each_teacher(config)
    ):
        raise UsageError(
            f"`teacher.device_map` puts parts of the teacher on GPUs by their numbers, and {accelerator.num_processes} "
            "processes would each put theirs on the same ones",
            "train with one process, or remove it: each process then holds the teacher on its own GPU",
        )
    return accelerator


def shares_gpus(device_map: str | Mapping[str, int | str] | None, processes: int, gpus: int) -> bool:
    """Whether processes would put their copies of a teacher on GPUs that others use, too."""
    if device_map is None or processes == 1 or gpus == 0:
        return False
    return not set(device_map.values() if isinstance(device_map, Mapping) else [device_map]) <= {"cpu", "disk"}


EVA_BATCHES, EVA_ROWS = 4, 16
"""Training rows whose principal directions `init: eva` finds."""


def make_student(
    prepared: Preparation, teacher_model: PreTrainedModel | None = None, device: torch.device | None = None
) -> PreTrainedModel:
    """The student before training, with its adapter if it has one, the same bits for the same configuration.

    Quantised weights are on `device`; else all is on the CPU.
    """
    student = build_student(
        prepared.config.student,
        teacher_artifact=prepared.teacher,
        teacher_model=teacher_model,
        student_artifact=prepared.student,
        task=prepared.task,
        label_names=prepared.label_names,
        seed=prepared.config.training.seed,
        vocab_size=prepared.num_ids,
        pad_token_id=prepared.collator.pad_token_id,
        sample=_sample(prepared),
        device=device,
    )
    adapter = prepared.adapter
    if adapter is None:
        return student
    name = prepared.config.student.model_id
    sample = _eva_sample(prepared) if isinstance(adapter, LoraSettings) and adapter.init == "eva" else None
    with seeded(prepared.seed):
        # peft's wrapper gives what the model in it has
        return cast(PreTrainedModel, adapt(student, adapter, prepared.task, name, sample=sample))


def _eva_sample(prepared: Preparation) -> Sample:
    rows = iter(prepared.train_tokens)
    batches = (list(itertools.islice(rows, EVA_ROWS)) for _ in range(EVA_BATCHES))
    collated = [prepared.collator(batch) for batch in batches if batch]
    return [(batch.input_ids_BT, batch.attention_mask_BT) for batch in collated]


def _sample(prepared: Preparation) -> Sample | None:
    """The first training rows, for what is measured on texts; the same in every process."""
    init = prepared.config.student.init_from
    if init is None or not is_measured(init):
        return None
    rows = itertools.islice(prepared.train_tokens, SAMPLED_ROWS)
    ids = (torch.tensor([row["input_ids"]]) for row in rows)
    return [(input_ids_BT, torch.ones_like(input_ids_BT)) for input_ids_BT in ids]


@dataclass(frozen=True, slots=True)
class PlannedSteps:
    """How many optimiser steps a training has, and of how many examples each is on average. `fill` is the share of
    packed rows that is no padding.
    """

    steps: int
    examples_per_step: int
    fill: float | None


def planned_steps(prepared: Preparation) -> PlannedSteps:
    """Of a training on one process."""
    training = prepared.config.training
    batches = make_batches(prepared, prepared.train_tokens, training.max_steps, 0, 1)
    packing = packing_of(prepared, prepared.train_tokens)
    in_a_row = 1.0 if packing is None else len(prepared.train_tokens) / len(packing)
    examples = round(training.batch_size * training.gradient_accumulation * in_a_row)
    return PlannedSteps(batches.total_steps, examples, None if packing is None else packing.fill)


def make_batches(prepared: Preparation, tokens: Any, max_steps: int | None, rank: int, world_size: int) -> Batches:
    """The batches of a training; `max_steps` replaces that of the configuration."""
    training = prepared.config.training.model_copy(update={"max_steps": max_steps})
    sizes = (getattr(term.entry, "group_size", 1) for term in prepared.terms)
    group_size = math.lcm(*sizes)
    if not prepared.config.dataset.streaming:
        packing = packing_of(prepared, tokens)
        return StoredBatches(tokens, prepared.collator, training, rank, world_size, group_size, packing)

    def rows_of(epoch: int) -> Iterator[dict[str, Any]]:
        return iter(shuffled(tokens, seed=training.seed, epoch=epoch))

    count = prepared.rows.num_train_rows
    return StreamedBatches(rows_of, count, prepared.collator, training, rank, world_size, group_size)
