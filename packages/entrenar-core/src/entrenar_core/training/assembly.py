"""Accelerator, student and batches, as the configuration describes them."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from entrenar_core.config.schema import DistillationConfig, DistillationSection
from entrenar_core.data.streams import shuffled
from entrenar_core.errors import UsageError
from entrenar_core.losses import DIVERGENCES, top_k, where_uncertain
from entrenar_core.models.student import build_student
from entrenar_core.training.batches import Batches, StoredBatches, StreamedBatches
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.step import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def student_name(config: DistillationConfig) -> str:
    """What the student is, in a few words."""
    student = config.student
    if student.model_id is not None:
        return student.model_id
    if student.init_from is not None:
        layers = student.init_from.teacher_layers
        return f"{layers if isinstance(layers, int) else len(layers)} layers of the teacher"
    return f"{student.architecture or 'transformer'} of {student.num_layers} layers of {student.hidden_size}"


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
    return accelerator


def make_student(prepared: Preparation, teacher_model: "PreTrainedModel | None" = None) -> "PreTrainedModel":
    """The student before training, the same bits for the same configuration."""
    return build_student(
        prepared.config.student,
        teacher_artifact=prepared.teacher,
        teacher_model=teacher_model,
        student_artifact=prepared.student,
        task=prepared.task,
        label_names=prepared.label_names,
        seed=prepared.config.training.seed,
        vocab_size=len(prepared.tokenizer),
        pad_token_id=prepared.collator.pad_token_id,
    )


def make_objective(section: DistillationSection, alpha: float, causal: bool, vocabulary: int | None) -> Objective:
    """What a training makes small; `alpha` replaces that of the section, for a rival without a teacher."""
    core = DIVERGENCES[section.divergence].make()
    if section.top_k is not None:
        core = top_k(core, section.top_k, tail=section.top_k_tail)
    if section.entropy_threshold is not None:
        core = where_uncertain(core, section.entropy_threshold)
    return Objective(causal, alpha, section.temperature, core, section.label_smoothing, vocabulary)


def make_batches(prepared: Preparation, tokens: Any, max_steps: int | None, rank: int, world_size: int) -> Batches:
    """The batches of a training; `max_steps` replaces that of the configuration."""
    training = prepared.config.training.model_copy(update={"max_steps": max_steps})
    if not prepared.config.dataset.streaming:
        return StoredBatches(tokens, prepared.collator, training, rank, world_size)

    def rows_of(epoch: int) -> Iterator[dict[str, Any]]:
        return iter(shuffled(tokens, seed=training.seed, epoch=epoch))

    return StreamedBatches(rows_of, prepared.rows.num_train_rows, prepared.collator, training, rank, world_size)
