"""Accelerator, student and batches, as the configuration describes them."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from transformers import PreTrainedModel

from entrenar_core.architectures import architecture_of
from entrenar_core.config.desugaring import Term
from entrenar_core.config.losses import LabelLoss, LayerLoss, SelectiveLoss, SoftLoss
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.wording import dotted
from entrenar_core.data.streams import shuffled
from entrenar_core.errors import ConfigError, Problem, UsageError
from entrenar_core.losses import DIVERGENCES, Core, top_k, where_uncertain
from entrenar_core.models.layer_rules import chosen_pairs
from entrenar_core.models.layer_similarity import similar_layers
from entrenar_core.models.loading import seeded
from entrenar_core.models.recording import require_recordable
from entrenar_core.models.student import build_student
from entrenar_core.models.wants import EMBEDDINGS
from entrenar_core.teachers.precomputed import LiveTeacher, Teacher
from entrenar_core.training.batches import Batches, StoredBatches, StreamedBatches
from entrenar_core.training.layer_terms import LayerTerm, Sizes, make_layer_term
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.preparation import Preparation


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


def make_student(prepared: Preparation, teacher_model: PreTrainedModel | None = None) -> PreTrainedModel:
    """The student before training, the same bits for the same configuration."""
    return build_student(
        prepared.config.student,
        teacher_artifact=prepared.teacher,
        teacher_model=teacher_model,
        student_artifact=prepared.student,
        task=prepared.task,
        label_names=prepared.label_names,
        seed=prepared.config.training.seed,
        vocab_size=prepared.num_ids,
        pad_token_id=prepared.collator.pad_token_id,
    )


def make_objective(
    terms: Sequence[Term], prepared: Preparation, student: nn.Module, teacher: Teacher | None
) -> Objective:
    """What a training makes small.

    Raises:
        ConfigError: a loss does not fit the sizes of the models.
        ModelError: a model does not show its layers.
    """
    layered = [term for term in terms if isinstance(term.entry, LayerLoss)]
    rows = tuple(_row_term(term) for term in terms if term not in layered)
    if not layered:
        return Objective(prepared.counting, rows)
    assert isinstance(teacher, LiveTeacher), "layers are compared over the same tokens"
    with seeded(prepared.config.training.seed):
        made = tuple(_layer_term(term, prepared, student, teacher.model) for term in layered)
    objective = Objective(prepared.counting, rows, made)
    for side, model in enumerate((student, teacher.model)):
        wants = objective.wants(side)
        require_recordable(model, hidden=wants.hidden - {EMBEDDINGS}, attention=wants.attention)
    return objective


def _layer_term(term: Term, prepared: Preparation, student: nn.Module, teacher: nn.Module) -> LayerTerm:
    sizes = sizes_of(student), sizes_of(teacher)
    assert isinstance(term.entry, LayerLoss)
    try:
        if term.entry.layers == "cka":
            pairs = similar_layers(student, teacher, prepared.sample(), sizes[0].num_layers, sizes[1].num_layers)
        else:
            pairs = chosen_pairs(term.entry.layers, sizes[0].num_layers, sizes[1].num_layers)
        return make_layer_term(term, pairs, *sizes)
    except ValueError as error:
        raise ConfigError([Problem(f"`{dotted(term.path)}`: {error}", "change it, or the student")]) from error


def _row_term(term: Term) -> RowTerm:
    if isinstance(term.entry, LabelLoss):
        return RowTerm(term.label, term.weight, smoothing=term.entry.label_smoothing)
    assert isinstance(term.entry, SoftLoss)
    assert term.temperature is not None, "every soft loss has one"
    return RowTerm(term.label, term.weight, make_core(term.entry), term.temperature)


def sizes_of(model: nn.Module) -> Sizes:
    """Of a model, or of what is inside a wrapper such as a probe."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    settings = inner.config.to_dict()
    found = architecture_of(settings)
    heads = found.num_heads or 0
    assert found.num_layers, "a family of the table without its sizes"
    rotates = any(settings.get(name) for name in ("rope_parameters", "rope_theta"))
    return Sizes(found.num_layers, found.hidden_size or 0, heads, found.num_kv_heads or heads, rotates)


def make_core(entry: SoftLoss) -> Core:
    """The divergence of an entry, with its parameters and what it selects."""
    row = DIVERGENCES[entry.name]
    core = row.make(**{name: getattr(entry, name) for name in row.parameters})
    if isinstance(entry, SelectiveLoss) and entry.top_k is not None:
        core = top_k(core, entry.top_k, tail=entry.top_k_tail)
    return core if entry.entropy_threshold is None else where_uncertain(core, entry.entropy_threshold)


def make_batches(prepared: Preparation, tokens: Any, max_steps: int | None, rank: int, world_size: int) -> Batches:
    """The batches of a training; `max_steps` replaces that of the configuration."""
    training = prepared.config.training.model_copy(update={"max_steps": max_steps})
    sizes = (getattr(term.entry, "group_size", 1) for term in prepared.terms)
    group_size = math.lcm(*sizes)
    if not prepared.config.dataset.streaming:
        return StoredBatches(tokens, prepared.collator, training, rank, world_size, group_size)

    def rows_of(epoch: int) -> Iterator[dict[str, Any]]:
        return iter(shuffled(tokens, seed=training.seed, epoch=epoch))

    count = prepared.rows.num_train_rows
    return StreamedBatches(rows_of, count, prepared.collator, training, rank, world_size, group_size)
