"""Models without data: built from a configuration alone, with as few layers as are asked for, of the true sizes.

A model is built on `meta` first, where adapters and quantised layers can be put into it, and then its weights are
replaced by tensors that know their device, shape and dtype and nothing else, so that every operation takes the way
that it takes on real ones.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import import_utils

from entrenar_core.memory.jobs import SEQ2SEQ, HeldModel
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import drop_pooler, model_class
from entrenar_core.models.quiet import explaining, quietly


@contextmanager
def taken_for_real() -> Iterator[None]:
    """Within, transformers takes the way that it takes on real tensors. Of those without data it would not ask whether
    a mask hides anything, and always make one.
    """
    before = import_utils.is_fake_tensor
    import_utils.is_fake_tensor = lambda _: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = before


def empty_model(held: HeldModel) -> PreTrainedModel:
    """The model on `meta`, with all layers, in evaluation mode.

    Raises:
        ModelError: transformers has no such model, or cannot make it of these sizes.
    """
    config = copy.deepcopy(held.config)
    if held.task == SEQ2SEQ:
        with explaining("model", held.name, "take another model"), torch.device("meta"):
            kind: Any = type(AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config)))
    else:
        kind = model_class(config, held.task, trust_remote_code=held.trust_remote_code)
    with explaining("model", held.name, "check its config.json"), quietly(), torch.device("meta"):
        attention = held.attention if getattr(kind, "_supports_sdpa", False) else "eager"
        model: PreTrainedModel = kind._from_config(config, dtype=getattr(torch, held.dtype), attn_implementation=attention)
    if held.task == EMBEDDING:
        drop_pooler(model)
    return model.eval()


def stacks_of(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The lists of layers: the longest list of blocks, and others as long, such as those of encoder and decoder."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    lists = [module for module in lists if any(True for _ in module.parameters())]
    inner = {id(part) for one in lists for block in one for part in block.modules()}
    outer = [one for one in lists if id(one) not in inner]
    depths = set(depths_of(model.config))
    return [one for one in outer if len(one) in depths] or outer[:0]


def depths_of(config: PreTrainedConfig) -> Iterator[int]:
    """How many layers a configuration says that there are."""
    for one in (config, config.get_text_config()):
        for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers", "encoder_layers"):
            if isinstance(depth := getattr(one, name, None), int):
                yield depth


def fake_(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces every tensor of a model on `meta` by one without data on the CPU; what was shared stays shared."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                made[id(tensor)] = (
                    nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                )
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers, module.__dict__):
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                    tensors[name] = fake(tensor)


def keep_layers_(model: PreTrainedModel, chosen: Sequence[int]) -> None:
    """Leaves some layers of every stack, in their order, and makes the configuration say so."""
    for stack in stacks_of(model):
        total = len(stack)
        kept = [stack[index] for index in chosen]
        del stack[len(chosen) :]
        for place, layer in enumerate(kept):
            stack[place] = layer
            _number(layer, chosen[place], place)
        for config in _configs(model):
            _cut(config, total, chosen)


def _number(layer: nn.Module, before: int, now: int) -> None:
    """Layers know their place, where they keep keys and values."""
    for module in layer.modules():
        if getattr(module, "layer_idx", None) == before:
            module.layer_idx = now  # type: ignore[assignment]


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that a part of the model looks at."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None}
    inside = [config.get_text_config() for config in found.values() if isinstance(config, PreTrainedConfig)]
    return list(({id(one): one for one in inside} | found).values())


def _cut(config: PreTrainedConfig, total: int, chosen: Sequence[int]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == total and "layer" in name:
            setattr(config, name, type(value)(value[index] for index in chosen))
        elif name in ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers") and value == total:
            setattr(config, name, len(chosen))
