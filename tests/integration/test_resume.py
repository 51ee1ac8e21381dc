"""A run that is killed, stopped or interrupted anywhere, and resumed, ends with the bits of one that never stopped."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import log, losses, manifest, run, start, wait_until, weights, write_job, write_models

pytestmark = pytest.mark.slow

# Everything that has a state: dropout, evaluations, the best weights, patience, a second training, schedules, and what
# trains beside the student.
EVERYTHING: dict[str, Any] = {
    "distillation": {
        "temperature": {"schedule": "cosine", "start": 4.0, "end": 1.0, "warmup_steps": 2, "warmup_from": 1.0},
        "alpha": {"schedule": "linear", "start": 0.9, "end": 0.5},
        "progressive": {"weight": {"schedule": "exponential", "start": 1.0, "end": 0.1}},
        "attention": {"head_weighting": "learned"},
    },
    "training": {"epochs": 3, "eval_every": 3, "select": "best", "early_stopping": {"patience": 4}, "baseline": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def unbroken(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A job that was not stopped, and how long it took in seconds."""
    job = write_job(tmp_path_factory.mktemp("unbroken"), models, **EVERYTHING)
    assert run(job) == 0, log(job)  # the first process waits for the libraries
    began = time.perf_counter()
    assert run(job, "--force") == 0, log(job)
    return job, time.perf_counter() - began


def kill_when(job: Path, happened: Callable[[], object]) -> bool:
    """Resumes the job and kills it once something has happened; whether that came before its end."""
    process = start(job, "--resume")
    if wait_until(happened, process):
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), log(job)
    return process.exitcode != 0


def after(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() > until


def assert_same(job: Path, reference: Path) -> None:
    assert manifest(job)["status"] == "complete"
    assert weights(job) == weights(reference)
    assert losses(job) == losses(reference)
    last = sorted((job.parent / "out" / "baseline" / "checkpoints").glob("step-*"))[-1]
    twin = reference.parent / "out" / "baseline" / "checkpoints" / last.name
    assert (last / "model.safetensors").read_bytes() == (twin / "model.safetensors").read_bytes()
    assert [path.name for path in (job.parent / "out").rglob(".*") if path.name != ".lock"] == []


def test_kills_while_training_writing_a_checkpoint_and_writing_the_result_leave_no_trace(
    models: Path, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    job = write_job(tmp_path, models, **EVERYTHING)
    out = tmp_path / "out"
    assert kill_when(job, lambda: (out / "checkpoints" / "step-00000004").is_dir())
    assert kill_when(job, lambda: list((out / "baseline" / "checkpoints").glob(".step-*.partial")))
    assert kill_when(job, lambda: list(out.glob(".*result*")))
    assert run(job, "--resume") == 0, log(job)
    assert_same(job, unbroken[0])


@pytest.mark.long
@pytest.mark.parametrize("wanted", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_at_random_moments_leave_no_trace(
    models: Path, unbroken: tuple[Path, float], tmp_path: Path, wanted: int
) -> None:
    chance, kills, complete = random.Random(wanted), 0, 0
    while kills < wanted or complete == 0:
        job = write_job(tmp_path / str(complete), models, **EVERYTHING)
        while kills < wanted and kill_when(job, after(chance.uniform(0.2, 1.0) * unbroken[1])):
            kills += 1
        assert run(job, "--resume") == 0, log(job)
        assert_same(job, unbroken[0])
        complete += 1


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.nightly)],
)
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_with_the_same_bits(
    models: Path, unbroken: tuple[Path, float], tmp_path: Path, number: signal.Signals
) -> None:
    job = write_job(tmp_path, models, **EVERYTHING)
    process = start(job)
    assert wait_until(lambda: (tmp_path / "out" / "checkpoints" / "step-00000004").is_dir(), process)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == 130, log(job)
    assert "--resume" in log(job)
    assert "and saved" in log(job)
    assert "Traceback" not in log(job)
    assert manifest(job)["status"] == "interrupted"
    newest = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))[-1]
    assert f"stopped after step {int(newest.name.removeprefix('step-'))} of" in log(job)
    assert run(job, "--resume") == 0, log(job)
    assert_same(job, unbroken[0])
