"""What a deep model takes, told from traces of a few of its layers.

What is in memory at a place of a step grows by as much with every period of equal layers: their weights, and what they
leave for the backward pass. So of two depths, a period apart, every other depth follows, place by place. Places near
the first layer are those of the first, and the others are counted from the last; between them it is a straight line.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.fakes import stacks_of

_MOST_BEFORE = 8
"""Layers before the first period that may differ from what follows."""


@dataclass(frozen=True, slots=True)
class Depths:
    """Traces with `short` and with `short + period` layers tell of `total`."""

    short: int
    period: int
    total: int

    @property
    def periods(self) -> int:
        """How many are left out of the short one."""
        return (self.total - self.short) // self.period

    def is_early(self, layer: int) -> bool:
        """Whether a layer of the short model is counted from the first."""
        return layer < self.short - self.period


def depths_of(model: PreTrainedModel) -> Depths | None:
    """How few layers tell of all; None where it takes all of them."""
    stacks = stacks_of(model)
    return plan(kinds_of(stacks[0])) if len(stacks) == 1 else None


def kinds_of(stack: nn.ModuleList) -> list[Hashable]:
    """What tells the layers of a stack apart: their classes, weights and kind of attention."""
    return [_kind(layer) for layer in stack]


def _kind(layer: nn.Module) -> Hashable:
    names = ("attention_type", "is_sliding", "sliding_window", "layer_type")
    said = tuple(
        (name, str(value))
        for module in layer.modules()
        for name in names
        if (value := getattr(module, name, None)) is not None
    )
    classes = tuple(type(module).__name__ for module in layer.modules())
    return classes, said, tuple((name, tuple(weight.shape), weight.dtype) for name, weight in layer.named_parameters())


def plan(kinds: Sequence[Hashable]) -> Depths | None:
    """The two shallowest depths from which the others follow, which have the first layers and end as all do."""
    total = len(kinds)
    found = []
    for before in range(min(_MOST_BEFORE, total)):
        for period in range(1, (total - before) // 2 + 1):
            if all(kinds[at] == kinds[at + period] for at in range(before, total - period)):
                least = before + period + (total - before) % period
                short = least if least > period else least + period
                found.append(Depths(short, period, total))
                break
    found = [one for one in found if one.short + one.period < one.total]
    return min(found, key=lambda one: one.short + one.period, default=None)


def extrapolated(base: Trace, longer: Mapping[int, Trace], depths: Mapping[int, Depths]) -> Trace:
    """All layers of some models from a trace with few of each, and one trace for each in which it has a period more.

    Args:
        base: with the `short` depth of each of these models.
        longer: by the number of the model, 0 for the student.
        depths: of the same models.
    """
    tables = {number: _by_place(trace) for number, trace in longer.items()}
    moments = [_moved(moment, tables, depths) for moment in base.moments]

    def whole(values: Mapping[int, int], own: int) -> int:
        return own + sum(depths[number].periods * (value - own) for number, value in values.items())

    return Trace(
        tuple(moments),
        whole({number: trace.flops for number, trace in longer.items()}, base.flops),
        whole({number: trace.parameters for number, trace in longer.items()}, base.parameters),
        whole({number: trace.trainable_parameters for number, trace in longer.items()}, base.trainable_parameters),
        whole({number: trace.teacher_parameters for number, trace in longer.items()}, base.teacher_parameters),
    )


def _by_place(trace: Trace) -> dict[tuple[str, int, int | None], Moment]:
    return {(moment.phase, moment.model, moment.layer): moment for moment in trace.moments}


def _moved(
    moment: Moment,
    tables: Mapping[int, Mapping[tuple[str, int, int | None], Moment]],
    depths: Mapping[int, Depths],
) -> Moment:
    """A moment of the short models as one of the whole ones."""
    held = dict(moment.held)
    for number, table in tables.items():
        other = table.get((moment.phase, moment.model, _later(moment, number, depths[number], 1)))
        if other is None:
            continue
        for key in {*moment.held, *other.held}:
            more = other.held.get(key, 0) - moment.held.get(key, 0)
            held[key] = max(0, held.get(key, 0) + depths[number].periods * more)
    of_model = depths.get(moment.model)
    layer = moment.layer if of_model is None else _later(moment, moment.model, of_model, of_model.periods)
    return Moment(moment.phase, layer, held, moment.model)


def _later(moment: Moment, number: int, depths: Depths, periods: int) -> int | None:
    """The place of a moment in a model that has so many periods more."""
    if moment.layer is None or moment.model != number or depths.is_early(moment.layer):
        return moment.layer
    return moment.layer + periods * depths.period
