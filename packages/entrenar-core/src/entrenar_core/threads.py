"""Work of several threads at once: jobs in any order, or with their results in turn.

numpy, torch and the reading and writing of files let go of the interpreter's lock, so that threads are enough to keep
all cores at work.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any, TypeVar

Progress = Callable[[int], None]
"""Is told how many bytes more are done, in the thread that called."""
_Job = TypeVar("_Job")
_Place = TypeVar("_Place")
_Result = TypeVar("_Result")

_MAX_THREADS = 8
_TICK_S = 0.1
_IN_TURN = 2  # and two more results wait to be used


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def keeping_torch_threads() -> Iterator[None]:
    """Sets back how many threads torch takes for an operation, in this thread and those that begin later. Within, each
    of ours may take one alone: torch's own wait for each other at the end of every operation, the longer the more other
    work a machine has.
    """
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_out(
    jobs: Iterable[_Job],
    worker: Callable[[], Callable[[_Job], int]],
    *,
    progress: Progress | None = None,
    threads: int | None = None,
) -> None:
    """Does every job in one of several threads; they take the next from `jobs`, in its order, one at a time.

    Stops at the first error, and at Ctrl-C; no thread is left when this returns or raises.

    Args:
        worker: is called once in each thread, so that it may have buffers of its own; gives what does a job and
            returns how many bytes that was.
        threads: as many as there are cores, and at most 8, where it is not given.
    """
    count = min(threads or default_threads(), len(jobs) if isinstance(jobs, Sized) else _MAX_THREADS)
    if count < 2:  # what is small is done before a thread has started
        _do_all(jobs, worker(), progress)
        return
    shared = _Shared(jobs)

    def work() -> None:
        do = worker()
        for job in shared:
            shared.done(do(job))

    with ThreadPoolExecutor(count) as pool:
        running: set[Future[None]] = {pool.submit(work) for _ in range(count)}
        try:
            while running:
                finished, running = wait(running, timeout=_TICK_S)
                if progress is not None:
                    progress(shared.take_done())
                for one in finished:
                    one.result()
        finally:
            shared.stop.set()


def _do_all(jobs: Iterable[_Job], do: Callable[[_Job], int], progress: Progress | None) -> None:
    for job in jobs:
        size_bytes = do(job)
        if progress is not None:
            progress(size_bytes)


def default_threads() -> int:
    """One for every core that this process may use, at most 8."""
    return min(cores(), _MAX_THREADS)


class _Shared:
    """Jobs that several threads take from, and what they have done."""

    def __init__(self, jobs: Iterable[Any]) -> None:
        self._jobs, self._lock, self.stop = iter(jobs), Lock(), Event()
        self._done_bytes = 0

    def __iter__(self) -> Iterator[Any]:
        while not self.stop.is_set():
            with self._lock:
                try:
                    job = next(self._jobs)
                except StopIteration:
                    return
            yield job

    def done(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes

    def take_done(self) -> int:
        """How many bytes were done since this was last asked."""
        with self._lock:
            size_bytes, self._done_bytes = self._done_bytes, 0
        return size_bytes


def in_turn(
    jobs: Iterator[Callable[[_Place], _Result]], rooms: Sequence[_Place], threads: int = _IN_TURN
) -> Iterator[_Result]:
    """What the jobs return, in their order, while threads are at work on the next ones.

    Args:
        rooms: what each job is given to work in; it is another's once the next result is asked for.
    """
    free = list(rooms)
    waiting: deque[tuple[Future[_Result], _Place]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                if not free:
                    future, room = waiting.popleft()
                    yield future.result()
                    free.append(room)
                room = free.pop()
                waiting.append((pool.submit(job, room), room))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
