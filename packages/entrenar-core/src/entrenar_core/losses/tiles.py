"""Which tiles of rows a loss goes through: all of them, unless what they take is watched and not what they give."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Looked = Callable[[range], Iterable[int]]

_looked: ContextVar[Looked | None] = ContextVar("_looked", default=None)
_device: ContextVar[str | None] = ContextVar("_device", default=None)


def tiles_of(starts: range) -> Iterable[int]:
    """The first rows of the tiles to go through."""
    choose = _looked.get()
    return starts if choose is None else choose(starts)


def device_type_of(tensor: Tensor) -> str:
    """Of which kind of device tiles are made to fit."""
    return _device.get() or tensor.device.type


@contextmanager
def tiles_looked_at(choose: Looked, device_type: str) -> Iterator[None]:
    """Within, `choose` says which, and they are those of a kind of device, wherever tensors say that they are. Values
    and gradients are then none; it is for tensors without data.
    """
    chosen, device = _looked.set(choose), _device.set(device_type)
    try:
        yield
    finally:
        _looked.reset(chosen)
        _device.reset(device)
