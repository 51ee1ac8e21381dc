"""Adapters of every method on models, as peft makes them: on `meta`, where no weight is needed, or on real ones.

What is the same for every step (which values a matrix starts with) is left out: principal parts of weights are not
taken, and training rows are not read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entrenar_core.config.adapters import (
    AdaptionPromptAdapter,
    AnyAdapter,
    LoraSettings,
    PrefixAdapter,
    PromptAdapter,
)
from entrenar_core.errors import ModelError
from entrenar_core.memory.fakes import depths_of
from entrenar_core.memory.jobs import HeldModel
from entrenar_core.models.heads import TAGGING
from entrenar_core.models.peft_settings import lora_targets, peft_settings
from entrenar_core.models.quiet import mute_bitsandbytes, quietly

_HALVES = (torch.bfloat16, torch.float16)


def adapt(model: PreTrainedModel, adapter: AnyAdapter, held: HeldModel) -> nn.Module:
    """The model with an adapter, which alone trains, at 32 bits.

    Raises:
        ModelError: peft has no such adapter for this family or task, the model has none of the modules that are named,
            or a rank is larger than a matrix.
    """
    mute_bitsandbytes()
    from peft import get_peft_model

    if isinstance(adapter, LoraSettings):
        _require_some_rank(model, adapter.rank, held.name)
    settings: Any = peft_settings(_as_usual(adapter, held), model.config.to_dict(), held.task, held.name)
    whole = _whole(model, adapter, held.name)
    try:
        with quietly(), _lengths_without_data(), torch.device(model.device):
            adapted: Any = get_peft_model(model, settings)
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{held.name} takes no adapters: {error}", _hint(adapter, whole)) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype in _HALVES:
            parameter.data = parameter.data.float()
    if isinstance(adapter, LoraSettings):
        _require_ranks(adapted, held.name)
    if isinstance(adapter, PromptAdapter | PrefixAdapter):
        for name, tokens in adapted.prompt_tokens.items():
            adapted.prompt_tokens[name] = torch.arange(len(tokens), device=_data_device(model))
    if isinstance(adapter, PromptAdapter):
        _leave_out_virtual(model, adapter.virtual_tokens, held.task)
    made: nn.Module = adapted
    return made


def has_layers_of_its_own(adapter: AnyAdapter | None) -> bool:
    """Whether layers that are equal without an adapter may differ with it."""
    if isinstance(adapter, LoraSettings):
        return adapter.layers is not None or bool(adapter.rank_pattern)
    return getattr(adapter, "layers", None) is not None


def said_of(adapter: AnyAdapter, held: HeldModel) -> str:
    """What an adapter is, in words."""
    if not isinstance(adapter, LoraSettings):
        several = f" of {adapter.virtual_tokens} virtual tokens" if hasattr(adapter, "virtual_tokens") else ""
        return f"{adapter.method}{several}"
    targets = lora_targets(adapter, held.config.to_dict())
    named = "all linear layers but the head" if isinstance(targets, str) else ", ".join(targets)
    kind = "DoRA" if adapter.dora else "LoRA"
    start = "" if adapter.init == "default" else f"; what {adapter.init} takes before the first step is not counted"
    return f"{kind} of rank {adapter.rank}, dropout {adapter.dropout:g}, on {named}{start}"


def _as_usual(adapter: AnyAdapter, held: HeldModel) -> AnyAdapter:
    """With the usual first values; and where all layers get an adapter, in as many as the model has, which may be fewer
    than its configuration says.
    """
    if isinstance(adapter, LoraSettings):
        return adapter.model_copy(update={"init": "default"})
    if isinstance(adapter, AdaptionPromptAdapter) and adapter.layers in set(depths_of(held.config)):
        return adapter.model_copy(update={"layers": None})
    return adapter


def _whole(model: PreTrainedModel, adapter: AnyAdapter, name: str) -> str:
    """What to do where an adapter of this kind does not go with a model.

    Raises:
        ModelError: checkpoints drop the keys and values that a prefix puts before those of a row.
    """
    if isinstance(adapter, PrefixAdapter) and any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        raise ModelError(
            f"a prefix of {name} does not go with gradient checkpointing, which would drop it",
            "turn gradient checkpointing off, or take the method prompt",
        )
    return "take lora"


def _hint(adapter: AnyAdapter, otherwise: str) -> str:
    if isinstance(adapter, LoraSettings):
        return "name linear layers of the model, such as q_proj and v_proj"
    if getattr(adapter, "target_modules", None) is not None:
        return "name modules of the model, such as v_proj"
    return otherwise


def _data_device(model: PreTrainedModel) -> torch.device:
    """Where tokens are read: beside tensors without data, on a CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def _leave_out_virtual(model: PreTrainedModel, count: int, task: str) -> None:
    """Lets the head read the positions of the row alone, not those of what was put before it."""
    head = model.get_output_embeddings()
    if head is None and task == TAGGING:
        head = next((found for name in ("classifier", "score") if (found := getattr(model, name, None))), None)
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: (given[0][:, count:], *given[1:]))


@contextmanager
def _lengths_without_data() -> Iterator[None]:
    """DoRA begins with the lengths of rows of weights; of quantised ones on `meta` there is nothing to read."""
    from peft.tuners.lora.dora import DoraLinearLayer

    reads = DoraLinearLayer.update_layer

    def update_layer(self: Any, *, base_layer: nn.Module, lora_A: Tensor, lora_B: Tensor, **given: Any) -> None:
        if lora_B.device.type == "meta":
            self.weight = nn.Parameter(lora_B.new_empty(lora_B.shape[0]))
        else:
            reads(self, base_layer=base_layer, lora_A=lora_A, lora_B=lora_B, **given)

    DoraLinearLayer.update_layer = update_layer  # type: ignore[method-assign]
    try:
        yield
    finally:
        DoraLinearLayer.update_layer = reads  # type: ignore[method-assign]


def _require_some_rank(model: PreTrainedModel, rank: int, name: str) -> None:
    """Before matrices of this rank are made: peft would try it with any."""
    most = max((min(module.weight.shape[:2]) for module in _matrices(model)), default=0)
    if most == 0:
        raise ModelError(f"{name} takes no adapters: it has no linear layers", "train all of it")
    if rank > most:
        raise ModelError(
            f"a rank of {rank} is more than any matrix of {name} can have", f"take a rank of at most {most}"
        )


def _matrices(model: PreTrainedModel) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module.weight.ndim == 2)


def _require_ranks(model: nn.Module, name: str) -> None:
    for place, module in model.named_modules():
        if "lora_A" in place and isinstance(module, nn.Linear):
            other: Any = model.get_submodule(place.replace("lora_A", "lora_B"))
            least, rank = min(module.in_features, other.out_features), module.out_features
            if rank > least:
                layer = place.partition(".lora_A")[0].removeprefix("base_model.model.")
                raise ModelError(
                    f"a rank of {rank} is more than {layer} of {name} can have, a matrix of {other.out_features} × "
                    f"{module.in_features}",
                    f"take a rank of at most {least}",
                )
