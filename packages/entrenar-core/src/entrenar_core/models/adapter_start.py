"""Where low-rank matrices begin, other than at a random A and a B of zeros.

Two ways take the principal part of a weight out of it and train that: W = (W − s·B₀·A₀) + s·B·A. What is saved is then
s·(B·A − B₀·A₀), an adapter of twice the rank for the weights as they were: [B, −B₀]·[A; A₀].

Sources: F. Meng et al., PiSSA, 2024, arXiv:2404.02948; K. Büyükakyüz, OLoRA, 2024, arXiv:2406.01775; F. Paischer et
al., EVA, One Initialization to Rule them All, 2024, arXiv:2410.07170. peft computes them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entrenar_core.adapters.peft_names import PREFIX
from entrenar_core.adapters.principal import PRINCIPAL
from entrenar_core.config.adapters import LoraSettings
from entrenar_core.errors import ModelError
from entrenar_core.models.importance import Sample
from entrenar_core.models.quiet import explaining

_KEPT = "_start"


def principal_start(model: nn.Module, adapter: LoraSettings) -> None:
    """Keeps where the matrices began, for a way that takes a part out of the weights."""
    if adapter.init not in PRINCIPAL:
        return
    kept = {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name)
    }
    setattr(model, _KEPT, kept)


def as_plain_lora(model: nn.Module, tensors: Mapping[str, Tensor], settings: Any) -> tuple[dict[str, Tensor], Any]:
    """The same change as an adapter for the weights as they were, with settings that say so."""
    kept: Mapping[str, Tensor] | None = getattr(model, _KEPT, None)
    if kept is None:
        return dict(tensors), settings
    from entrenar_core.models.adapted import NAME

    before = {f"{PREFIX}{name}".replace(f".{NAME}", ""): value for name, value in kept.items()}
    found = {}
    for name, value in tensors.items():
        if name not in before:
            found[name] = value
        elif "lora_A" in name:
            found[name] = torch.cat([value, before[name].to(value.dtype)], dim=0)
        else:
            found[name] = torch.cat([value, -before[name].to(value.dtype)], dim=1)
    factor = math.sqrt(2) if settings.use_rslora else 2
    settings.r, settings.lora_alpha = 2 * settings.r, settings.lora_alpha * factor
    settings.rank_pattern = {name: 2 * rank for name, rank in settings.rank_pattern.items()}
    settings.alpha_pattern = {name: alpha * factor for name, alpha in settings.alpha_pattern.items()}
    settings.init_lora_weights = True
    return found, settings


def start_by_inputs(wrapped: Any, sample: Sample, name: object) -> None:
    """Begins A as the principal directions of what its layer reads in a sample of rows.

    Raises:
        ModelError: the rows are too few for the rank.
    """
    from peft import initialize_lora_eva_weights

    batches = [{"input_ids": ids_BT, "attention_mask": mask_BT} for ids_BT, mask_BT in sample]
    if not batches:
        raise ModelError(f"`init: eva` looks at training rows, and there are none for {name}", "take another `init`")
    device = next(wrapped.parameters()).device
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    with explaining("adapter", name, "take a smaller rank, or another `init`", done="begun by `init: eva`"):
        initialize_lora_eva_weights(
            wrapped,
            batches,
            prepare_model_inputs_fn=_masks,
            prepare_layer_inputs_fn=_unmasked,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )


def _masks(model_input: Mapping[str, Tensor], _: Any) -> Tensor:
    mask_BT: Tensor = model_input["attention_mask"].bool()
    return mask_BT


def _unmasked(layer_input: Any, mask_BT: Tensor, _: str) -> Tensor:
    """(N, in): what a layer reads at the tokens that are no padding; of a pooled vector, all rows."""
    values: Tensor = layer_input[0] if isinstance(layer_input, tuple | list) else layer_input
    if values.ndim == 3 and values.shape[:2] == mask_BT.shape:
        return values[mask_BT]
    return values.flatten(0, -2)
