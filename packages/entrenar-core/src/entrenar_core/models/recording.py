"""What passes inside a transformers model during a call: hidden states, and what enters attention, of chosen layers.

Hidden states are read by hooks on the layers, where families.toml says that they are. Queries, keys and values are
read at transformers' attention interface: while a model is recorded, its attention goes through a function of ours,
which notes its inputs and then calls the function and the mask of the model's own implementation. So the model
computes what it would compute anyway, to the bit, and nothing of the size T × T is made unless `scores` is called.

Shapes: B rows, T positions, C hidden width, H query heads, G key-value heads, d width of a head.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from entrenar_core.architectures import Family, family_of
from entrenar_core.errors import ModelError
from entrenar_core.losses.attention import scaled_products
from entrenar_core.models.segments import mask_apart

_OWN_CODE = "take a model of a family that entrenar knows, or train without losses on hidden states and attention"


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What enters the self-attention of a layer, after rotary positions: queries (B, H, T, d), keys and values
    (B, G, T, d), and what the layer does with their products.

    `causal` and `window` say which keys a query may see, as `allowed_keys` takes them; `position_bias` is what T5 adds
    to the scores, (1, H, T, T).
    """

    queries_BHTd: Tensor
    keys_BGTd: Tensor
    values_BGTd: Tensor
    scaling: float
    causal: bool
    window: int | None = None
    softcap: float | None = None
    position_bias: Tensor | None = None

    def scores(self) -> Tensor:
        """cap · tanh(scaling · q kᵀ / cap) + bias, the cap and the bias where there is one: (B, H, T, T) in fp32 or
        better, before any mask. Heads that share keys each get their own scores.
        """
        scores_BHTT = scaled_products(self.queries_BHTd, self.keys_BGTd, self.scaling)
        if self.softcap is not None:
            scores_BHTT = (scores_BHTT / self.softcap).tanh() * self.softcap
        return scores_BHTT if self.position_bias is None else scores_BHTT + self.position_bias


Listener = Callable[[AttentionInputs], object]


@dataclass(slots=True)
class Record:
    """What the latest call of the model left, by layer. A hidden state is the output of its layer (B, T, C), before
    any norm that follows the last one; `embeddings` are the input of the first layer.

    The tensors are the model's own and carry its graph.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, AttentionInputs] = field(default_factory=dict)
    embeddings: Tensor | None = None

    @classmethod
    def joined(cls, records: "Sequence[Record]", device: torch.device) -> "Record":
        """What calls on the parts of a batch left, as if they had been one, on one device."""
        first, *_ = records
        return cls(
            {layer: _whole([record.hidden[layer] for record in records], device) for layer in first.hidden},
            {
                layer: _whole_inputs([record.attention[layer] for record in records], device)
                for layer in first.attention
            },
            _whole([record.embeddings for record in records if record.embeddings is not None], device)
            if first.embeddings is not None
            else None,
        )


def _whole(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    there = [part.to(device) for part in parts]
    return there[0] if len(there) == 1 else torch.cat(there)


def _whole_inputs(parts: Sequence[AttentionInputs], device: torch.device) -> AttentionInputs:
    bias = parts[0].position_bias
    return replace(
        parts[0],
        queries_BHTd=_whole([part.queries_BHTd for part in parts], device),
        keys_BGTd=_whole([part.keys_BGTd for part in parts], device),
        values_BGTd=_whole([part.values_BGTd for part in parts], device),
        position_bias=None if bias is None else bias.to(device),
    )


def require_recordable(model: nn.Module, *, hidden: Iterable[int] = (), attention: Iterable[int] = ()) -> None:
    """Asks, before training, whether `recording` can read these layers of the model, counted from 0.

    Raises:
        ModelError: the model's family is not in the table; it has no such layer; or, where attention is asked for, it
            computes attention in code of its own, or by another implementation than `eager` and `sdpa`.
    """
    body, family = _body(model)
    layers, attention = _layers(body, family), tuple(attention)
    for layer in (*hidden, *attention):
        if not 0 <= layer < len(layers):
            raise ModelError(
                f"{type(body).__name__} has no layer {layer}: its {len(layers)} layers are 0 to {len(layers) - 1}"
            )
    if attention:
        _require_interface(body, [layers[layer] for layer in attention])


@contextmanager
def recording(
    model: nn.Module,
    *,
    hidden_layers: Sequence[int] = (),
    attention_layers: Sequence[int] = (),
    embeddings: bool = False,
) -> Iterator[Record]:
    """Within the block, every call of the model fills the record anew; what is computed stays the same to the bit.

    Works for a bare model and for one inside a wrapper (PEFT, DDP), and under gradient checkpointing, where the
    layers run once more during the backward pass: that is not recorded, in the block or after it.

    Raises:
        ModelError: see `require_recordable`; or the model was called and a layer of the record has not run.
    """
    require_recordable(model, hidden=hidden_layers, attention=attention_layers)
    body, family = _body(model)
    layers, record, called = _layers(body, family), Record(), []

    def begin(*_: Any) -> None:
        record.hidden.clear()
        record.attention.clear()
        record.embeddings = None
        called.append(True)

    with ExitStack() as stack:
        stack.callback(body.register_forward_pre_hook(begin).remove)
        for layer in hidden_layers:
            stack.callback(layers[layer].register_forward_hook(partial(_keep_output, record, layer)).remove)
        if embeddings:
            hook = layers[0].register_forward_pre_hook(partial(_keep_input, record), with_kwargs=True)
            stack.callback(hook.remove)
        if attention_layers:
            listeners: dict[nn.Module, Listener] = {
                module: partial(record.attention.setdefault, layer)
                for layer in attention_layers
                for module in layers[layer].modules()
            }
            stack.enter_context(_listening(body, listeners))
        yield record
    complete = record.hidden.keys() >= set(hidden_layers) and record.attention.keys() >= set(attention_layers)
    if called and not (complete and (record.embeddings is not None or not embeddings)):
        raise ModelError(
            f"{type(body).__name__} ran past its layers in code of its own, so they cannot be read", _OWN_CODE
        )


# A layer that is recomputed for its gradients comes by again: what it gave first is what the loss is made of.


def _keep_output(record: Record, layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
    record.hidden.setdefault(layer, output[0] if isinstance(output, tuple) else output)


def _keep_input(record: Record, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    if record.embeddings is None:
        record.embeddings = inputs[0] if inputs else named["hidden_states"]


def _body(model: nn.Module) -> tuple[PreTrainedModel, Family]:
    """The model's body, whatever wraps it, and its family."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None:
        raise ModelError(f"{type(model).__name__} is no transformers model, so its layers cannot be read", _OWN_CODE)
    family = family_of({"model_type": inner.config.model_type})
    if family is None:
        raise ModelError(
            f"{type(inner).__name__} is of the family `{inner.config.model_type}`, whose layers entrenar does not know",
            _OWN_CODE,
        )
    return inner.base_model, family


def _layers(body: PreTrainedModel, family: Family) -> nn.ModuleList:
    try:
        found = body.get_submodule(family.layers)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList):
        raise ModelError(
            f"{type(body).__name__} has no layers at `{family.layers}`, where {family.name} has them", _OWN_CODE
        )
    return found


def _require_interface(body: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
    name = type(body).__name__
    if not all(any(map(_asks_the_interface, layer.modules())) for layer in layers):
        raise ModelError(f"{name} computes attention in code of its own, so its attention cannot be read", _OWN_CODE)
    if (implementation := other_implementation(body)) is not None:
        raise ModelError(
            f"{name} computes attention by `{implementation}`, of which nothing can be read",
            "load the model with `attn_implementation` sdpa or eager",
        )


def other_implementation(model: nn.Module) -> str | None:
    """By what the model computes attention, where it is neither `eager` nor `sdpa`."""
    found = (
        str(config._attn_implementation or _IMPLEMENTATIONS[0]).removeprefix(_PREFIX) for config in _configs(model)
    )
    return next((name for name in found if name not in _IMPLEMENTATIONS), None)


def _asks_the_interface(module: nn.Module) -> bool:
    """Whether the module gets its attention function where ours can take its place, told from its compiled code.

    (transformers' own test looks through source text, and answers for a subclass as for its parent.)
    """
    forward = inspect.unwrap(type(module).forward)
    return "get_interface" in forward.__code__.co_names


# ── The attention interface ──

_PREFIX = "recorded_"
_IMPLEMENTATIONS = ("eager", "sdpa")
_EAGER = "eager_attention_forward"
_listeners: dict[nn.Module, Listener] = {}
"""Who is told of the inputs of which attention module. A module is in at most one recording at a time."""


def _attend(
    implementation: str, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, *rest: Any, **settings: Any
) -> Any:
    """What transformers calls instead of the attention function that the model is set to."""
    if (listener := _listeners.get(module)) is not None:
        scaling = settings.get("scaling")
        listener(
            AttentionInputs(
                queries,
                keys,
                values,
                scaling=queries.shape[-1] ** -0.5 if scaling is None else scaling,
                causal=bool(getattr(module, "is_causal", True)),
                window=settings.get("sliding_window"),
                softcap=settings.get("softcap"),
                position_bias=settings.get("position_bias"),
            )
        )
    function = _eager(module) if implementation == "eager" else AttentionInterface()[implementation]
    return function(module, queries, keys, values, *rest, **settings)


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of a family is a function beside its attention module, and in no table."""
    homes = (vars(sys.modules[kind.__module__]) for kind in type(module).__mro__)
    found: Callable[..., Any] = next(home[_EAGER] for home in homes if _EAGER in home)
    return found


for _name in _IMPLEMENTATIONS:
    AttentionInterface.register(_PREFIX + _name, partial(_attend, _name))
    AttentionMaskInterface.register(_PREFIX + _name, partial(mask_apart, AttentionMaskInterface()[_name]))


@contextmanager
def through_interface(model: nn.Module) -> Iterator[None]:
    """Sends the model's attention through `_attend` and its masks through `mask_apart`, and sets it back. The encoder
    of a T5 has a config of its own.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for config, implementation in before:
            config._attn_implementation = _PREFIX + (implementation or _IMPLEMENTATIONS[0]).removeprefix(_PREFIX)
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def _listening(body: PreTrainedModel, listeners: Mapping[nn.Module, Listener]) -> Iterator[None]:
    assert not _listeners.keys() & listeners.keys(), "a layer in two recordings at once"
    _listeners.update(listeners)
    try:
        with through_interface(body):
            yield
    finally:
        for module in listeners:
            del _listeners[module]


def _configs(body: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that the body's modules look at."""
    found = (getattr(module, "config", None) for module in body.modules())
    return list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())
