"""Which tiles of rows a loss goes through: all of them, unless what they take is watched and not what they give."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Looked = Callable[[range], Iterable[int]]

_looked: ContextVar[Looked | None] = ContextVar("_looked", default=None)


def tiles_of(starts: range) -> Iterable[int]:
    """The first rows of the tiles to go through."""
    choose = _looked.get()
    return starts if choose is None else choose(starts)


@contextmanager
def tiles_looked_at(choose: Looked) -> Iterator[None]:
    """Within, `choose` says which. Values and gradients are then none; it is for tensors without data."""
    token = _looked.set(choose)
    try:
        yield
    finally:
        _looked.reset(token)
