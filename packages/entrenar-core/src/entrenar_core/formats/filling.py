"""Fills a file with tensors, each at its place, by several threads at once: bytes that stay as they are are copied by
the system, while parts of those that do not are computed. What comes in chunks alone is written before.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

from entrenar_core.formats.copying import PIPE_BYTES, copy_range, put
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing
from entrenar_core.threads import default_threads, share_out

_PIECE_BYTES = 1 << 22
_MOST_WAITING = 16  # blocks that are computed and not written yet
_MUCH_BYTES = 1 << 24  # what threads are begun for


@dataclass(frozen=True, slots=True)
class Placed:
    """Tensors that lie one behind another in the file from `at` on; several only where they did so before."""

    tensors: tuple[Outgoing, ...]
    at: int

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def origin(self) -> tuple[FileSource, int] | None:
        return self.tensors[0].origin


@dataclass(frozen=True, slots=True)
class _Job:
    """Writes some bytes; `reached` is how much of its kind is done before, from 0 to 1."""

    do: Callable[[], None]
    size_bytes: int
    reached: float
    tell: Callable[[int], None] | None


def fill(file: int, placed: Sequence[Placed]) -> None:
    """Writes all tensors to an open file.

    Raises:
        OSError: it cannot be written.
        ModelError: a source ends too early, or what a tensor is computed by says so.
    """
    for one in placed:
        if one.origin is None and one.tensors[0].parts is None:
            _put_chunks(file, one)
    _work(file, placed)


def _put_chunks(file: int, placed: Placed) -> None:
    at = placed.at
    for chunk in placed.tensors[0].chunks():
        put(file, memoryview(chunk), at)
        at += len(chunk)


def _work(file: int, placed: Sequence[Placed]) -> None:
    """Copies and computes by turns, each as far as the other, so that there is always something to compute while one
    thread writes.
    """
    copied = [one for one in placed if one.origin is not None]
    computed = [one for one in placed if one.origin is None and one.tensors[0].parts is not None]
    turns = _Turns(file)
    jobs = heapq.merge(_copies(turns, copied), _parts(turns, computed), key=lambda job: job.reached)
    told: list[tuple[Callable[[int], None], int]] = []

    def do(job: _Job) -> int:
        job.do()
        if job.tell is not None:
            told.append((job.tell, job.size_bytes))
        return job.size_bytes

    def tell(_: int) -> None:
        while told:
            one, size = told.pop()
            one(size)

    much = sum(one.size_bytes for one in (*copied, *computed)) >= _MUCH_BYTES
    share_out(jobs, lambda: do, progress=tell, threads=default_threads() if much else 1)
    turns.put_waiting()


class _Turns:
    """Lets one thread at a time write to a file, and others compute meanwhile: writers to one file wait for each other
    in the system, at work there for nothing.
    """

    def __init__(self, file: int) -> None:
        self.file, self._lock = file, Lock()
        self._waiting: deque[tuple[int, memoryview, Callable[[], None]]] = deque()

    def put(self, start: int, offset: int, block: memoryview, free: Callable[[], None]) -> None:
        """Writes a block, or leaves that to the thread that writes; `free` is called once it is written."""
        self._waiting.append((start + offset, block, free))
        if self._lock.acquire(blocking=len(self._waiting) > _MOST_WAITING):
            try:
                self.put_waiting()
            finally:
                self._lock.release()

    def copy(self, source: FileSource, offset: int, at: int, size: int) -> None:
        """Copies a range, and writes what waited meanwhile."""
        with self._lock:
            copy_range(source, offset, self.file, at, size)
            self.put_waiting()

    def put_waiting(self) -> None:
        """Writes the blocks that wait."""
        while self._waiting:
            at, block, free = self._waiting.popleft()
            put(self.file, block, at)
            free()


def _copies(turns: _Turns, runs: Sequence[Placed]) -> Iterator[_Job]:
    whole, before = sum(run.size_bytes for run in runs), 0
    for run in runs:
        assert run.origin is not None, "it lies somewhere already"
        source, offset = run.origin
        done, size = 0, run.size_bytes
        while done < size:
            at = run.at + done
            piece = min((_PIECE_BYTES if done else 0) + -at % PIPE_BYTES or _PIECE_BYTES, size - done)
            do = partial(turns.copy, source, offset + done, at, piece)
            yield _Job(do, piece, before / whole, run.tensors[0].tell)
            done += piece
            before += piece


def _parts(turns: _Turns, tensors: Sequence[Placed]) -> Iterator[_Job]:
    whole, before = sum(one.size_bytes for one in tensors), 0
    for one in tensors:
        (tensor,) = one.tensors
        assert tensor.parts is not None, "it is computed in parts"
        for part in tensor.parts():
            yield _Job(partial(part.do, partial(turns.put, one.at)), part.size_bytes, before / whole, tensor.tell)
            before += part.size_bytes
