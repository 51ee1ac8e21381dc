"""The weights of a teacher made narrower: every matrix that a width runs through is cut at the same places.

Three widths can be cut: the residual stream (one cut for the whole model), the heads, and the neurons of the
feed-forward layers (a cut for each layer). Heads are cut whole, and with their keys and values. `families.toml` says
which matrix has which width on which side; a model with a tensor that is not in its table is refused.

With `embeddings: svd` the stream is not cut at coordinates but turned into its first principal directions U, in the
manner of SliceGPT (Ashkboos et al. 2024): what writes x writes Uᵀ x, and a norm without bias commutes with that once
its gain has gone into what reads it, but for its length: with the share f of the stream's energy that U keeps, the
norm's gain is √(f H / h). A head that is tied to the embeddings could not take a gain in, so the student's is untied.

Shapes: H numbers of the stream in the teacher, h in the student.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from entrenar_core.architectures import Family
from entrenar_core.architectures.flows import Axis, Flows, Side
from entrenar_core.config.schema import InitFrom
from entrenar_core.errors import ConfigError, Problem
from entrenar_core.models.choosing import Choice
from entrenar_core.models.cuts import Cut, Projection
from entrenar_core.models.importance import Moments, Sample, measure
from entrenar_core.models.matrices import Module, head_dim_of, matrices_of, reading, sizes_of
from entrenar_core.models.widths import Widths, is_measured


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Tensors by their names in the body and, of a head, in the model. Layers keep the teacher's numbers."""

    body: dict[str, Tensor]
    head: dict[str, Tensor]


def narrow(
    teacher: PreTrainedModel,
    family: Family,
    settings: InitFrom,
    widths: tuple[Widths, Widths],
    layers: Sequence[int],
    sample: Sample | None = None,
) -> Narrowed:
    """The weights of a teacher's `layers`, embeddings, norms and head at smaller widths, on the CPU in 32 bits.

    Args:
        teacher: a model of the family, with or without a head.
        family: its row of families.toml, with flows.
        settings: how to cut: `width`, `importance` and `embeddings`.
        widths: the teacher's and the student's.
        layers: the layers that the student has; what the others hold is neither cut nor counted.
        sample: texts to measure importance on.

    Raises:
        ConfigError: `importance: activation` without a sample.
        ModelError: the model has a tensor that the table does not know.
    """
    assert family.flows, "checked by check_widths"
    before, after = widths
    modules = matrices_of(teacher, family, before, layers)
    choice = Choice(settings, modules, before, after, None)
    choice = replace(choice, moments=_measured(teacher, family.flows, choice, sample))
    stream = choice.of_stream()
    tied = bool(teacher.config.tie_word_embeddings) and not choice.turns
    ready = _turned(choice, stream["hidden"], family.flows) if choice.turns else modules
    if family.scaled_embeddings:
        ready = _rescaled(ready, math.sqrt(before.hidden_size / after.hidden_size), tied=tied)
    cuts: dict[int | None, Mapping[Axis, Cut]] = {None: stream}
    cuts |= {layer: {**stream, **choice.of_layer(layer)} for layer in layers}
    return cut_through(ready, cuts, before, after.num_heads, tied=tied)


def cut_through(
    modules: Sequence[Module],
    cuts: Mapping[int | None, Mapping[Axis, Cut]],
    before: Widths,
    num_heads: int,
    *,
    tied: bool,
) -> Narrowed:
    """Cuts every module by the cuts of its layer, or those under None outside of the layers.

    Args:
        modules: the weights of a model of the widths `before`.
        cuts: for each layer the cuts of the residual stream, which are everywhere the same, and its own.
        before: the widths before.
        num_heads: the heads after.
        tied: whether the output matrix is the embeddings, and no tensor of its own.
    """
    sizes, found = sizes_of(before, head_dim_of(modules, before)), Narrowed({}, {})
    for module in modules:
        target = found.head if module.in_head else found.body
        for leaf in module.tensors:
            if tied and module.is_output and leaf == "weight":
                continue
            tensor = _cut(module, leaf, cuts[module.layer], sizes)
            target[f"{module.name}.{leaf}"] = module.stored(tensor, num_heads)
    return found


def _measured(teacher: PreTrainedModel, flows: Flows, choice: Choice, sample: Sample | None) -> Moments | None:
    if not is_measured(choice.settings) or choice.before == choice.after:
        return None
    if not sample:
        what = "`student.init_from.importance: activation` needs texts to measure on, and there are none"
        raise ConfigError([Problem(what, "use `importance: magnitude`", "student.init_from.importance")])
    readers = [m.name for axis in choice.decided() for m in reading(choice.modules, axis) if not m.in_head]
    norms = [m.name for m in choice.modules if m.row in flows.feeds] if choice.turns else []
    return measure(teacher.base_model, readers, norms, sample)


def _cut(module: Module, leaf: str, cuts: Mapping[Axis, Cut], sizes: Mapping[Axis, int]) -> Tensor:
    tensor, flow = module.tensors[leaf], module.flow
    if flow.is_norm and tensor.shape[0] != sizes["hidden"]:  # turned already
        return tensor
    tensor = _side(tensor, 0, flow.writes, cuts, sizes)
    return _side(tensor, 1, flow.reads, cuts, sizes) if leaf == "weight" and not flow.is_norm else tensor


def _side(weights: Tensor, dim: int, side: Side, cuts: Mapping[Axis, Cut], sizes: Mapping[Axis, int]) -> Tensor:
    """The outputs (dim 0) or inputs (dim 1) of a matrix, cut part by part."""
    if not any(part in cuts for part in side.parts):
        return weights
    pieces = list(torch.split(weights, [sizes[part] for part in side.parts], dim))
    for at, part in enumerate(side.parts):
        if cut := cuts.get(part):
            pieces[at] = cut.read(pieces[at]) if dim else cut.written(pieces[at])
    return torch.cat(pieces, dim)


def _turned(choice: Choice, cut: Cut, flows: Flows) -> tuple[Module, ...]:
    """Gains moved from the norms into what reads them, and the norms in the new directions."""
    assert isinstance(cut, Projection)
    moment_HH = choice.second_moment().double()
    kept = float((cut.down_mn @ moment_HH @ cut.up_nm).trace() / moment_HH.trace())
    gain = math.sqrt(kept * choice.before.hidden_size / choice.after.hidden_size)
    gains = {(module.row, module.layer): module.weight for module in choice.modules if module.row in flows.feeds}

    def turned(module: Module) -> Module:
        if module.row in flows.feeds:
            new_h = torch.full((choice.after.hidden_size,), gain)
            return replace(module, tensors={"weight": new_h})
        norm = flows.norm_before(module.row)
        if norm is None:
            return module
        return replace(module, tensors=module.tensors | {"weight": module.weight * gains[norm, module.layer]})

    return tuple(map(turned, choice.modules))


def _rescaled(modules: Sequence[Module], factor: float, *, tied: bool) -> tuple[Module, ...]:
    """Embeddings that are multiplied by the root of the hidden size, for one `factor`² smaller.

    A head that is tied to them would give larger logits: the last norm, which multiplies by 1 + weight, sees to that.
    """

    def rescaled(module: Module) -> Module:
        if module.is_lookup:
            return replace(module, tensors={"weight": module.weight * factor})
        if tied and module.flow.is_norm and module.layer is None:
            return replace(module, tensors={"weight": (1 + module.weight) / factor - 1})
        return module

    return modules if factor == 1 else tuple(map(rescaled, modules))  # type: ignore[return-value]
