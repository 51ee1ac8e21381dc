"""What one process does for all: files are looked for and written by rank 0, and all ranks go the same way after it."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from entrenar_core.errors import EntrenarError

T = TypeVar("T")


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work`, done by rank 0 alone, gives, on every rank; the others wait for it.

    Raises:
        EntrenarError: on every rank, so that none waits for one that is gone.
    """
    outcome: list[T | EntrenarError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except EntrenarError as error:
            if accelerator.num_processes == 1:
                raise
            outcome[0] = error
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, EntrenarError):
        raise result
    return result  # type: ignore[no-any-return]


def on_all(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """What `work`, done by every rank, gives each of them, on all.

    Raises:
        EntrenarError: of the first rank that met one, on every rank, when all have come to an end.
    """
    try:
        mine: T | EntrenarError = work()
    except EntrenarError as error:
        if accelerator.num_processes == 1:
            raise
        mine = error
    found: list[T | EntrenarError] = gather_object([mine])
    if errors := [outcome for outcome in found if isinstance(outcome, EntrenarError)]:
        raise errors[0]
    return [outcome for outcome in found if not isinstance(outcome, EntrenarError)]


def seed_rank(seed: int, rank: int) -> None:
    """Seeds everything random in a process, dropout above all, differently in each."""
    set_seed((seed + rank) % 2**32)
