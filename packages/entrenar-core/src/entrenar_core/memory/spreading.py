"""Which layers of a model lie on which device, where one is too small: for teachers and for models that are only read.

The places are those that transformers finds for `device_map: auto`, by accelerate's rule: every device takes about as
much, in the order of the layers, and what fits on none of them goes to main memory, and then to the disk. Weights that
bitsandbytes quantises are counted as they are stored.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.integrations import accelerate as placing

from entrenar_core.errors import ModelError
from entrenar_core.memory.adapting import fake_quantized_, quantize_, quantized_tensors
from entrenar_core.memory.fakes import empty_model, fake_
from entrenar_core.memory.jobs import HeldModel
from entrenar_core.models.quiet import quietly

Place = int | str
"""The number of a device, `cpu` or `disk`."""
_STORED: Mapping[str, float] = {"nf4": 0.5, "fp4": 0.5, "int8": 1}
_LEFT_FREE = 0.9
"""Of every device, which transformers leaves free where it quantises."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where modules of a model lie, and the bytes of weights and buffers in each place, those on disk as in memory."""

    modules: Mapping[str, Place]
    size_bytes: Mapping[Place, int]

    @property
    def worst_device(self) -> int:
        """The device that has most; of equal ones the first. 0 where none has anything."""
        devices = [place for place in self.size_bytes if isinstance(place, int)]
        return max(devices, key=lambda place: self.size_bytes[place], default=0)

    @property
    def spilled_bytes(self) -> int:
        """What lies on no device."""
        return sum(size for place, size in self.size_bytes.items() if not isinstance(place, int))


def spread(held: HeldModel, devices: int, per_device_bytes: int, main_memory_bytes: int | None = None) -> Spread:
    """Where the parts of a model lie on some devices of which each has so many bytes for weights.

    Args:
        devices: how many, which may be none.
        per_device_bytes: what each has for weights, without what computing with them takes.
        main_memory_bytes: what is there for parts that no device takes; without a limit if not given.

    Raises:
        ModelError: transformers cannot make the model; or bitsandbytes is not installed, or would have to leave
            quantised layers in main memory or on disk.
    """
    model = empty_model(held)
    if held.load_in is not None:
        quantize_(model, held.load_in)
    host = 1 << 62 if main_memory_bytes is None else main_memory_bytes
    modules = _modules(model, held, {**dict.fromkeys(range(devices), per_device_bytes), "cpu": host})
    places = set(modules.values())
    if held.load_in is not None and devices and not places <= set(range(devices)):
        raise ModelError(
            f"{held.name} in {held.load_in} does not fit on {devices} devices: bitsandbytes keeps all of it there",
            "take more or larger devices",
        )
    return Spread(modules, _sizes(model, held, modules))


def _modules(model: PreTrainedModel, held: HeldModel, room: dict[Place, int]) -> dict[str, Place]:
    """By transformers' own search."""
    quantizer: Any = None if held.load_in is None else _Quantized(_STORED[held.load_in])
    if quantizer is not None:
        room = {place: int(size * _LEFT_FREE) for place, size in room.items()}
    settings: dict[str, Any] = {"no_split_module_classes": model._no_split_modules, "hf_quantizer": quantizer}
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells that this machine does not have these devices
    with quietly():
        balanced = placing.get_balanced_memory(model, max_memory=room, **settings)
        return dict(placing.infer_auto_device_map(model, max_memory=balanced, **settings))


@dataclass(frozen=True, slots=True)
class _Quantized:
    """What the search asks of a quantiser: the bytes of a number of a weight."""

    item_bytes: float

    def param_element_size(self, model: nn.Module, name: str, parameter: Tensor) -> float:
        """Of quantised layers the weights, and not the biases."""
        module, _, own = name.rpartition(".")
        quantised = own == "weight" and type(model.get_submodule(module)).__module__.startswith("bitsandbytes")
        return self.item_bytes if quantised else parameter.element_size()


def _sizes(model: PreTrainedModel, held: HeldModel, modules: Mapping[str, Place]) -> dict[Place, int]:
    """What lies in each place, where quantised weights have their scales."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_(model, mode)
    if held.load_in is not None:
        fake_quantized_(model, mode, held.load_in, double_quantized=held.double_quantized)
    sizes: Counter[Place] = Counter()
    seen: set[int] = set()
    for name, tensor in _tensors(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            sizes[_place(name, modules)] += tensor.numel() * tensor.itemsize
    return {place: sizes[place] for place in sorted(sizes, key=str)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        own = f"{name}." if name else ""
        for inside, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield own + inside, tensor
        if type(module).__module__.startswith("bitsandbytes"):
            for number, tensor in enumerate(quantized_tensors(module)):
                yield f"{own}{number}", tensor


def _place(name: str, modules: Mapping[str, Place]) -> Place:
    """Of a weight: that of the closest module around it that has one."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]
