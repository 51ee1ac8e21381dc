"""LoRA adapters and quantised layers in models on `meta`, as peft and bitsandbytes make them, and their tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entrenar_core.errors import ModelError
from entrenar_core.memory.jobs import Adapters, HeldModel, LoadIn
from entrenar_core.models.placing import linear_layers
from entrenar_core.models.quiet import mute_bitsandbytes, quietly
from entrenar_core.models.teacher_rules import has_bitsandbytes, no_bitsandbytes

_BLOCK = 64
_NESTED_BLOCK = 256
"""Values of a weight that share a scale, and scales that share one, as bitsandbytes has them."""


def quantize_(model: PreTrainedModel, load_in: LoadIn) -> None:
    """Puts bitsandbytes' layers in place of the linear ones that it can quantise; of a model on `meta`.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if not has_bitsandbytes():
        raise ModelError(*no_bitsandbytes("a model in 4 or 8 bits"))
    mute_bitsandbytes()
    import bitsandbytes as bnb

    dtype = next(model.parameters()).dtype
    for name, quantised in list(linear_layers(model)):
        if not quantised:
            continue
        parent, _, own = name.rpartition(".")
        module: Any = model.get_submodule(name)
        gives, reads = module.weight.shape if type(module) is nn.Linear else reversed(module.weight.shape)
        with torch.device("meta"):
            new = (
                bnb.nn.Linear8bitLt(reads, gives, module.bias is not None, has_fp16_weights=False, threshold=6.0)
                if load_in == "int8"
                else bnb.nn.Linear4bit(reads, gives, module.bias is not None, compute_dtype=dtype, quant_type=load_in)
            )
        new.requires_grad_(False)
        if new.bias is not None:
            new.bias = nn.Parameter(new.bias.to(dtype), requires_grad=False)
        setattr(model.get_submodule(parent), own, new)


def fake_quantized_(model: nn.Module, mode: FakeTensorMode, load_in: LoadIn, *, double_quantized: bool) -> None:
    """Gives the quantised layers the tensors without data that bitsandbytes would have made of their weights."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            with mode:
                _fake_4bit_(module, load_in, double_quantized=double_quantized)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            with mode:
                _fake_8bit_(module)


def _fake_4bit_(module: Any, kind: LoadIn, *, double_quantized: bool) -> None:
    from bitsandbytes.functional import QuantState

    shape, count = torch.Size((module.out_features, module.in_features)), module.out_features * module.in_features
    blocks = -(-count // _BLOCK)
    settings: dict[str, Any] = {"code": torch.empty(16), "blocksize": _BLOCK, "quant_type": kind}
    if double_quantized:
        outer, code = torch.empty(-(-blocks // _NESTED_BLOCK)), torch.empty(256)
        inner = QuantState(absmax=outer, code=code, blocksize=_NESTED_BLOCK, dtype=torch.float32)
        scales = torch.empty(blocks, dtype=torch.uint8)
        settings |= {"offset": torch.empty(()), "state2": inner}
    else:
        scales = torch.empty(blocks)
    weight = nn.Parameter(torch.empty(((count + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(absmax=scales, shape=shape, dtype=module.compute_dtype, **settings)  # type: ignore[attr-defined]
    module._parameters["weight"] = weight


def _fake_8bit_(module: Any) -> None:
    weight = nn.Parameter(torch.empty((module.out_features, module.in_features), dtype=torch.int8), requires_grad=False)
    weight.CB = weight.SCB = None  # type: ignore[attr-defined]
    module._parameters["weight"] = weight
    module.state.CB, module.state.SCB = weight.data, torch.empty(module.out_features)
    module.state.threshold = 0.0  # which columns are outliers hangs on values


def quantized_tensors(model: nn.Module) -> list[Tensor]:
    """What quantised layers keep beside their weights."""
    found: list[Tensor] = []
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        while state is not None:
            found += [one for one in (state.absmax, state.code, state.offset) if isinstance(one, Tensor)]
            state = state.state2
        if isinstance(scales := getattr(getattr(module, "state", None), "SCB", None), Tensor):
            found.append(scales)
    return found


def adapt(model: PreTrainedModel, adapters: Adapters, name: str) -> nn.Module:
    """The model with LoRA matrices, which alone train; of a model on `meta`.

    Raises:
        ModelError: peft knows no layers of this family, the model has none of those named, or a rank is larger than a
            matrix.
    """
    mute_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    _require_some_rank(model, adapters.rank, name)
    settings = LoraConfig(
        r=adapters.rank,
        target_modules=list(adapters.targets) if adapters.targets else _known(model.config) or "all-linear",
        lora_dropout=adapters.dropout,
    )
    try:
        with quietly():
            adapted: nn.Module = get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(
            f"{name} takes no adapters: {error}", "name linear layers of the model, such as q_proj and v_proj"
        ) from None
    _require_ranks(adapted, adapters.rank, name)
    return adapted


def targets_of(held: HeldModel, adapters: Adapters) -> list[str]:
    """What the adapters of a model are on: names of linear layers, or how they are chosen."""
    return list(adapters.targets or _known(held.config) or ["all linear layers but the head"])


def _known(config: PreTrainedConfig) -> list[str] | None:
    """What peft takes for a family; None of one that it does not know."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    found = KNOWN.get(config.model_type)
    return None if found is None else list(found)


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


def _require_ranks(model: nn.Module, rank: int, name: str) -> None:
    for place, module in model.named_modules():
        if "lora_A" in place and isinstance(module, nn.Linear):
            other: Any = model.get_submodule(place.replace("lora_A", "lora_B"))
            least = min(module.in_features, other.out_features)
            if rank > least:
                layer = place.partition(".lora_A")[0].removeprefix("base_model.model.")
                raise ModelError(
                    f"a rank of {rank} is more than {layer} of {name} can have, a matrix of {other.out_features} × "
                    f"{module.in_features}",
                    f"take a rank of at most {least}",
                )
