"""One way to call a model for its logits or hidden states, in training, evaluation and teaching alike.

Shapes: B rows, T positions, V classes or vocabulary.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn


def logits_of(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """(B, T, V) of a language model, (B, V) of a classifier.

    Decoders keep the keys and values of every layer by default, for tokens to be generated next. Here none are, and
    in the evaluation of long rows that memory would be the largest there is.
    """
    output = called(model, input_ids_BT, attention_mask_BT)
    return output if isinstance(output, Tensor) else output.logits


def hidden_of(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """(B, T, H) of a model without a head, after its last norm; without keys and values as above."""
    hidden_BTH: Tensor = called(model, input_ids_BT, attention_mask_BT).last_hidden_state
    return hidden_BTH


def called(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Any:
    """Whatever a model gives, with a head or without; without keys and values as above."""
    without = {"use_cache": False} if _keeps_keys(type(model).forward) else {}
    return model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, **without)


@cache
def _keeps_keys(forward: Callable[..., Any]) -> bool:
    return "use_cache" in inspect.signature(forward).parameters
