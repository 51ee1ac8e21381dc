"""Sharing blocks out to threads: each once, stopped by the first error and by Ctrl-C, with no thread left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.measuring.reading import InMemory, content_of, default_threads, share_out
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from stored_tensors import Part, floats, model_of


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once_and_told_of(threads: int) -> None:
    done: Counter[int] = Counter()
    told: list[int] = []

    def worker() -> Callable[[int], int]:
        def work(job: int) -> int:
            done[job] += 1
            return job

        return work

    share_out(range(1000), worker, progress=told.append, threads=threads)
    assert done == Counter(range(1000))
    assert sum(told) == sum(range(1000))


def test_every_thread_has_a_worker_of_its_own() -> None:
    together, made = threading.Barrier(3, timeout=10), []

    def worker() -> Callable[[int], int]:
        made.append(threading.get_ident())
        return lambda job: together.wait() * 0 + job

    share_out(range(3), worker, threads=3)
    assert len(set(made)) == 3


def test_one_job_needs_no_thread() -> None:
    ran: list[int] = []

    def work(job: int) -> int:
        ran.append(threading.get_ident())
        return job

    share_out([0], lambda: work, threads=4)
    assert ran == [threading.get_ident()]


def test_as_many_threads_as_cores() -> None:
    assert 1 <= default_threads() <= min(os.cpu_count() or 1, 8)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_stops_all(threads: int) -> None:
    done: list[int] = []

    def work(job: int) -> int:
        if job == 20:
            raise ModelError("the disk is gone")
        time.sleep(0.001)
        done.append(job)
        return 1

    with pytest.raises(ModelError, match="the disk is gone"):
        share_out(range(100_000), lambda: work, threads=threads)
    assert len(done) < 10_000


def test_an_error_in_finding_jobs_comes_out() -> None:
    def jobs() -> Iterator[int]:
        yield from range(10)
        raise ModelError("no more to be found")

    with pytest.raises(ModelError, match="no more"):
        share_out(jobs(), lambda: lambda job: job, threads=2)


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_stops_all(threads: int) -> None:
    done: list[int] = []

    def work(job: int) -> int:
        time.sleep(0.001)
        if job == 50:
            os.kill(os.getpid(), signal.SIGINT)
        done.append(job)
        return 1

    with pytest.raises(KeyboardInterrupt):
        share_out(range(100_000), lambda: work, threads=threads)
    assert len(done) < 10_000


def test_an_error_in_showing_progress_stops_all() -> None:
    def progress(_: int) -> None:
        raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="terminal"):
        share_out(iter(range(1000)), lambda: lambda job: job, progress=progress, threads=2)


def test_a_tensor_that_lies_in_another_order_is_read_row_by_row(tmp_path: Path) -> None:
    base = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    views = {"permuted": base.permute(2, 0, 1), "sliced": base[:, ::2, 1:3], "plain": base}
    torch.save(views, tmp_path / "model.bin")
    with open_model(PathReference(str(tmp_path / "model.bin")), allow_pickle=True) as model:
        assert model.tensors["permuted"].strides is not None
        for name, view in views.items():
            content = content_of(model, model.tensors[name])
            raw = content.bytes_at(0, np.empty(content.size_bytes, np.uint8))
            assert content.decode(0, raw).tolist() == view.flatten().tolist()


def test_a_tensor_in_a_header_is_read_from_it(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    with model_of(tmp_path / "x", {"held": Part("F32", (2, 3), values.tobytes(), inline=True)}) as model:
        content = content_of(model, model.tensors["held"])
        assert isinstance(content.source, InMemory)
        raw = content.bytes_at(8, np.empty(8, np.uint8))
        assert content.decode(8, raw).tolist() == [2, 3]
        content.source.close()


def test_values_beyond_the_last_are_left_out_of_its_block(tmp_path: Path) -> None:
    raw = bytes(range(36))  # two blocks, of which three values are of a third dozen
    with model_of(tmp_path / "x", {"t": Part("APR_Q4", (5, 7), raw)}) as model:
        content = content_of(model, model.tensors["t"])
        assert len(content.decode(18, content.bytes_at(18, np.empty(18, np.uint8)))) == 3
        assert content.cut(32) == [(0, 18), (18, 18)]


def test_a_scale_in_front_is_no_value(tmp_path: Path) -> None:
    raw = np.float32(0.25).tobytes() + np.arange(5, dtype=np.int8).tobytes()
    with model_of(tmp_path / "x", {"t": Part("APR_Q8", (5,), raw)}) as model:
        content = content_of(model, model.tensors["t"])
        found = content.decode(2, content.bytes_at(2, np.empty(3, np.uint8)))
        assert (content.size_bytes, content.scale, found.tolist()) == (5, 0.25, [0.5, 0.75, 1])


def test_a_file_that_is_cut_short_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with model_of(path, {"t": floats(np.ones(100))}) as model:
        content = content_of(model, model.tensors["t"])
        path.write_bytes(bytes(100))
        with pytest.raises(ModelError, match="ends"):
            content.bytes_at(0, np.empty(400, np.uint8))


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    part = Part(Dtype("ggml type 99", "quantised", 1, 0), (4,), b"abcd")
    with (
        model_of(tmp_path / "x", {"odd": part}) as model,
        pytest.raises(ModelError, match="tensor odd is of the type ggml type 99"),
    ):
        content_of(model, model.tensors["odd"])


def test_what_shows_figures_needs_no_numpy() -> None:
    script = "import sys, entrenar_core.measuring; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
