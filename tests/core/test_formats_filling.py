"""A file filled by several threads: what is copied, computed in parts and given in chunks, each at its place."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from entrenar_core.errors import ModelError
from entrenar_core.formats import filling
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.filling import Placed, fill
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing, Part, Put

FULL = Path("/dev/full")
CONTENT = random.Random(0).randbytes(3_000)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_PIECE_BYTES", 64)
    monkeypatch.setattr(filling, "PIPE_BYTES", 32)
    monkeypatch.setattr(filling, "_MUCH_BYTES", 1)


def outgoing(start: int, stop: int, **ways: Any) -> Outgoing:
    """Bytes of the content as a tensor, which may be had in these ways only."""
    chunks = ways.pop("chunks", lambda: pytest.fail("there is a faster way"))
    return Outgoing(f"{start}", DTYPES["U8"], (stop - start,), chunks, **ways)


def parts(start: int, stop: int, step: int, on: Callable[[int], None] = lambda _: None) -> Iterator[Part]:
    def do(at: int, put: Put) -> None:
        on(at)
        room = bytearray(CONTENT[at : min(at + step, stop)])

        def free() -> None:  # what is written over before it is put would be found
            room[:] = bytes(len(room))

        put(at - start, memoryview(room), free)

    for at in range(start, stop, step):
        yield Part(min(step, stop - at), partial(do, at))


def written(path: Path, tensors: list[Outgoing]) -> bytes:
    placed, at = [], 0
    for tensor in tensors:
        placed.append(Placed((tensor,), at))
        at += tensor.size_bytes
    with path.open("wb", buffering=0) as file:
        fill(file.fileno(), placed)
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(20))
def test_all_ways_together_give_the_same_bytes(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    (tmp_path / "in").write_bytes(CONTENT)
    cuts = sorted({0, len(CONTENT), *drawn.sample(range(len(CONTENT)), 12)})
    told: list[int] = []
    with FileSource(tmp_path / "in") as source:
        tensors = []
        for start, stop in pairwise(cuts):
            way = drawn.choice(["chunks", "origin", "parts"])
            ways = {
                "chunks": {"chunks": lambda start=start, stop=stop: [CONTENT[start:stop]]},
                "origin": {"origin": (source, start), "tell": told.append},
                "parts": {"parts": partial(parts, start, stop, drawn.randint(1, 90)), "tell": told.append},
            }
            tensors.append(outgoing(start, stop, **ways[way]))
        assert written(tmp_path / "out", tensors) == CONTENT
    assert sum(told) == sum(tensor.size_bytes for tensor in tensors if tensor.tell is not None)


def test_others_compute_while_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks wait for the thread that is writing, but not more than are allowed."""
    monkeypatch.setattr(filling, "default_threads", lambda: 3)
    computed: set[int] = set()
    while_writing: list[int] = []
    slow = threading.Lock()

    def pwrite(file: int, block: memoryview, at: int, real: Callable[[int, memoryview, int], int] = os.pwrite) -> int:
        assert slow.acquire(blocking=False), "two threads write at once"
        before = len(computed)
        time.sleep(0.002)
        while_writing.append(len(computed) - before)
        slow.release()
        return real(file, block, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    tensor = outgoing(0, len(CONTENT), parts=lambda: parts(0, len(CONTENT), 10, computed.add))
    assert written(tmp_path / "out", [tensor]) == CONTENT
    assert 0 < max(while_writing) <= filling._MOST_WAITING + 3


@pytest.mark.parametrize("failing", [0, 1_500, 2_990])
def test_what_fails_in_a_part_comes_out(tmp_path: Path, failing: int) -> None:
    def on(at: int) -> None:
        if at == failing:
            raise ModelError("not finite")

    with pytest.raises(ModelError, match="not finite"):
        written(tmp_path / "out", [outgoing(0, 3_000, parts=lambda: parts(0, 3_000, 10, on))])


@pytest.mark.skipif(not FULL.exists(), reason="the system has no full device")
def test_a_full_disk_is_an_error() -> None:
    tensor = outgoing(0, 3_000, parts=lambda: parts(0, 3_000, 100))
    with FULL.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill(file.fileno(), [Placed((tensor,), 0)])
