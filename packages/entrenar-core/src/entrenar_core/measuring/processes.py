"""How far many tensors moved, on all cores: the parts of tensors go to processes, one for each core but the first.

Threads do not do: between numpy's operations, which are short here, they wait for each other's turn at the interpreter.
A process is this module run as a program. It is sent, pickled, which part of which files to compare, by this program
alone; it opens the files itself.
"""

import pickle
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from entrenar_core.errors import ModelError
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.difference_sums import DifferenceSums
from entrenar_core.measuring.differences import BLOCK_VALUES, sums_between, sums_of_equal, together
from entrenar_core.measuring.reading import Content, content_of
from entrenar_core.measuring.results import Difference
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import Progress, default_threads, share_out

_PART_VALUES = BLOCK_VALUES << 6
_WORTH_BYTES = 1_000_000_000
"""Of less than this, one core has read half before another process has started."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Values of the pair with this number, from the first of a block up to `stop`."""

    pair: int
    start: int
    stop: int


def differences(
    first: StoredModel,
    second: StoredModel,
    pairs: Sequence[tuple[StoredTensor, StoredTensor]],
    *,
    progress: Progress | None = None,
    processes: int | None = None,
) -> list[Difference]:
    """As `difference` of every pair, one tensor of each model, in their order.

    Args:
        progress: is told of as many bytes as the tensors have.
        processes: how many work on it, this one among them; where it is not given, as many as there are cores, at most
            8, if the tensors have a gigabyte, else one.

    Raises:
        ModelError: as for `difference`.
    """
    size_bytes = sum(old.size_bytes + new.size_bytes for old, new in pairs)
    work = _Pairs(first, second, pairs)
    number = processes or (default_threads() if size_bytes >= _WORTH_BYTES else 1)
    with ExitStack() as stack:
        order = count()

        def worker() -> Callable[[_Part], int]:
            helper = stack.enter_context(_Process()) if next(order) else None  # the first thread works itself
            return lambda part: work.do(part, helper)

        share_out(work.parts(), worker, progress=progress, threads=number)
    return [work.finished(pair) for pair in range(len(pairs))]


class _Pairs:
    """Pairs of tensors, and what has been found of their parts."""

    def __init__(
        self, first: StoredModel, second: StoredModel, pairs: Sequence[tuple[StoredTensor, StoredTensor]]
    ) -> None:
        self._models, self._pairs = (first, second), pairs
        self._found: defaultdict[int, dict[int, DifferenceSums | None]] = defaultdict(dict)

    def parts(self) -> list[_Part]:
        """All of them, those of the largest tensors first: what is left for the end is short."""
        parts = (part for pair in range(len(self._pairs)) for part in self._parts_of(pair))
        return sorted(parts, key=lambda part: part.start - part.stop)

    def _parts_of(self, pair: int) -> Iterator[_Part]:
        values = self._pairs[pair][0].values
        whole = any(tensor.inline or tensor.strides is not None for tensor in self._pairs[pair])  # read as a whole
        step = max(values, 1) if whole else _PART_VALUES
        yield from (_Part(pair, start, min(start + step, values)) for start in range(0, max(values, 1), step))

    def do(self, part: _Part, helper: "_Process | None") -> int:
        """Finds the sums of a part; gives how many bytes both tensors have there."""
        old, new = self._pairs[part.pair]
        a, b = (content_of(model, tensor) for model, tensor in zip(self._models, (old, new), strict=True))
        found = None if helper is None else helper.sums(a, b, part)
        sums = sums_between(a, b, part.start, part.stop) if found is None else found.sums
        self._found[part.pair][part.start] = sums
        return (old.size_bytes + new.size_bytes) * (part.stop - part.start) // max(old.values, 1)

    def finished(self, pair: int) -> Difference:
        """What follows from all parts of a pair. Where only some are equal, their norms are still to be found."""
        content = content_of(self._models[0], self._pairs[pair][0])
        found = self._found[pair]
        if all(sums is None for sums in found.values()):
            return together(content, None)
        sums = (found[part.start] or sums_of_equal(content, part.start, part.stop) for part in self._parts_of(pair))
        return together(content, sum(sums, DifferenceSums()))


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of a process: sums, of which None says that all values are equal, or an error's message and hint."""

    sums: DifferenceSums | None = None
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Side:
    """A `Content` as it is sent: its file by where it lies and what it is called."""

    path: Path
    name: str
    tensor: StoredTensor
    start: int
    size_bytes: int
    scale: float | None

    @classmethod
    def of(cls, content: Content) -> "_Side | None":
        """None where it lies in memory."""
        source = content.source
        if not isinstance(source, FileSource):
            return None
        return cls(source.path.resolve(), source.name, content.tensor, content.start, content.size_bytes, content.scale)

    def content(self) -> Content:
        return Content(self.tensor, _opened(self.path, self.name), self.start, self.size_bytes, self.scale)


class _Process:
    """A process that finds sums."""

    def __init__(self) -> None:
        # -P: nothing of the folder that this is run in can take the place of a module
        command = [sys.executable, "-P", "-m", "entrenar_core.measuring.processes"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def sums(self, a: Content, b: Content, part: _Part) -> _Answer | None:
        """Of a part; None where it cannot be sent, or the process is gone.

        Raises:
            ModelError: as for `sums_between`.
        """
        sides = _Side.of(a), _Side.of(b)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if None in sides:
            return None
        try:
            pickle.dump((*sides, part.start, part.stop), self._process.stdin)
            self._process.stdin.flush()
            answer: _Answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        if answer.error is not None:
            raise ModelError(*answer.error)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


@cache
def _opened(path: Path, name: str) -> FileSource:
    return FileSource(path, name)


def serve(source: IO[bytes], target: IO[bytes]) -> None:
    """Answers what comes from `source`, until it ends."""
    for a, b, start, stop in _sent(source):
        try:
            answer = _Answer(sums_between(a.content(), b.content(), start, stop))
        except ModelError as error:
            answer = _Answer(error=(str(error), error.hint or ""))
        pickle.dump(answer, target)
        target.flush()


def _sent(source: IO[bytes]) -> Iterator[tuple[_Side, _Side, int, int]]:
    while True:
        try:
            yield pickle.load(source)
        except EOFError:
            return


if __name__ == "__main__":
    from entrenar_core.measuring import processes  # pickles are of the module by this name

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    processes.serve(sys.stdin.buffer, sys.stdout.buffer)
