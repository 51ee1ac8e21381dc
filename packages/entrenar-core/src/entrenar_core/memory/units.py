"""The parts of a model that are gathered whole where its weights are divided over devices, and how large they are.

FSDP gathers the weights of one unit at a time. Units are the layers, as accelerate's policy for transformers has them;
what is outside of the layers (embeddings, the last norm, the head) is the root unit, which encloses them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entrenar_core.memory.adapting import adapt
from entrenar_core.memory.fakes import empty_model, stacks_of
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Job, MixedPrecision, ReadingJob
from entrenar_core.memory.quantised import quantize_
from entrenar_core.models.heads import LANGUAGE

Sizes = Mapping[str, int]
"""Bytes by dtype."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Weights that are gathered together, those of them that train, and those that autocast would make copies of (the
    matrices at 32 bits, as numbers), of which some train.
    """

    weights: Sizes
    trained: Sizes
    cast: int = 0
    cast_trained: int = 0

    @property
    def size_bytes(self) -> int:
        """Of all its weights."""
        return sum(self.weights.values())


@dataclass(frozen=True, slots=True)
class Units:
    """The layers of a model in their order, and what encloses them. Weights that bitsandbytes quantised are in none of
    them: accelerate does not divide these.
    """

    layers: tuple[Unit, ...]
    root: Unit

    @property
    def all(self) -> tuple[Unit, ...]:
        """Every unit."""
        return (*self.layers, self.root)

    @property
    def weights(self) -> Sizes:
        """Of all units."""
        return added(unit.weights for unit in self.all)

    @property
    def largest_layer(self) -> int:
        """In bytes; 0 without layers."""
        return max((unit.size_bytes for unit in self.layers), default=0)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the division of a job over devices has to know of it: the units of the models (None for a teacher that is
    cached); in which precision and how they are computed; whether the loss makes the gradients of the head by itself,
    as entrenar's does for language models; whether the devices are processors, which talk by gloo; and whether some
    layers are `quantized`.
    """

    student: Units
    teachers: tuple[Units | None, ...] = ()
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    gradient_accumulation: int = 1
    fused_loss: bool = False
    gloo: bool = False
    quantized: bool = False


def added(sizes: Iterable[Sizes]) -> Sizes:
    """The sum by dtype."""
    total: Counter[str] = Counter()
    for one in sizes:
        total.update(one)
    return dict(total)


def unit_sizes(whole: nn.Module) -> Units:
    """The units of a model, which may be on `meta`, with adapters or without. Shared weights belong to the first unit
    that has them, the root before the layers.
    """
    model = next(module for module in whole.modules() if isinstance(module, PreTrainedModel))
    layers = [layer for stack in stacks_of(model) for layer in stack]
    inside = {id(module) for layer in layers for module in layer.modules()}
    seen: set[int] = set()
    root = _unit((module for module in whole.modules() if id(module) not in inside), seen)
    return Units(tuple(_unit(layer.modules(), seen) for layer in layers), root)


def _unit(modules: Iterable[nn.Module], seen: set[int]) -> Unit:
    weights: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    cast: Counter[bool] = Counter()
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen or type(parameter).__module__.startswith("bitsandbytes"):
                continue
            seen.add(id(parameter))
            dtype, size_bytes = str(parameter.dtype).removeprefix("torch."), parameter.numel() * parameter.itemsize
            weights[dtype] += size_bytes
            if parameter.requires_grad:
                trained[dtype] += size_bytes
            if isinstance(module, nn.Linear | Conv1D) and parameter.itemsize == 4:
                cast[parameter.requires_grad] += parameter.numel()
    return Unit(dict(weights), dict(trained), cast.total(), cast[True])


def facts_of(job: Job) -> Facts:
    """What the division of a job has to know, from its configurations alone.

    Raises:
        ModelError: transformers cannot make a model, or adapters do not fit it.
    """
    gloo = job.device == "cpu"
    if isinstance(job, ReadingJob):
        return Facts(Units((), Unit({}, {})), (_frozen(job.model),), job.mixed_precision, gloo=gloo)
    if isinstance(job, InferenceJob):
        return Facts(_frozen(job.model), gloo=gloo)
    model = _empty(job.student)
    student = model if job.adapters is None else adapt(model, job.adapters, job.student)
    teachers = tuple(None if one.cached is not None else _frozen(one.model) for one in job.teachers)
    return Facts(
        unit_sizes(student),
        teachers,
        job.mixed_precision,
        job.gradient_checkpointing,
        job.gradient_accumulation,
        job.student.task in LANGUAGE and not job.all_logits,
        gloo,
        job.student.load_in is not None or any(one.model.load_in is not None for one in job.teachers),
    )


def _frozen(held: HeldModel) -> Units:
    return unit_sizes(_empty(held).requires_grad_(False))


def _empty(held: HeldModel) -> PreTrainedModel:
    model = empty_model(held)
    if held.load_in is not None:
        quantize_(model, held)
    return model
