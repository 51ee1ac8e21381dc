"""The routed experts of a mixture: how many, how large, and what a token passes of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrenar_core.formats import WeightFormat
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.summary import Experts

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")
_GGUF_PER_TOKEN = "expert_used_count"


def experts_of(
    model: StoredModel, names: tuple[str, ...], per_layer: int, weights: Mapping[str, int]
) -> Experts | None:
    """Of a mixture of experts; None of other models.

    Args:
        names: the tensors of its experts, of which a layer has `per_layer`; a GGUF says it itself.
        weights: how many weights each tensor has.
    """
    routed = _routed_of_gguf(model, weights) if model.format is WeightFormat.GGUF else _routed(model, names, per_layer)
    if routed is None or not routed.names:
        return None
    parameters = sum(weights.get(name, 0) for name in routed.names)
    used = routed.per_token
    active = None if used is None else sum(weights.values()) - parameters + parameters * used // routed.per_layer
    return Experts(routed.per_layer, used, parameters, parameters // (routed.per_layer * len(routed.layers)), active)


@dataclass(frozen=True, slots=True)
class _Routed:
    """The tensors of routed experts, the layers that have them, and how many there are of each."""

    names: tuple[str, ...]
    layers: frozenset[str]
    per_layer: int
    per_token: int | None


def _routed(model: StoredModel, names: tuple[str, ...], per_layer: int) -> _Routed | None:
    if not per_layer:
        return None
    told = next((value for key in _PER_TOKEN if (value := (model.config or {}).get(key)) is not None), None)
    # the number of the layer that an expert belongs to is the first in its name
    layers = (next((part for part in name.split(".") if part.isdecimal()), "") for name in names)
    return _Routed(names, frozenset(layers), per_layer, _within(told, per_layer))


def _routed_of_gguf(model: StoredModel, weights: Mapping[str, int]) -> _Routed | None:
    """A GGUF has all experts of a layer in one tensor."""
    kind = model.metadata.get("general.architecture")
    per_layer = model.metadata.get(f"{kind}.expert_count")
    if not isinstance(per_layer, int) or per_layer < 1:
        return None
    names = tuple(name for name in weights if "_exps." in name)
    used = _within(model.metadata.get(f"{kind}.{_GGUF_PER_TOKEN}"), per_layer)
    return _Routed(names, frozenset(name.split(".")[1] for name in names), per_layer, used)


def _within(used: Any, per_layer: int) -> int | None:
    return used if isinstance(used, int) and 0 < used <= per_layer else None
