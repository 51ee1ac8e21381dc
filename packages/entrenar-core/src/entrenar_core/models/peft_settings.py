"""The settings of an adapter as peft has them. What a family of models leaves open is settled here, by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrenar_core.architectures import architecture_of
from entrenar_core.config.adapters import (
    GROUPS,
    AdaptionPromptAdapter,
    AnyAdapter,
    BiasAdapter,
    Ia3Adapter,
    LoraSettings,
    PrefixAdapter,
    PromptAdapter,
)
from entrenar_core.errors import ModelError
from entrenar_core.models.adapter_targets import ALL_LINEAR, targets_of_group
from entrenar_core.models.heads import CAUSAL_LM, CLASSIFICATION, TAGGING
from entrenar_core.models.quiet import mute_bitsandbytes

if TYPE_CHECKING:
    from peft import PeftConfig

_TASK_TYPES = {CAUSAL_LM: "CAUSAL_LM", CLASSIFICATION: "SEQ_CLS", TAGGING: "TOKEN_CLS"}
_CONV1D_FAMILIES = ("gpt2",)
"""Whose matrices lie transposed."""


def peft_settings(adapter: AnyAdapter, config: Mapping[str, Any], task: str, name: object) -> "PeftConfig":
    """Of an adapter of a model with this config.json.

    Raises:
        ModelError: the adapter's method has no modules for this family, or none for this task.
    """
    mute_bitsandbytes()
    match adapter:
        case LoraSettings():
            return _lora(adapter, config, task)
        case Ia3Adapter():
            return _ia3(adapter, config, task, name)
        case BiasAdapter():
            return _bias(adapter, config, task, name)
        case PromptAdapter() | PrefixAdapter() | AdaptionPromptAdapter():
            return _virtual(adapter, config, task, name)


def lora_targets(adapter: LoraSettings, config: Mapping[str, Any]) -> tuple[str, ...] | str:
    """The names of matrices that get adapters, or `all-linear`, where no table knows the family."""
    targets = adapter.target_modules
    if isinstance(targets, str):
        group = next(group for group in GROUPS if group == targets)
        return targets_of_group(config, group) or ALL_LINEAR
    return targets


def _lora(adapter: LoraSettings, config: Mapping[str, Any], task: str) -> "PeftConfig":
    from peft import EvaConfig, LoraConfig

    targets = lora_targets(adapter, config)
    return LoraConfig(
        task_type=_TASK_TYPES.get(task),
        r=adapter.rank,
        lora_alpha=_whole(adapter.alpha),
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=adapter.dropout,
        bias=adapter.biases,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        eva_config=EvaConfig() if adapter.init == "eva" else None,
        modules_to_save=None if adapter.modules_to_save is None else list(adapter.modules_to_save),
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern={name: _whole(alpha) for name, alpha in adapter.alpha_pattern.items()},
        layers_to_transform=None if adapter.layers is None else list(adapter.layers),
        fan_in_fan_out=config.get("model_type") in _CONV1D_FAMILIES,
    )


def _whole(alpha: float) -> Any:
    """peft's alpha is an integer in its files, where it is one."""
    return int(alpha) if alpha == int(alpha) else alpha


def _ia3(adapter: Ia3Adapter, config: Mapping[str, Any], task: str, name: object) -> "PeftConfig":
    from peft import IA3Config
    from peft.utils import constants as known

    model_type = str(config.get("model_type"))
    targets = adapter.target_modules or known.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type)
    if targets is None:
        raise _unknown("ia3", config, name)
    forward = adapter.feedforward_modules or ()
    if adapter.feedforward_modules is None and adapter.target_modules is None:
        forward = tuple(known.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model_type, ()))
    return IA3Config(
        task_type=_TASK_TYPES.get(task),
        target_modules=list(targets),
        feedforward_modules=list(forward),
        fan_in_fan_out=model_type in _CONV1D_FAMILIES,
    )


def _bias(adapter: BiasAdapter, config: Mapping[str, Any], task: str, name: object) -> "PeftConfig":
    from peft import BeftConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING as KNOWN

    targets = adapter.target_modules or KNOWN.get(str(config.get("model_type")))
    if targets is None:
        raise _unknown("bias", config, name)
    return BeftConfig(task_type=_TASK_TYPES.get(task), target_modules=list(targets))


def _virtual(
    adapter: PromptAdapter | PrefixAdapter | AdaptionPromptAdapter, config: Mapping[str, Any], task: str, name: object
) -> "PeftConfig":
    from peft import AdaptionPromptConfig, PrefixTuningConfig, PromptTuningConfig
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    if task not in _TASK_TYPES:
        raise ModelError(
            f"adapters of the method {adapter.method} are for {', '.join(_TASK_TYPES)}, and this is {task}",
            "take lora, or another task",
        )
    if isinstance(adapter, PromptAdapter):
        return PromptTuningConfig(task_type=_TASK_TYPES[task], num_virtual_tokens=adapter.virtual_tokens)
    if isinstance(adapter, PrefixAdapter):
        return PrefixTuningConfig(task_type=_TASK_TYPES[task], num_virtual_tokens=adapter.virtual_tokens)
    layers = adapter.layers or architecture_of(config).num_layers
    if config.get("model_type") not in TRANSFORMERS_MODEL_CONFIG or task != CAUSAL_LM or layers is None:
        raise _unknown("adaption-prompt", config, name)
    return AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=adapter.virtual_tokens, adapter_layers=layers)


def _unknown(method: str, config: Mapping[str, Any], name: object) -> ModelError:
    return ModelError(
        f"peft has no {method} for {name}, a {config.get('model_type')}, by itself",
        "name `target_modules`, or take lora" if method in ("ia3", "bias") else "take lora",
    )
