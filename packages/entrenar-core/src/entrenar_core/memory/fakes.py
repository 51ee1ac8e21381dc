"""Models without data: built from a configuration alone, with as many layers as are asked for, of the true sizes.

A model is built on `meta` first, where adapters and quantised layers can be put into it, and then its weights are
replaced by tensors that know their device, shape and dtype and nothing else, so that every operation takes the way
that it takes on real ones.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import import_utils

from entrenar_core.errors import ModelError
from entrenar_core.memory.jobs import SEQ2SEQ, DeviceType, HeldModel
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import drop_pooler, model_class
from entrenar_core.models.quiet import explaining, quietly

MOST_LAYERS = 2000
"""More than any model has; to make them would take minutes, on `meta` too."""


@contextmanager
def taken_for_real(device: DeviceType) -> Iterator[None]:
    """Within, transformers and torch take the way that they take on real tensors of a kind of device.

    Of tensors without data transformers would not ask whether a mask hides anything, and always make one. And on GPUs
    attention with dropout is fused, where a CPU makes all scores; so there, dropout is left out of it.
    """
    asks, attends = import_utils.is_fake_tensor, F.scaled_dot_product_attention

    def without_dropout(*given: Any, dropout_p: float = 0.0, **settings: Any) -> Any:  # noqa: ARG001
        return attends(*given, **settings)

    import_utils.is_fake_tensor = lambda _: False
    if device != "cpu":
        F.scaled_dot_product_attention = without_dropout
    try:
        yield
    finally:
        import_utils.is_fake_tensor, F.scaled_dot_product_attention = asks, attends


def empty_model(held: HeldModel, layers: int | None = None) -> PreTrainedModel:
    """The model on `meta`, in evaluation mode: with all layers, or with the first ones of every stack.

    Raises:
        ModelError: transformers has no such model, or cannot make it of these sizes.
    """
    kind = class_of(held)
    config = copy.deepcopy(held.config)
    _require_few(config, held.name)
    if layers is not None:
        for one in _configs(config):
            _cut(one, layers)
    attention = held.attention if getattr(kind, "_supports_sdpa", False) else "eager"
    with explaining("model", held.name, "check its config.json"), quietly(), torch.device("meta"):
        model: PreTrainedModel = kind._from_config(
            config, dtype=getattr(torch, held.dtype), attn_implementation=attention
        )
    if held.task == EMBEDDING:
        drop_pooler(model)
    return model.eval()


def class_of(held: HeldModel) -> Any:
    """The class of a model, as transformers has it, found by making a shallow one once.

    Raises:
        ModelError: there is none.
    """
    key = type(held.config), held.task, held.trust_remote_code
    if key not in _CLASSES:
        shallow = copy.deepcopy(held.config)
        for one in _configs(shallow):
            _cut(one, 1)
        if held.task == SEQ2SEQ:
            with explaining("model", held.name, "take another model"), torch.device("meta"):
                _CLASSES[key] = type(AutoModelForSeq2SeqLM.from_config(shallow))
        else:
            _CLASSES[key] = model_class(shallow, held.task, trust_remote_code=held.trust_remote_code)
    return _CLASSES[key]


_CLASSES: dict[tuple[type, str, bool], Any] = {}


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
        for name in _DEPTHS:
            if isinstance(depth := getattr(one, name, None), int):
                yield depth


def fake_(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces every tensor of a model on `meta` by one without data on the CPU; what was shared stays shared."""
    made: dict[int, Tensor] = {}
    for tensors, name, tensor in _on_meta(model):
        if id(tensor) not in made:
            made[id(tensor)] = _faked(tensor, mode)
        tensors[name] = made[id(tensor)]


def _on_meta(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Where the tensors of a model are held: weights, buffers, and others that modules keep."""
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for tensors in tables:
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                    yield tensors, name, tensor


def _faked(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        trains = isinstance(tensor, nn.Parameter)
        return nn.Parameter(empty, requires_grad=tensor.requires_grad) if trains else empty


def _require_few(config: PreTrainedConfig, name: str) -> None:
    for one in _configs(config):
        found = getattr(one, "num_hidden_layers", None)
        if isinstance(found, int) and found > MOST_LAYERS:
            raise ModelError(
                f"{name} says that it has {found:,} layers", f"check its config.json: {MOST_LAYERS:,} are the most"
            )


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration, and that of the text model inside of it."""
    inner = config.get_text_config()
    return [config] if inner is config else [config, inner]


def _cut(config: PreTrainedConfig, layers: int) -> None:
    """Fewer layers, and what is said of each layer for as many."""
    total = config.num_hidden_layers if hasattr(config, "num_hidden_layers") else None
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, type(value)(value[:layers]))
    for name in _DEPTHS:
        if isinstance(getattr(config, name, None), int) and getattr(config, name) > layers:
            setattr(config, name, layers)


_DEPTHS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers", "encoder_layers")
