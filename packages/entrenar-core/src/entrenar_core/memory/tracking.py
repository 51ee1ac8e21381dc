"""Watches tensors come and go while a step runs on tensors without data.

Every operation of a step passes through here, those of the backward pass too, as it would be executed: after autograd
and autocast. A tensor's bytes are held until the last reference to its storage is gone, as in a real run.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from entrenar_core.memory.jobs import DeviceType
from entrenar_core.memory.ledger import Key, Ledger

_aten = torch.ops.aten
_POINTWISE = frozenset(getattr(_aten, f"{name}{place}") for name in ("add", "sub", "mul", "div") for place in ("", "_"))
_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


MOST_OPERATIONS = 150_000
"""A step that has more, such as a recurrence that is computed token by token, would take minutes to follow."""
MOST_S, _LOOKS = 120, 1000
"""Seconds, for those whose operations take long by themselves; and after how many of them the clock is looked at."""


class Tracking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells a ledger what operations take and give back, and counts floating-point operations.

    `component` is whose the new tensors are. What hangs on values, which are not there, is answered by what is known
    of them: whether some rows are `padded`; and of masks, by their storage, how many entries are true (`counted`). A
    mask that is not known is all true. `goes_back` is true in a backward pass.
    """

    def __init__(self, ledger: Ledger, *, padded: bool = True, device: DeviceType = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.padded, self.device = padded, device
        self.ledger = ledger
        self.component = "activations"
        self.counted: dict[int, int] = {}
        self.goes_back = False
        self.operations, self.began = 0, time.monotonic()
        self.flops = 0
        self._known: dict[int, tuple[weakref.ref[Any], Key, int]] = {}

    def note(self, tensor: Tensor, component: str | None = None) -> None:
        """A tensor that may be new; one whose storage is known is another view of it."""
        storage = tensor.untyped_storage()
        number = id(storage)
        if number in self._known:
            return
        key = component or self.component, _dtype(tensor)
        taken = self.ledger.take(key, storage.nbytes())
        self._known[number] = weakref.ref(storage, lambda _: self._gone(number)), key, taken

    def belongs(self, tensor: Tensor, component: str) -> None:
        """What a tensor turns out to be, such as a gradient when it is accumulated."""
        number = id(tensor.untyped_storage())
        if number not in self._known:
            self.note(tensor, component)
            return
        reference, key, taken = self._known[number]
        if key[0] != component:
            after = component, key[1]
            self._known[number] = reference, after, taken
            self.ledger.move(key, after, taken)

    def _gone(self, number: int) -> None:
        _, key, taken = self._known.pop(number)
        self.ledger.give(key, taken)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and notes what it made."""
        kwargs = kwargs or {}
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise RuntimeError(f"more than {MOST_OPERATIONS:,} operations")
        if self.operations % _LOOKS == 0 and time.monotonic() - self.began > MOST_S:
            raise RuntimeError(f"it takes more than {MOST_S} s")
        if func is _aten._local_scalar_dense.default:
            return self._value(args[0])
        if func is _aten.add.Tensor and self.goes_back and _summed_in_place(args):
            return args[0]
        if func is _aten.nonzero.default:
            made = torch.stack(self._places(args[0]), -1)
        else:
            if func is _aten.index.Tensor:
                args = (args[0], self._without_masks(args[1]))
            self._pass(func, args)
            made = func(*args, **kwargs)
        self._note_all(made)
        self.flops += _flops(func, args, kwargs, made)
        return made

    def _pass(self, func: Any, args: tuple[Any, ...]) -> None:
        """What an operation takes and gives back inside."""
        if (hidden := _PASSING.get(func.name())) is not None:
            self.ledger.passing(("workspace", _dtype(args[0])), hidden(args))
        elif self.device == "cpu" and func.overloadpacket in _POINTWISE:
            tensors = [one for one in args[:2] if isinstance(one, Tensor) and one.ndim]
            common = max(tensors, key=lambda one: one.itemsize, default=None)
            for one in tensors:  # a CPU makes a copy of what has another dtype than it computes in
                if common is not None and one.dtype != common.dtype:
                    self.ledger.passing(("workspace", _dtype(common)), one.numel() * common.itemsize)

    def _note_all(self, made: Any) -> None:
        if isinstance(made, Tensor):
            self.note(made)
        elif isinstance(made, list | tuple):
            for one in made:
                self._note_all(one)

    def _value(self, scalar: Tensor) -> float | bool:
        """What is asked of a number that is not there: whether all tokens are real, or how many of something are."""
        if scalar.dtype == torch.bool:
            return not self.padded
        return 1.0 if scalar.is_floating_point() else 1

    def _count(self, mask: Tensor) -> int:
        """How many entries are true; of some of the rows of a mask that is known, their share."""
        storage = mask.untyped_storage()
        known = self.counted.get(id(storage))
        if known is None:
            return mask.numel()
        rows = storage.nbytes() // (mask.stride(0) * mask.itemsize)
        return -(-known * len(mask) // rows)

    def _places(self, mask: Tensor) -> list[Tensor]:
        """Where a mask is true, by dimension."""
        return [torch.empty(self._count(mask), dtype=torch.long, device=mask.device) for _ in range(mask.ndim)]

    def _without_masks(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices of which none is a mask."""
        found: list[Tensor | None] = []
        for index in indices:
            found += self._places(index) if index is not None and index.dtype == torch.bool else [index]
        return found


def _summed_in_place(args: tuple[Any, ...]) -> bool:
    """Whether autograd adds a gradient to another one in place, as it does where nobody else holds the first. While
    operations are watched, it never does.
    """
    first, second = args[0], args[1]
    if torch.is_grad_enabled() or not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    storage = first.untyped_storage()
    alone = torch._C._storage_Use_Count(storage._cdata) <= _OWN_REFERENCES
    return alone and first.dtype == second.dtype and _is_dense(first)


_OWN_REFERENCES = 2
"""Of a storage that one tensor holds, while it is looked at."""


def _is_dense(tensor: Tensor) -> bool:
    return bool(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> int:
    count = flop_registry.get(func._overloadpacket)
    if count is not None:
        return int(count(*args, **kwargs, out_val=made))
    own = _FLOPS.get(func.name())
    return 0 if own is None else own(args)


def _products(queries: Tensor, keys: Tensor, values: Tensor) -> int:
    """Of attention: queries with keys, and what comes of it with values."""
    return int(sdpa_flop_count(queries.shape, keys.shape, values.shape))  # type: ignore[no-untyped-call]


def _gemm_4bit_flops(args: tuple[Any, ...]) -> int:
    rows, (gives, reads) = args[0], args[2]
    return 2 * int(rows.numel()) // int(rows.shape[-1]) * int(gives) * int(reads)


_FLOPS: dict[str, Callable[[tuple[Any, ...]], int]] = {
    f"{_FLASH}": lambda args: _products(*args[:3]),
    f"{_FLASH}_backward": lambda args: _products(*args[1:4]) * 5 // 2,
    "aten::addmm_": lambda args: 2 * args[1].numel() * int(args[2].shape[-1]),
    "bitsandbytes::gemm_4bit": _gemm_4bit_flops,
    "transformers::grouped_mm_fallback": lambda args: 2 * int(args[0].numel()) * int(args[1].shape[2]),
}
"""Of operations that torch does not count. The backward pass of flash attention has five products for two."""

_PASSING: dict[str, Callable[[tuple[Any, ...]], int]] = {
    # it multiplies with weights that it dequantises to the dtype of its inputs
    "bitsandbytes::gemm_4bit": lambda args: int(args[2][0]) * int(args[2][1]) * int(args[0].itemsize),
    # it multiplies by the scales of rows first, and then by what all have in common
    "bitsandbytes::int8_vectorwise_dequant": lambda args: 4 * int(args[0].numel()),
}
"""What operations take and give back inside, where no tensor shows it."""
