"""Attention masks that keep the examples of a row apart, whatever else a model masks.

transformers asks one table how masks are made. In it stands a function of ours (recording.py registers it), which gives
the model's own rule (causal, a window, none) the positions of tokens in their example, and adds that both are of one.
transformers does the same for decoders whose rows are not padded, and nothing for encoders.

Shapes: B rows, T positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from entrenar_core.data.collating import Packed

_packed: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextmanager
def kept_apart(packed: Packed) -> Iterator[None]:
    """Within, masks that are made by `mask_apart` keep the examples apart."""
    token = _packed.set(packed)
    try:
        yield
    finally:
        _packed.reset(token)


def mask_apart(make: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """The mask that `make`, a function of transformers, makes, with the examples of a row kept apart if they are."""
    packed = _packed.get()
    if packed is None:
        return make(*args, **settings)
    own, positions_BT, segments_BT = settings["mask_function"], packed.positions_BT, packed.segments_BT

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        together: Tensor = segments_BT[row, query] == segments_BT[row, key]
        ruled: Tensor = own(row, head, positions_BT[row, query], positions_BT[row, key])
        return together & ruled

    changed = {"mask_function": allowed, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return make(*args, **settings | changed)
