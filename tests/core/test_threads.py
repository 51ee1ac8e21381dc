"""Sharing jobs out to threads: each once, stopped by the first error and by Ctrl-C, with no thread left behind."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from entrenar_core.errors import ModelError
from entrenar_core.threads import default_threads, share_out


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
