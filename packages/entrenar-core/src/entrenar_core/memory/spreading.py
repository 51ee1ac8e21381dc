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
from entrenar_core.memory.fakes import empty_model, fake_
from entrenar_core.memory.jobs import HeldModel, Spreading
from entrenar_core.memory.quantised import fake_quantized_, quantize_, quantized_tensors
from entrenar_core.models.placing import check_table
from entrenar_core.models.quiet import quietly

Place = int | str
"""The number of a device, `cpu` or `disk`."""
_STORED: Mapping[str, float] = {"nf4": 0.5, "fp4": 0.5, "int8": 1}
_LEFT_FREE = 0.9
"""Of every device, which transformers leaves free where it quantises."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where modules of a model lie, and the bytes of weights and buffers in each place, by dtype, those on disk as in
    memory; `brought_bytes` are of the largest part that a device borrows from elsewhere to compute it.
    """

    modules: Mapping[str, Place]
    sizes: Mapping[tuple[Place, str], int]
    brought_bytes: int = 0

    @property
    def size_bytes(self) -> dict[Place, int]:
        """In each place."""
        found: Counter[Place] = Counter()
        for (place, _), size in self.sizes.items():
            found[place] += size
        return dict(found)

    def elsewhere(self, device: int) -> dict[str, int]:
        """What does not lie on a device, by dtype."""
        found: Counter[str] = Counter()
        for (place, dtype), size in self.sizes.items():
            found[dtype] += 0 if place == device else size
        return dict(found)

    def layers_on(self, device: int) -> float:
        """The share of the numbered layers that compute on a device; what lies on none computes on the first."""
        numbered = [place for name, place in self.modules.items() if any(part.isdecimal() for part in name.split("."))]
        there = [device == (place if isinstance(place, int) else 0) for place in numbered]
        return sum(there) / len(there) if there else float(self.modules.get("", 0) == device)


def spread(held: HeldModel, asked: Spreading) -> Spread:
    """Where the parts of a model lie.

    Raises:
        ModelError: transformers cannot make the model; or bitsandbytes is not installed, or would have to leave
            quantised layers in main memory or on disk; or a table names no module, or leaves one out.
    """
    model = empty_model(held)
    if held.load_in is not None:
        quantize_(model, held)
    modules = _modules(model, held, asked)
    places = set(modules.values())
    if held.load_in is not None and asked.devices and not places <= set(range(asked.devices)):
        raise ModelError(
            f"{held.name} in {held.load_in} does not fit on {asked.devices} devices, and bitsandbytes keeps all there",
            "take more or larger devices",
        )
    sizes, brought = _sizes(model, held, modules)
    return Spread(modules, sizes, 0 if asked.how == "cpu" else brought)


def _modules(model: PreTrainedModel, held: HeldModel, asked: Spreading) -> dict[str, Place]:
    """By transformers' own search, unless they are said."""
    if isinstance(asked.how, Mapping):
        check_table(model, asked.how, held.name)
        return {name: _numbered(place) for name, place in asked.how.items()}
    if asked.how == "cpu":
        return {"": "cpu"}
    host = 1 << 62 if asked.host_bytes is None else asked.host_bytes
    room: dict[Place, int] = {**dict.fromkeys(range(asked.devices), asked.room_bytes), "cpu": host}
    quantizer: Any = None if held.load_in is None else _Quantized(_STORED[held.load_in])
    if quantizer is not None:
        room = {place: int(size * _LEFT_FREE) for place, size in room.items()}
    settings: dict[str, Any] = {"no_split_module_classes": model._no_split_modules, "hf_quantizer": quantizer}
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells that this machine does not have these devices
    with quietly():
        if asked.how != "sequential":
            room = placing.get_balanced_memory(model, max_memory=room, **settings)
        return dict(placing.infer_auto_device_map(model, max_memory=room, **settings))


def _numbered(place: Place) -> Place:
    """Of `cuda:1` the number."""
    kind, _, number = str(place).partition(":")
    return int(number or 0) if kind in ("cuda", "xpu") else place


@dataclass(frozen=True, slots=True)
class _Quantized:
    """What the search asks of a quantiser: the bytes of a number of a weight."""

    item_bytes: float

    def param_element_size(self, model: nn.Module, name: str, parameter: Tensor) -> float:
        """Of quantised layers the weights, and not the biases."""
        module, _, own = name.rpartition(".")
        quantised = own == "weight" and type(model.get_submodule(module)).__module__.startswith("bitsandbytes")
        return self.item_bytes if quantised else parameter.element_size()


def _sizes(
    model: PreTrainedModel, held: HeldModel, modules: Mapping[str, Place]
) -> tuple[dict[tuple[Place, str], int], int]:
    """What lies in each place, where quantised weights have their scales; and the largest module that lies on no
    device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_(model, mode)
    if held.load_in is not None:
        fake_quantized_(model, mode, held.load_in, double_quantized=held.double_quantized)
    sizes: Counter[tuple[Place, str]] = Counter()
    spilled: Counter[str] = Counter()
    seen: set[int] = set()
    for name, tensor in _tensors(model):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        module = _module_of(name, modules)
        place, size = modules.get(module, 0), tensor.numel() * tensor.itemsize
        sizes[place, str(tensor.dtype).removeprefix("torch.")] += size
        if not isinstance(place, int):
            spilled[module] += size
    ordered = sorted(sizes, key=lambda key: (str(key[0]), key[1]))
    return {key: sizes[key] for key in ordered}, max(spilled.values(), default=0)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        own = f"{name}." if name else ""
        for inside, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield own + inside, tensor
        if type(module).__module__.startswith("bitsandbytes"):
            for number, tensor in enumerate(quantized_tensors(module)):
                yield f"{own}{number}", tensor


def _module_of(name: str, modules: Mapping[str, Place]) -> str:
    """The closest module around a weight that has a place."""
    while name not in modules and name:
        name = name.rpartition(".")[0]
    return name
