"""Architectures for a student of a given size: parts of the teacher, with counts that are exact.

A proposal is what `student.init_from` can make of the teacher: fewer layers, a narrower residual stream with as many
heads fewer (each keeps its width), and feed-forward layers about as wide against it as the teacher's. Parameters are
counted on models without memory (torch's meta device), what is tied once. Between the models that are counted, the
count is linear in the layers and in the feed-forward width, so that few of them tell where to look.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from entrenar_core.architectures import Architecture, Family, architecture_of, families
from entrenar_core.config.schema import InitFrom
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.quiet import explaining
from entrenar_core.models.student_settings import copied_settings
from entrenar_core.models.widths import check_widths
from entrenar_core.units import count

Keep = Literal["depth", "width", "balanced"]
SPREAD = 0.25
"""How far the feed-forward width may be from the teacher's proportion."""
_NEAR = 3


class Shape(NamedTuple):
    """How many heads the residual stream is wide, how many layers deep, and how wide the feed-forward layers are."""

    heads: int
    layers: int
    intermediate: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """An architecture and what it counts. `init_from` are the settings that make it, without what stays."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    parameters: int
    embedding_parameters: int
    init_from: dict[str, int]


@dataclass(frozen=True, slots=True)
class Proposals:
    """Proposals, the nearest to the goal first. `counts_head`: the head over tokens is counted, which encoders lack."""

    family: str
    teacher_parameters: int
    goal: int
    counts_head: bool
    proposals: tuple[Proposal, ...]


def propose(
    teacher: PreTrainedConfig,
    *,
    ratio: float | None = None,
    parameters: int | None = None,
    keep: Keep = "balanced",
    number: int = 5,
) -> Proposals:
    """Students of a teacher with a `ratio`-th of its parameters, or about so many `parameters`.

    Args:
        teacher: the teacher's config.
        ratio: how many times smaller than the teacher.
        parameters: how many parameters.
        keep: `depth` keeps the layers and makes them narrower, `width` keeps the widths and takes fewer layers (the
            feed-forward width is adjusted in both), `balanced` does as much of one as of the other.
        number: how many proposals at most.

    Raises:
        UsageError: not one of `ratio` and `parameters` is given; or no student of this size can be made this way.
        ModelError: the family cannot be made narrower, or is not known.
    """
    if (ratio is None) == (parameters is None):
        raise UsageError("a design needs one of --ratio and --params, and not both", "give --ratio 7, or --params 1.1B")
    space = _Space(teacher, _family(teacher, keep), keep)
    whole = space.teacher_parameters
    goal = parameters if parameters is not None else round(whole / (ratio or 1))
    if goal >= whole:
        what = f"{count(goal)} parameters are not fewer than the teacher's {count(whole)}"
        raise UsageError(what, "give a --ratio above 1, or fewer --params")
    smallest = space.built(space.shape(space.choices[0], space.layers_for(1), 0))
    if goal < smallest.parameters:
        raise UsageError(
            f"with --keep {keep}, a student has {smallest.parameters:,} parameters at least, "
            f"{smallest.embedding_parameters:,} of them embeddings",
            f"give --params {smallest.parameters} or more" + ("" if keep == "balanced" else ", or --keep balanced"),
        )
    found = sorted(space.near(goal), key=lambda shape: abs(space.predicted(shape) - goal))[:number]
    return Proposals(space.family.name, whole, goal, space.is_decoder, tuple(map(space.built, found)))


def _family(teacher: PreTrainedConfig, keep: Keep) -> Family:
    architecture = architecture_of(teacher.to_dict())
    family = families().get(architecture.family or "")
    if family is None or family.kind == "encoder-decoder":
        what = f"the teacher is a {teacher.model_type}, whose inside is not known here"
        raise ModelError(what, f"known are {', '.join(name for name, row in families().items() if row.flows)}")
    if family.flows is None and keep != "width":
        problem = next(check_widths(InitFrom(hidden_size=1), family, architecture))
        raise ModelError(problem.message, "use --keep width")
    return family


class _Space:
    """The students of a teacher, by how many of the teacher's heads' widths the residual stream has."""

    def __init__(self, teacher: PreTrainedConfig, family: Family, keep: Keep) -> None:
        self.config, self.family, self.keep = teacher, family, keep
        self.teacher: Architecture = architecture_of(teacher.to_dict())
        sizes = (self.teacher.num_layers, self.teacher.hidden_size, self.teacher.num_heads)
        if not all((*sizes, self.teacher.intermediate_size)):
            raise ModelError(
                "the teacher's config does not say how large it is", "name a model with a whole config.json"
            )
        self.layers, self.hidden, self.heads = (size or 1 for size in sizes)
        self.kv_heads = self.teacher.num_kv_heads or self.heads
        self.intermediate = self.teacher.intermediate_size or 1
        self.unit = self.hidden // self.heads
        self.is_decoder = family.kind == "decoder"
        self._lines: dict[int, _Line] = {}

    @cached_property
    def teacher_parameters(self) -> int:
        """The teacher's parameters."""
        return parameter_count(self._model(InitFrom()))

    @property
    def choices(self) -> Sequence[int]:
        """The numbers of heads to choose from."""
        if self.keep == "width" or self.family.flows is None:
            return (self.heads,)
        return [heads for heads in range(1, self.heads + 1) if self.kv_heads_for(heads)]

    def kv_heads_for(self, heads: int) -> int | None:
        """Key-value heads for so many heads: each serves as many as in the teacher, or the next smaller number."""
        group = self.heads // self.kv_heads
        fitting = (heads // each for each in range(group, 0, -1) if heads % each == 0)
        return next((kv_heads for kv_heads in fitting if kv_heads <= self.kv_heads), None)

    def layers_for(self, heads: int) -> int:
        """Layers that go with so many heads."""
        if self.keep == "depth":
            return self.layers
        return 1 if self.keep == "width" else max(1, round(self.layers * heads / self.heads))

    def near(self, goal: int) -> Iterator[Shape]:
        """Students whose parameters are near the goal, one for each number of layers and heads."""
        choices = self.choices
        if self.keep == "width":
            line = self._line(choices[0])
            depth = (goal - line.outside) / line.layer(self.natural(choices[0]))
            pairs = [(choices[0], layers) for layers in range(math.floor(depth) - 1, math.ceil(depth) + 2)]
        else:
            at = bisect_left(choices, goal, key=lambda heads: self._natural_count(heads))
            around = choices[max(0, at - _NEAR) : at + _NEAR]
            pairs = [(heads, self.layers_for(heads) + more) for heads in around for more in self._further()]
        for heads, layers in pairs:
            if 1 <= layers <= self.layers:
                yield self.shape(heads, layers, goal)

    def _further(self) -> Sequence[int]:
        return (0,) if self.keep == "depth" else (-1, 0, 1)

    def natural(self, heads: int) -> int:
        """The feed-forward width in the teacher's proportion."""
        return self._rounded(self.intermediate * heads / self.heads)

    def _rounded(self, width: float) -> int:
        step = math.gcd(self.intermediate, 64)
        while step > 1 and step > width / 16:
            step //= 2
        return min(self.intermediate, max(step, round(width / step) * step))

    def shape(self, heads: int, layers: int, goal: int) -> Shape:
        """The student of so many heads and layers whose feed-forward width takes it nearest to a goal."""
        natural = self.natural(heads)
        if self.family.flows is None:
            return Shape(heads, layers, natural)
        line = self._line(heads)
        exact = ((goal - line.outside) / layers - line.fixed) / line.per_neuron
        width = min(max(exact, natural * (1 - SPREAD)), natural * (1 + SPREAD))
        return Shape(heads, layers, self._rounded(width))

    def predicted(self, shape: Shape) -> float:
        """What a student counts, without building it."""
        line = self._line(shape.heads)
        return line.outside + shape.layers * line.layer(shape.intermediate)

    def built(self, shape: Shape) -> Proposal:
        """A student with what it counts."""
        heads, layers, wide = shape
        init = self._settings(shape)
        model = self._model(init)
        embeddings = model.get_input_embeddings()
        return Proposal(
            layers,
            heads * self.unit if heads != self.heads else self.hidden,
            heads,
            self.kv_heads_for(heads) or heads,
            wide,
            parameter_count(model),
            parameter_count(embeddings),
            {name: size for name, size in init.model_dump(exclude_none=True).items() if isinstance(size, int)},
        )

    def _settings(self, shape: Shape) -> InitFrom:
        heads, layers, wide = shape
        kv_heads = self.kv_heads_for(heads)
        group = self.heads // self.kv_heads
        given: dict[str, int | None] = {
            "teacher_layers": layers if layers != self.layers else None,
            "hidden_size": heads * self.unit if heads != self.heads else None,
            "num_heads": heads if heads != self.heads else None,
            "num_kv_heads": kv_heads if kv_heads is not None and kv_heads != max(1, heads // group) else None,
            "intermediate_size": wide if wide != self.intermediate else None,
        }
        return InitFrom(**given)

    def _natural_count(self, heads: int) -> int:
        line = self._line(heads)
        return round(line.outside + self.layers_for(heads) * line.layer(self.natural(heads)))

    def _line(self, heads: int) -> "_Line":
        if heads not in self._lines:
            wide = self.natural(heads)
            other = wide // 2 if wide > 1 else wide
            counts = [
                parameter_count(self._model(self._settings(Shape(heads, layers, width))))
                for layers, width in ((1, wide), (min(2, self.layers), wide), (1, other))
            ]
            layer = counts[1] - counts[0] or counts[0]  # of a single layer, all counts as its own
            per_neuron = (counts[0] - counts[2]) / max(1, wide - other)
            self._lines[heads] = _Line(counts[0] - layer, layer - per_neuron * wide, per_neuron or 1)
        return self._lines[heads]

    def _model(self, init: InitFrom) -> PreTrainedModel:
        settings, __ = copied_settings(init, self.config, self.family)
        auto = AutoModelForCausalLM if self.is_decoder else AutoModel
        with explaining("architecture", self.config.model_type, "name another teacher"), torch.device("meta"):
            model: PreTrainedModel = auto.from_config(AutoConfig.for_model(**settings))
        return model


@dataclass(frozen=True, slots=True)
class _Line:
    """The count at one width of the stream: outside + layers × (fixed + per_neuron × intermediate)."""

    outside: float
    fixed: float
    per_neuron: float

    def layer(self, intermediate: int) -> float:
        """A layer's parameters."""
        return self.fixed + self.per_neuron * intermediate
