"""What optimisers keep of each parameter: by the optimisers themselves, or a formula where they need real bytes.

Sources: AdamW, Loshchilov & Hutter 2019; in 8 bits, Dettmers et al. 2022, with bitsandbytes' block of 256 values and
its 32 bits for parameters of less than 4,096; Adafactor, Shazeer & Stern 2018, as torch has it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from entrenar_core.memory.jobs import OptimizerName

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
    """Both moments in a byte, with a scale for each block, in a step that needs no memory of its own."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.kept: dict[Tensor, list[Tensor]] = {parameter: _moments(parameter) for parameter in parameters}
        self.codes = [torch.empty(256), torch.empty(256)]  # what they stand for

    def step(self) -> None:
        pass

    def states(self) -> Iterable[Tensor]:
        return [*self.codes, *(tensor for kept in self.kept.values() for tensor in kept)]

    def of(self, parameter: Tensor) -> Iterable[Tensor]:
        return self.kept[parameter]


def _moments(parameter: Tensor) -> list[Tensor]:
    count = parameter.numel()
    if count < _SMALL:
        return [torch.empty(count), torch.empty(count)]
    blocks = -(-count // _BLOCK)
    return [torch.empty(size, dtype=dtype) for size, dtype in 2 * [(count, torch.uint8), (blocks, torch.float32)]]


def _of_torch(name: OptimizerName, parameters: Sequence[nn.Parameter]) -> Optimizer:
    return _Torch(_TORCH[name](parameters))


def real_optimizer(name: OptimizerName, parameters: Sequence[nn.Parameter]) -> Any:
    """An optimiser for tensors that are there."""
    if name == "adamw-8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters)
    return _TORCH[name](parameters)


_TORCH: dict[OptimizerName, Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "adafactor": torch.optim.Adafactor,
}

OPTIMIZERS: Mapping[OptimizerName, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    **{name: partial(_of_torch, name) for name in _TORCH},
    "adamw-8bit": _Adam8bit,
}
