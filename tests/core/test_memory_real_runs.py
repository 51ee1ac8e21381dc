"""Predictions against what the kernel saw of real processes that train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from entrenar_core.memory.predicting import predict
from memory_process import FIXED, jobs
from memory_twins import counted

PROGRAM = Path(__file__).parents[1] / "memory_process.py"
WORST_ERROR = 0.10

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


def taken_bytes(name: str) -> int:
    """By a process that trains for a step behind its first, with fixed threads and allocator."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), name],
        capture_output=True,
        text=True,
        env={**os.environ, **FIXED},
        timeout=280,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def assert_near(name: str) -> None:
    found = predict(counted(jobs()[name]))
    assert found.method in ("traced", "extrapolated")
    taken = taken_bytes(name)
    assert abs(found.peak_bytes / taken - 1) < WORST_ERROR, (found.peak_bytes, taken)


def test_a_training_takes_what_is_predicted() -> None:
    job = jobs()["llama"]
    assert 110e6 < predict(job).trace.parameters * 4 < 130e6
    assert_near("llama")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["bert", "adapters", "checkpoints", "distillation", "mixed"])
def test_so_do_other_trainings(name: str) -> None:
    assert_near(name)
