"""Where a language model's logits are made, so that they can be made for some rows, or in tiles, or not at all.

A logit is z = cap · tanh(scale · (h Wᵀ + b) / cap). Which of these a model has, its configuration says in one of a few
ways; whether that is all, a comparison with the model's own logits says, before it is relied on.

Shapes: B rows, T positions, H width, V tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from entrenar_core.data.collating import Packed
from entrenar_core.losses.head import Head, logits_of_rows
from entrenar_core.models.calling import logits_of
from entrenar_core.models.placing import is_spread
from entrenar_core.models.token_map import TokenMap

_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """The layer from hidden states to logits, and what follows it. `copy` is its weights in another order of tokens, or
    on another device, of a model that does not train.
    """

    module: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    copy: Head | None = None

    @property
    def head(self) -> Head:
        """Its present weights."""
        return self.copy or Head(self.module.weight, self.module.bias, self.scale, self.softcap)

    def in_order_of(self, token_map: TokenMap) -> "OutputLayer":
        """The layer with its tokens in the student's order."""
        now = self.head
        bias_V = None if now.bias_V is None else token_map.head_rows(now.bias_V.detach())
        head = Head(token_map.head_rows(now.weight_VH.detach()), bias_V, self.scale, self.softcap)
        return dataclasses.replace(self, copy=head)

    def copied_to(self, device: torch.device) -> "OutputLayer":
        """The layer with a copy of its weights on a device, from wherever they are: on another, or on disk."""
        from accelerate.utils import align_module_device

        with align_module_device(self.module, device), torch.no_grad():
            weight_VH, bias_V = (
                None if one is None else one.detach().to(device, copy=True)
                for one in (self.module.weight, self.module.bias)
            )
        assert weight_VH is not None, "a layer has weights"
        return dataclasses.replace(self, copy=Head(weight_VH, bias_V, self.scale, self.softcap))


def untried_output_layer(model: PreTrainedModel) -> OutputLayer | None:
    """What is the output layer by its kind and by the configuration, if there is one; not compared with logits."""
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return None
    return OutputLayer(module, _scale(model), _number(model, "final_logit_softcapping"))


def output_layer_of(model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> OutputLayer | None:
    """The output layer of a language model, checked on a few rows; None where its logits are made in another way.

    The model's mode and the random state are left as they were.
    """
    layer = untried_output_layer(model)
    if layer is None:
        return None
    module = layer.module
    if is_spread(model):
        layer = layer.copied_to(input_ids_BT.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            expected_BTV = logits_of(model, input_ids_BT, attention_mask_BT)
            hidden_BTH = hidden_states(model, layer, input_ids_BT, attention_mask_BT)
            if hidden_BTH.ndim != 3 or expected_BTV.shape != (*hidden_BTH.shape[:2], module.out_features):
                return None
            rows_NV = logits_of_rows(hidden_BTH.flatten(0, 1), layer.head, module.out_features)
    finally:
        model.train(training)
    expected_NV = expected_BTV.flatten(0, 1).float()
    error = (rows_NV - expected_NV).abs().max() / expected_NV.abs().max().clamp_min(1e-6)
    return layer if float(error) <= max(_TOLERANCE, 4 * torch.finfo(expected_BTV.dtype).eps) else None


def hidden_states(
    model: nn.Module,
    layer: OutputLayer,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    packed: Packed | None = None,
) -> Tensor:
    """What the output layer reads, (B, T, H); no logits are made."""
    found: list[Tensor] = []
    with instead_of_logits(layer, lambda hidden_BTH: found.append(hidden_BTH)):
        logits_of(model, input_ids_BT, attention_mask_BT, packed)
    assert len(found) == 1, "one forward pass reads the output layer once"
    return found[0].to(input_ids_BT.device)


@contextmanager
def instead_of_logits(layer: OutputLayer, use: Callable[[Tensor], object]) -> Iterator[None]:
    """Within, a forward pass gives the hidden states to `use` and makes logits of no tokens, (B, T, 0).

    `use` runs inside the layer's own forward, where FSDP has its weights gathered.
    """

    def forward(hidden_BTH: Tensor) -> Tensor:
        use(hidden_BTH)
        return hidden_BTH.new_zeros(*hidden_BTH.shape[:-1], 0)

    before = layer.module.__dict__.get("forward")  # of a layer on a device of its own, which moves what it reads there
    layer.module.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del layer.module.forward  # the class's own again
        if before is not None:
            layer.module.forward = before  # type: ignore[method-assign]


def _scale(model: PreTrainedModel) -> float:
    divided = _number(model, "logits_scaling")  # Granite
    return _number(model, "logit_scale") or (1 / divided if divided else 1.0)  # Cohere


def _number(model: PreTrainedModel, name: str) -> float | None:
    value = getattr(model.config, name, None)
    return float(value) if isinstance(value, int | float) and value > 0 else None
