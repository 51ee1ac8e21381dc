"""Quantised layers in models on `meta`, as bitsandbytes makes them, and their tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from entrenar_core.errors import ModelError
from entrenar_core.memory.jobs import HeldModel, LoadIn
from entrenar_core.models.placing import linear_layers
from entrenar_core.models.quiet import mute_bitsandbytes
from entrenar_core.models.teacher_rules import has_bitsandbytes, no_bitsandbytes

_BLOCK = 64
_NESTED_BLOCK = 256
"""Values of a weight that share a scale, and scales that share one, as bitsandbytes has them."""


def quantize_(model: PreTrainedModel, held: HeldModel) -> None:
    """Puts bitsandbytes' layers in place of the linear ones that it can quantise; of a model on `meta`.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if not has_bitsandbytes():
        raise ModelError(*no_bitsandbytes("a model in 4 or 8 bits"))
    mute_bitsandbytes()
    import bitsandbytes as bnb

    dtype = next(model.parameters()).dtype
    computes = dtype if held.compute_dtype is None else getattr(torch, held.compute_dtype)
    load_in = held.load_in
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
                else bnb.nn.Linear4bit(
                    reads, gives, module.bias is not None, compute_dtype=computes, quant_type=load_in
                )
            )
        new.requires_grad_(False)
        if new.bias is not None:
            new.bias = nn.Parameter(new.bias.to(dtype), requires_grad=False)
        new.read_from = dtype  # of the weights that were quantised
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
    weight.quant_state = QuantState(absmax=scales, shape=shape, dtype=module.read_from, **settings)  # type: ignore[attr-defined]
    module._parameters["weight"] = weight


def _fake_8bit_(module: Any) -> None:
    weight = nn.Parameter(torch.empty((module.out_features, module.in_features), dtype=torch.int8), requires_grad=False)
    weight.CB = weight.SCB = None  # type: ignore[attr-defined]
    module._parameters["weight"] = weight
    module.state.CB, module.state.SCB = weight.data, torch.empty(module.out_features)
    module.state.threshold = 0.0  # which columns are outliers hangs on values


@contextmanager
def dequantised_without_data() -> Iterator[None]:
    """Within, peft's DoRA makes quantised weights without data whole, as it does with those of bitsandbytes."""
    import bitsandbytes as bnb
    from peft.tuners.lora import dora as module_of_dora

    dora: Any = module_of_dora
    reads = dora.dequantize_module_weight

    def whole(module: Any) -> Tensor:
        weight = module.weight
        if (state := getattr(weight, "quant_state", None)) is not None:
            made: Tensor = bnb.functional.dequantize_4bit(weight.data, state)
            return made
        if weight.dtype == torch.int8:
            found: Tensor = bnb.functional.int8_vectorwise_dequant(weight.data, module.state.SCB)
            return found
        unchanged: Tensor = reads(module)
        return unchanged

    dora.dequantize_module_weight = whole
    try:
        yield
    finally:
        dora.dequantize_module_weight = reads


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
