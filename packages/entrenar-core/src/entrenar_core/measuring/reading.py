"""Reads stored tensors in blocks, by several threads at once: the part that everything measured here shares.

numpy lets go of the interpreter's lock inside one operation on a block, and so does reading from a file, so threads
are enough to keep all cores at work. Nothing is mapped into memory.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from entrenar_core.errors import UnmeasurableError
from entrenar_core.formats.decoding import decodable, decode, numbers_per_value
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

Progress = Callable[[int], None]
"""Is told how many bytes more are done, in the thread that called."""
Bytes = NDArray[np.uint8]
_Job = TypeVar("_Job")

_MAX_THREADS = 8
_TICK_S = 0.1


class InMemory:
    """Bytes that are here already, as a `Source`."""

    def __init__(self, name: str, raw: Bytes) -> None:
        self.name, self.size_bytes, self._raw = name, len(raw), raw

    def read(self, offset: int, size: int) -> bytes:
        """As `Source.read`."""
        return self._raw[offset : offset + size].tobytes()

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a tensor, row by row: `size_bytes` from `start` of `source` on. `scale` is what came before them."""

    tensor: StoredTensor
    source: Source
    start: int
    size_bytes: int
    scale: float | None = None

    def bytes_at(self, place: int, buffer: Bytes) -> Bytes:
        """As many bytes as the buffer has, from `place` on, which counts from the first; gives the buffer.

        Raises:
            ModelError: the file ends before, or cannot be read.
        """
        return fill(self.source, self.start + place, buffer)

    def decode(self, place: int, raw: Bytes, room: NDArray[np.float32] | None = None) -> NDArray[Any]:
        """The numbers of whole blocks that were read from `place` on. `room` is written over, if that helps."""
        dtype = self.tensor.dtype
        numbers = decode(raw, dtype, scale=self.scale, room=room)
        before = place // dtype.block_bytes * dtype.block
        return numbers[: (self.tensor.values - before) * numbers_per_value(dtype)]  # a last block may not be full

    def cut(self, values: int) -> list[tuple[int, int]]:
        """Ranges of its bytes, as place and size: of so many values each, which are whole blocks, but for the last."""
        step = values // self.tensor.dtype.block * self.tensor.dtype.block_bytes
        return [(place, min(step, self.size_bytes - place)) for place in range(0, self.size_bytes, step)]


def content_of(model: StoredModel, tensor: StoredTensor) -> Content:
    """Where the bytes of a tensor lie row by row. One that lies in another order in its file is read whole for that.

    Raises:
        ModelError: its values cannot be decoded; or the file ends before, or cannot be read.
    """
    if not decodable(tensor.dtype):
        raise UnmeasurableError(
            tensor.name, f"is of the type {tensor.dtype}, whose values are not known", "leave this tensor out"
        )
    if tensor.inline:
        held = InMemory(tensor.name, np.frombuffer(model.inline(tensor), np.uint8))
        return Content(tensor, held, 0, held.size_bytes)
    source, head = model.sources[tensor.file], tensor.dtype.head_bytes
    if tensor.strides is not None:
        held = _row_by_row(source, tensor)
        return Content(tensor, held, 0, held.size_bytes)
    scale = float(fill(source, tensor.offset, np.empty(head, np.uint8)).view("<f4")[0]) if head else None
    return Content(tensor, source, tensor.offset + head, tensor.size_bytes - head, scale)


def _row_by_row(source: Source, tensor: StoredTensor) -> InMemory:
    assert tensor.strides is not None
    size = tensor.dtype.block_bytes
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    stored = np.frombuffer(source.read(tensor.offset, span * size), np.dtype((np.void, size)))
    strides = tuple(stride * size for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(stored, tensor.shape, strides, writeable=False)
    return InMemory(tensor.name, np.ascontiguousarray(view).reshape(-1).view(np.uint8))


def fill(source: Source, offset: int, buffer: Bytes) -> Bytes:
    """Reads as many bytes as the buffer has; gives the buffer.

    Raises:
        ModelError: the file ends before, or cannot be read.
    """
    if isinstance(source, FileSource):
        source.read_into(offset, buffer.data)
    else:
        buffer[:] = np.frombuffer(source.read(offset, len(buffer)), np.uint8)
    return buffer


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MAX_THREADS)


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
