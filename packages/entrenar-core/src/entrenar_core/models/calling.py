"""One way to call a model for its logits or hidden states, in training, evaluation and teaching alike.

Examples that share a row do not see each other: positions begin anew with each, and attention goes through a mask of
its own (segments.py). Not every model can be called so; models/packing.py finds out which.

Shapes: B rows, T positions, V classes or vocabulary, E examples, L positions of the longest.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Packed
from entrenar_core.models.recording import through_interface
from entrenar_core.models.segments import kept_apart

_NUMBERED_BY_CONTENT = "create_position_ids_from_input_ids"
"""What models have whose positions begin behind the id of the pad token, as those of RoBERTa."""


def logits_of(
    model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, packed: Packed | None = None
) -> Tensor:
    """(B, T, V) of a language model, (B, V) of a classifier.

    Decoders keep the keys and values of every layer by default, for tokens to be generated next. Here none are, and
    in the evaluation of long rows that memory would be the largest there is. Logits of virtual tokens, which stand
    before a row, are left out.
    """
    output = called(model, input_ids_BT, attention_mask_BT, packed)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    length = input_ids_BT.shape[1]
    return logits[:, -length:] if logits.ndim == 3 and logits.shape[1] > length else logits


def hidden_of(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """(B, T, H) of a model without a head, after its last norm; without keys and values as above."""
    hidden_BTH: Tensor = called(model, input_ids_BT, attention_mask_BT).last_hidden_state
    return hidden_BTH


def called(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, packed: Packed | None = None) -> Any:
    """Whatever a model gives, with a head or without; without keys and values as above."""
    settings: dict[str, Any] = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
    adapted: Any = getattr(model, "get_base_model", None)  # peft's wrapper takes whatever the model in it takes
    if _takes(type(adapted() if adapted else model).forward, "use_cache"):
        settings["use_cache"] = False
    if packed is None:
        return model(**settings)
    if _takes(type(model).forward, "packed"):  # a wrapper of ours, which calls the model in it
        return model(**settings, packed=packed)
    if _takes(type(model).forward, "position_ids"):
        settings["position_ids"] = _positions(model, input_ids_BT, attention_mask_BT, packed)
    with through_interface(model), kept_apart(packed):
        return model(**settings)


def _positions(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, packed: Packed) -> Tensor:
    """The positions of tokens in their own example, as the model numbers them."""
    numbering = next((module for module in model.modules() if hasattr(module, _NUMBERED_BY_CONTENT)), None)
    if numbering is None:
        return packed.positions_BT
    places_EL, real_EL = packed.apart(attention_mask_BT)
    first: int = numbering.padding_idx  # type: ignore[assignment]
    ids_EL = torch.where(real_EL, input_ids_BT.flatten()[places_EL], first)
    positions_EL = getattr(numbering, _NUMBERED_BY_CONTENT)(ids_EL, first)
    positions_BT = torch.full_like(input_ids_BT, first, dtype=torch.long)
    positions_BT.view(-1)[places_EL[real_EL]] = positions_EL[real_EL]
    return positions_BT


@cache
def _takes(forward: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(forward).parameters
