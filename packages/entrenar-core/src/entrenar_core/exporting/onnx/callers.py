"""A model as an exporter calls it: tensors in, tensors out, and nothing of a cache of keys and values.

Shapes: B rows, T positions, H width, V classes or vocabulary.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from entrenar_core.artifact import MODULES, ModelArtifact
from entrenar_core.losses.pooling import Pool
from entrenar_core.models.calling import called
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.onnx_rules import IDS, MASK, SENTENCE, TYPES
from entrenar_core.models.sentence_files import pooling_of

HIDDEN, LOGITS = "last_hidden_state", "logits"


class Caller(nn.Module):
    """A model for a task: from ids and mask, (B, T), and kinds of tokens where it tells them apart, to logits, or to
    hidden states (B, T, H) and, of a sentence encoder, the vector of each row (B, H).

    `pool` is which vector is a sentence's, and `normalizes` whether it is made to have the length 1.
    """

    def __init__(self, model: nn.Module, task: str, pool: Pool | None = None, *, normalizes: bool = False) -> None:
        super().__init__()
        self.model, self.pool, self.normalizes = model, pool, normalizes
        self.outputs = (LOGITS,) if task != EMBEDDING else (HIDDEN,) if pool is None else (HIDDEN, SENTENCE)
        self.inputs = (IDS, MASK, TYPES) if _kinds_of_tokens(model) > 1 else (IDS, MASK)

    @property
    def kinds_of_tokens(self) -> int:
        """How many ids there are for the kinds of tokens, such as the first and the second sentence."""
        return max(_kinds_of_tokens(self.model), 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What the model gives, in the order of `outputs`."""
        if token_type_ids is None:
            output = called(self.model, input_ids, attention_mask)
        else:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        if LOGITS in self.outputs:
            return (output.logits,)
        hidden_BTH = output.last_hidden_state
        if self.pool is None:
            return (hidden_BTH,)
        sentence_BH = pooled_whole(hidden_BTH, attention_mask, self.pool)
        return hidden_BTH, functional.normalize(sentence_BH, dim=-1) if self.normalizes else sentence_BH


def caller_of(model: nn.Module, source: ModelArtifact, task: str) -> Caller:
    """The model with the pooling that its folder tells of.

    Raises:
        ModelError: it pools in a way that entrenar does not do.
    """
    if task != EMBEDDING:
        return Caller(model, task)
    pool = pooling_of(source)
    return Caller(model, task, pool, normalizes=pool is not None and _normalizes(source))


def pooled_whole(hidden_BTH: Tensor, mask_BT: Tensor, pool: Pool) -> Tensor:
    """One vector per row, (B, H): of its first or last real token, or the mean over real tokens. Unlike `pooled`, it
    takes no step whose size depends on what the mask holds, so that it can be traced.
    """
    if pool == "mean":
        weights_BT1 = mask_BT.to(hidden_BTH.dtype).unsqueeze(-1)
        return (hidden_BTH * weights_BT1).sum(1) / weights_BT1.sum(1).clamp_min(1)
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    real_BT = mask_BT != 0
    if pool == "last":
        chosen_B = torch.where(real_BT, positions_T, 0).amax(1)
    else:
        chosen_B = torch.where(real_BT, positions_T, mask_BT.shape[1] - 1).amin(1)
    return hidden_BTH.gather(1, chosen_B[:, None, None].expand(-1, 1, hidden_BTH.shape[-1])).squeeze(1)


def _kinds_of_tokens(model: nn.Module) -> int:
    config: Any = model.config
    return int(getattr(config, "type_vocab_size", 0) or 0)


def _normalizes(source: ModelArtifact) -> bool:
    """Whether the last of a sentence encoder's modules scales its vectors; `pooling_of` has checked the list."""
    listed = json.loads((source.path / MODULES).read_bytes())
    return any(str(module["type"]).endswith(".Normalize") for module in listed)
