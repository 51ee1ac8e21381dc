"""What optimisers keep of each parameter: by the optimisers themselves, or a formula where they need real bytes.

Sources: AdamW, Loshchilov & Hutter 2019; in 8 bits, Dettmers et al. 2022, with bitsandbytes' block of 256 values and
its 32 bits for parameters of less than 4,096; Adafactor, Shazeer & Stern 2018, as torch has it.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from entrenar_core.config.schema import OptimizerName
from entrenar_core.memory.jobs import DeviceType
from entrenar_core.training.optimizer import optimizer_of

RATE = 1e-4
"""Any: it changes no memory."""
_SMALL, _BLOCK = 4096, 256


class Optimizer(Protocol):
    """What a step needs of one."""

    def step(self) -> object:
        """Changes the parameters."""
        ...

    def states(self) -> Iterable[Tensor]:
        """What it keeps from step to step."""
        ...

    def of(self, parameter: Tensor) -> Iterable[Tensor]:
        """What of that belongs to a parameter."""
        ...


class _Torch:
    """An optimiser of torch, which makes its state when it steps first."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> object:
        return self.optimizer.step()

    def states(self) -> Iterable[Tensor]:
        return [tensor for parameter in list(self.optimizer.state) for tensor in self.of(parameter)]

    def of(self, parameter: Tensor) -> Iterable[Tensor]:
        return [value for value in self.optimizer.state[parameter].values() if isinstance(value, Tensor)]


class _Adam8bit:
    """Both moments in a byte, with a scale for each block. The kernels of GPUs need no memory of their own; on a CPU
    bitsandbytes makes both moments of a parameter at 32 bits, and what is computed of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: DeviceType) -> None:
        self.device = device
        self.kept: dict[Tensor, list[Tensor]] = {parameter: _moments(parameter) for parameter in parameters}
        self.codes = [torch.empty(256), torch.empty(256)]  # what they stand for

    def step(self) -> None:
        if self.device == "cpu":
            with torch.no_grad():
                for parameter in self.kept:
                    if parameter.grad is not None and parameter.numel() >= _SMALL:
                        _step_of(parameter, parameter.grad)

    def states(self) -> Iterable[Tensor]:
        return [*self.codes, *(tensor for kept in self.kept.values() for tensor in kept)]

    def of(self, parameter: Tensor) -> Iterable[Tensor]:
        return self.kept[parameter]


def _step_of(parameter: Tensor, grad: Tensor) -> None:
    """What is there at once, in the order of bitsandbytes' backend for CPUs."""
    first, second = torch.empty(parameter.shape), torch.empty(parameter.shape)
    scaled = grad.float() * 1.0
    first.add_(scaled)
    denominator = (second.sqrt() / 1.0).add_(1e-8)
    parameter.float().addcdiv_(first, denominator)


def _moments(parameter: Tensor) -> list[Tensor]:
    count = parameter.numel()
    if count < _SMALL:
        return [torch.empty(count), torch.empty(count)]
    blocks = -(-count // _BLOCK)
    return [torch.empty(size, dtype=dtype) for size, dtype in 2 * [(count, torch.uint8), (blocks, torch.float32)]]


def traced_optimizer(name: OptimizerName, parameters: Sequence[nn.Parameter], device: DeviceType = "cpu") -> Optimizer:
    """An optimiser for parameters without data."""
    return _Adam8bit(parameters, device) if name == "adamw-8bit" else _Torch(optimizer_of(name, parameters, RATE))
