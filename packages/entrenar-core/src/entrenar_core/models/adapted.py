"""A model with adapters, as peft puts them into it: what trains, and what is saved of it.

Low-rank matrices, factors and biases change the modules of the model in place, and the model stays what it is for
whoever calls it. Virtual tokens need peft's wrapper around it.
"""

import copy
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entrenar_core.adapters.peft_names import PREFIX
from entrenar_core.adapters.principal import PRINCIPAL
from entrenar_core.adapters.reading import LABELS
from entrenar_core.architectures import architecture_of
from entrenar_core.config.adapters import AnyAdapter, LoraSettings
from entrenar_core.errors import ModelError
from entrenar_core.models.adapter_start import as_plain_lora, principal_start, start_by_inputs
from entrenar_core.models.adapter_targets import ALL_LINEAR, targets_of_group
from entrenar_core.models.importance import Sample
from entrenar_core.models.loading import model_class, new_modules
from entrenar_core.models.peft_settings import peft_settings
from entrenar_core.models.quiet import explaining, quietly

NAME = "default"
"""What peft calls an adapter that has no name."""
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_IN_PLACE = ("LORA", "IA3", "BEFT")
_HEADS = ("classifier", "score")
"""What peft trains with an adapter of any method, of a classifier."""
_NEAR = 3
_PACKS = "support_avx512bf16_for_cpu"
"""Of bitsandbytes' layers of 4 bits."""


def adapt(
    model: PreTrainedModel, adapter: AnyAdapter, task: str, name: object, *, sample: Sample | None = None
) -> nn.Module:
    """The model with an adapter that alone trains, in 32 bits; the model itself, changed in place, where that is all.

    Args:
        model: of whatever precision, quantised or not.
        adapter: what is put into it.
        task: what it does, whose head trains with the adapter where it classifies.
        name: of the model, for errors.
        sample: batches of ids and masks, for `init: eva`.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    with explaining("adapter", name, "name other modules in `target_modules`", done="put into it"):
        settings: Any = peft_settings(adapter, model.config.to_dict(), task, name)
    if isinstance(adapter, LoraSettings):
        _check_modules(model, adapter, settings, name)
    _train_new(model, settings)
    from peft import get_peft_model

    with explaining("adapter", name, "name other modules in `target_modules`", done="put into it"):
        wrapped: Any = get_peft_model(model, settings)
    if isinstance(adapter, LoraSettings):
        _require_ranks(model, name)
        if adapter.init == "eva":
            start_by_inputs(wrapped, sample or (), name)
        principal_start(model, adapter)
    _in_32_bits(wrapped)
    _keep_differentiable(wrapped)
    wrapped.eval()
    made: nn.Module = model if settings.peft_type.value in _IN_PLACE else wrapped
    return made


def check_adapter(config: PreTrainedConfig, adapter: AnyAdapter, task: str, name: object, *, trusted: bool) -> None:
    """Whether an adapter fits a model of which there is a configuration and no weight yet.

    Raises:
        ModelError: it does not.
    """
    if isinstance(adapter, LoraSettings):
        adapter = adapter.model_copy(update={"init": "default"})  # others look at weights
    kind = model_class(config, task, trust_remote_code=trusted)
    with torch.device("meta"):
        with quietly():
            model = kind._from_config(copy.deepcopy(config))
        adapt(model, adapter, task, name)


def _train_new(model: PreTrainedModel, settings: Any) -> None:
    """What is new in a model is random, and would stay so: it trains with the adapter, as heads do."""
    new = sorted(one for one in new_modules(model) if not set(one.split(".")) & set(_HEADS))
    if new:
        settings.modules_to_save = list(dict.fromkeys([*(settings.modules_to_save or ()), *new]))


def is_adapted(model: nn.Module) -> bool:
    """Whether peft has put an adapter into it."""
    return getattr(model, "peft_config", None) is not None


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by the names that it has inside the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_count(model: nn.Module) -> int:
    """Numbers that train."""
    return sum(parameter.numel() for parameter in trained_tensors(model).values())


def is_matrix_b(name: str) -> bool:
    """Whether a parameter is a low-rank matrix B, of a linear layer or of an embedding."""
    return "lora_B" in name or "lora_embedding_B" in name


def save_adapter(
    model: nn.Module,
    folder: Path,
    base: str,
    *,
    revision: str | None = None,
    label_names: Sequence[str] | None = None,
) -> None:
    """Writes peft's two files: what trained, and the settings that say what it belongs to.

    One that began as the principal part of the weights is written as an adapter for the whole weights, of twice the
    rank, which every program reads.

    Args:
        base: the reference of the model that it changes.
        revision: of that model on the Hub.
        label_names: of a classifier, in the order of their ids.
    """
    tensors, settings = as_plain_lora(model, adapter_state(model), _settings(model))
    labels = {} if label_names is None else {LABELS: json.dumps(list(label_names), ensure_ascii=False)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **labels})
    settings.base_model_name_or_path, settings.revision, settings.inference_mode = base, revision, True
    with quietly():
        settings.save_pretrained(str(folder))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model with an adapter, by the names that peft's files have."""
    from peft import PeftModel, get_peft_model_state_dict

    with quietly():
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
    before = "" if isinstance(model, PeftModel) else PREFIX
    return {f"{before}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _settings(model: nn.Module) -> Any:
    settings: Any = model.peft_config
    return copy.deepcopy(settings[NAME])


def _in_32_bits(model: nn.Module) -> None:
    """What trains is in 32 bits, whatever the precision of the rest: a head that came in 16 takes its inputs so."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[NAME]
            if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in trained.parameters()):
                trained.float()
                trained.register_forward_pre_hook(_inputs_in_32_bits)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _keep_differentiable(model: nn.Module) -> None:
    """In evaluation, on CPUs that can, bitsandbytes packs weights of 4 bits for an operation without a gradient, and
    leaves them so in the training that goes on.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def _inputs_in_32_bits(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, Tensor) and one.is_floating_point() else one for one in inputs)


def _check_modules(model: PreTrainedModel, adapter: LoraSettings, settings: Any, name: object) -> None:
    """Every name must mean something: peft ignores those that mean nothing beside others that do."""
    _require_group(model, adapter, name)
    every = [place for place, _ in model.named_modules()]
    targets = () if isinstance(settings.target_modules, str) else settings.target_modules
    able = [place for place, module in model.named_modules() if _takes_adapter(module)]
    for target in targets:
        _require_some(target, _ending(target, able), able, name)
    if adapter.init in PRINCIPAL and (embeddings := _embeddings(model, targets)):
        raise ModelError(
            f"`init: {adapter.init}` takes a part out of matrices, and {embeddings[0]} of {name} is an embedding",
            "take another `init`, or leave the embeddings out of `target_modules`",
        )
    for saved in adapter.modules_to_save or ():
        _require_some(saved, _ending(saved, every), every, name)
    for pattern in (*adapter.rank_pattern, *adapter.alpha_pattern):
        found = [place for place in every if re.match(rf"(.*\.)?({pattern})$", place)]
        _require_some(pattern, found, every, name)


def _require_group(model: PreTrainedModel, adapter: LoraSettings, name: object) -> None:
    """A group that the family's table knows, and layers that are there."""
    group, config = adapter.target_modules, model.config.to_dict()
    if isinstance(group, str) and targets_of_group(config, group) is None:
        raise ModelError(
            f"no table says which modules of a {config.get('model_type')} such as {name} are its {group}",
            f"name them in `target_modules`, or take {ALL_LINEAR}",
        )
    depth = architecture_of(config).num_layers
    if depth is not None and (beyond := [layer for layer in adapter.layers or () if layer >= depth]):
        raise ModelError(f"{name} has no layer {beyond[0]}", f"its layers are 0 to {depth - 1}")


def _embeddings(model: nn.Module, targets: Sequence[str]) -> list[str]:
    places = [place for place, module in model.named_modules() if isinstance(module, nn.Embedding)]
    return [place for target in targets for place in _ending(target, places)]


def _ending(name: str, places: Sequence[str]) -> list[str]:
    return [place for place in places if f".{place}".endswith(f".{name}")]


def _takes_adapter(module: nn.Module) -> bool:
    kinds = isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    return kinds or type(module).__module__.startswith("bitsandbytes")


def _require_some(wanted: str, found: Sequence[str], places: Sequence[str], name: object) -> None:
    if found:
        return
    last = dict.fromkeys(place.rpartition(".")[2] for place in places if not place.rpartition(".")[2].isdecimal())
    near = difflib.get_close_matches(wanted.rpartition(".")[2], last, n=_NEAR, cutoff=0.5)
    meant = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(list(last)[:8])}"
    raise ModelError(f"{name} has no module {wanted} that could get an adapter", meant)


def _require_ranks(model: nn.Module, name: object) -> None:
    """A rank above the smaller side of a matrix trains what changes nothing."""
    from peft.tuners.lora import LoraLayer

    for place, module in model.named_modules():
        if not isinstance(module, LoraLayer) or NAME not in module.r:
            continue
        least = min(module.in_features or 0, module.out_features or 0)
        if module.r[NAME] > least:
            raise ModelError(
                f"a rank of {module.r[NAME]} is more than {place} of {name} can have, a matrix of "
                f"{module.out_features} × {module.in_features}",
                f"take a rank of at most {least}, or give this module one by `rank_pattern`",
            )
