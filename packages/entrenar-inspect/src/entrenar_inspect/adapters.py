"""What a low-rank adapter is, from the names and shapes of its tensors and the configuration beside them."""

import re
from collections.abc import Mapping
from typing import Any

from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.summary import AdapterSummary

_DOWN = re.compile(r"\.lora_(?:A|embedding_A)(?:\.[^.]+)?(?:\.weight)?$")
_MAGNITUDE = ".lora_magnitude_vector"
_VAST = 1 << 32
"""No rank and no α is so large: arithmetic with what a broken file says must not fail."""


def adapter_of(model: StoredModel) -> AdapterSummary | None:
    """The adapter; None where there is none."""
    down = {name: tensor for name, tensor in model.tensors.items() if _DOWN.search(name)}
    config = model.adapter_config or {}
    if not down and not config:
        return None
    ranks = tuple(sorted({min(tensor.shape) for tensor in down.values() if tensor.shape}))
    modules = [_DOWN.sub("", name) for name in down]
    alpha = config.get("lora_alpha")
    alpha = float(alpha) if isinstance(alpha, int | float) and abs(alpha) < _VAST else None
    base = config.get("base_model_name_or_path")
    return AdapterSummary(
        _method(model, config),
        base if isinstance(base, str) else None,
        ranks,
        alpha,
        _scale(config, alpha),
        len(modules),
        tuple(sorted({module.rpartition(".")[2] for module in modules})),
    )


def _method(model: StoredModel, config: Mapping[str, Any]) -> str:
    if any(_MAGNITUDE in name for name in model.tensors):
        return "DoRA"
    if config.get("use_rslora"):
        return "rsLoRA"
    kind = str(config.get("peft_type") or "LORA")
    return "LoRA" if kind == "LORA" else kind


def _scale(config: Mapping[str, Any], alpha: float | None) -> float | None:
    """What the product of its matrices is multiplied by: α / r, or α / √r of rsLoRA; None where ranks differ."""
    rank = config.get("r")
    if alpha is None or not isinstance(rank, int) or not 0 < rank < _VAST:
        return None
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return None
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
