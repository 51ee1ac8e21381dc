"""At which precision a teacher is held, and on which devices: by bitsandbytes and accelerate, through transformers.

Parts on several devices are brought together by accelerate's hooks: inputs go to the first part, and what comes out is
on the device of the inputs again.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entrenar_core.data.scratch import scratch_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.quiet import mute_bitsandbytes
from entrenar_core.models.teacher_rules import has_bitsandbytes, no_bitsandbytes

_SHOWN = 8
_POOLER = "pooler"
"""Of some encoders: it belongs to a head, and may be new as that is."""
_IN, _OUT = 64, 32
"""What bitsandbytes' blocks and tiles ask of the widths of a layer, or it works on some machines and not on others."""


@dataclass(frozen=True, slots=True)
class Placing:
    """`load_in` is nf4, fp4 or int8; `device_map` a name or a table of modules and devices; without one, all of the
    model goes to `device`, where its inputs and outputs are. Scales of 4 bits may be `double_quantized`, and their
    layers compute in `compute_dtype`, that of the others if not given. `setting` is what asks for `load_in`.
    """

    load_in: str | None
    device_map: str | Mapping[str, int | str] | None
    device: torch.device
    double_quantized: bool = False
    compute_dtype: torch.dtype | None = None
    setting: str = "teacher.load_in"

    def arguments(self, empty: PreTrainedModel, dtype: torch.dtype, name: object) -> dict[str, Any]:
        """What `from_pretrained` is to be told of a model, of which `empty` is one without weights.

        Raises:
            ModelError: bitsandbytes is not installed, or has nothing to quantise; or a table does not fit the model.
        """
        logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells that parts are where they should be
        given: dict[str, Any] = {"device_map": self.device_map or {"": self.device}}
        if isinstance(self.device_map, Mapping):
            check_table(empty, self.device_map, name)
            for device in self.device_map.values():
                _require_device(device)
            given["device_map"] = dict(_apart(empty, self.device_map))
        if self.device_map == "cpu":
            given["device_map"] = {"": "cpu"}
        elif self.device_map is not None:
            given["offload_folder"] = scratch_folder()
        if self.load_in is not None:
            given["quantization_config"] = self._quantization(empty, self.load_in, dtype, name)
        return given

    def _quantization(
        self, empty: PreTrainedModel, load_in: str, dtype: torch.dtype, name: object
    ) -> BitsAndBytesConfig:
        if not has_bitsandbytes():
            raise ModelError(*no_bitsandbytes(f"`{self.setting}`"))
        mute_bitsandbytes()
        layers = dict(linear_layers(empty))
        kept = [layer for layer, quantised in layers.items() if not quantised]
        if len(kept) == len(layers):
            raise ModelError(
                f"{name} has no linear layer that `{self.setting}` could quantise: none reads a multiple of {_IN} "
                f"numbers and gives a multiple of {_OUT}",
                f"remove `{self.setting}`",
            )
        if load_in == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=load_in,
            bnb_4bit_compute_dtype=self.compute_dtype or dtype,
            bnb_4bit_use_double_quant=self.double_quantized,
            llm_int8_skip_modules=kept,
        )

    def finish(self, model: PreTrainedModel, name: object) -> None:
        """Lets a model that lies whole on another device take its inputs from `device`, and give its outputs there.

        Raises:
            ModelError: a weight that serves two modules is on disk, from where it cannot be read for both.
        """
        table = getattr(model, "hf_device_map", None) or {}
        for pair in model.all_tied_weights_keys.items():
            if any(table.get(_place(weight, table) or "") == "disk" for weight in pair):
                raise ModelError(
                    f"{pair[0]} and {pair[1]} of {name} are one weight, which cannot be on disk",
                    "put their modules on a GPU or the cpu with a table as `teacher.device_map`",
                )
        there = next(model.parameters()).device
        if self.device_map is not None and not is_spread(model) and not _same(there, self.device):
            add_hook_to_module(model, AlignDevicesHook(execution_device=there, io_same_device=True))


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, bool]]:
    """Every linear layer of a model by name, and whether it is quantised: those of its body that bitsandbytes can, but
    for a pooler.
    """
    body = model.base_model
    inside = {id(module) for module in body.modules()} - {id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if type(module) is nn.Linear or isinstance(module, Conv1D):
            gives, reads = module.weight.shape if type(module) is nn.Linear else reversed(module.weight.shape)
            fits = reads % _IN == 0 and gives % _OUT == 0
            yield name, id(module) in inside and fits and _POOLER not in name.split(".")


def check_table(empty: nn.Module, table: Mapping[str, int | str], name: object) -> None:
    """Every weight has a place, and every place is of a module.

    Raises:
        ModelError: a table does not fit the model.
    """
    modules = {place for place, _ in empty.named_modules()}
    if unknown := [place for place in table if place not in modules]:
        inside = ", ".join(sorted(modules - {""}, key=lambda place: (place.count("."), place))[:_SHOWN])
        raise ModelError(
            f"`teacher.device_map`: {name} has no module {unknown[0]}", f"it has {inside}, and others inside them"
        )
    if lost := [weight for weight, _ in empty.named_parameters() if _place(weight, table) is None]:
        more = f", and {len(lost) - 1} others" if len(lost) > 1 else ""
        raise ModelError(
            f"`teacher.device_map` says no place for {lost[0]} of {name}{more}",
            'name the modules that hold them; the empty name "" stands for all that is not named',
        )


def _place(weight: str, table: Mapping[str, int | str]) -> str | None:
    """The entry of a table that a weight belongs to: the longest that holds it."""
    holders = [place for place in table if place == "" or weight == place or weight.startswith(f"{place}.")]
    return max(holders, key=len, default=None)


def _apart(module: nn.Module, table: Mapping[str, int | str], name: str = "") -> Iterator[tuple[str, int | str]]:
    """The table without entries inside of others, which accelerate does not know: as few modules as can be, each on one
    device with all that is in it.
    """
    above = f"{name}." if name else ""
    held = [f"{above}{weight}" for weight, _ in (*module.named_parameters(), *module.named_buffers())]
    devices = {table[place] for weight in held if (place := _place(weight, table)) is not None}
    if len(devices) == 1:
        yield name, devices.pop()
    elif devices:
        for weight in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            if (place := _place(f"{above}{weight}", table)) is not None:
                yield f"{above}{weight}", table[place]
        for inside, child in module.named_children():
            yield from _apart(child, table, f"{above}{inside}")


def _require_device(place: int | str) -> None:
    if place == "disk":
        return
    device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    count = 1 if device.type == "cpu" else torch.get_device_module(device).device_count()
    if device.type != "cpu" and (device.index or 0) >= count:
        raise ModelError(
            f"`teacher.device_map` names {device}, and this machine has {count} such devices",
            "name a device that is there, or set `teacher.device_map: auto`",
        )


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def is_spread(module: nn.Module) -> bool:
    """Whether parts of it, or all, were given places by `Placing`: it then moves its inputs and outputs by itself."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())


def is_quantized(module: nn.Module) -> bool:
    """Whether weights of it are bitsandbytes'."""
    return any(type(parameter).__module__.startswith("bitsandbytes") for parameter in module.parameters())


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device, but for what has a place of its own already: spread or quantised models stay there."""
    if not (is_spread(module) or is_quantized(module)):
        tensors = (*module.parameters(), *module.buffers())
        return module if all(_same(tensor.device, device) for tensor in tensors) else module.to(device)
    if not isinstance(module, PreTrainedModel):
        for child in module.children():
            placed(child, device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
    return module
