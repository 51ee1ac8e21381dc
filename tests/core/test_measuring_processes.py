"""Differences that several processes find: the same as one finds, whatever becomes of the others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entrenar_core.errors import ModelError
from entrenar_core.measuring import difference, processes
from entrenar_core.measuring.processes import differences
from entrenar_core.stored_model import StoredModel
from stored_tensors import Part, floats, model_of

SIZE = (1 << 20) + 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PART_VALUES", processes.BLOCK_VALUES)


def parts(seed: int) -> dict[str, Part]:
    rng, common = np.random.default_rng(seed), np.random.default_rng(9)
    half = common.standard_normal(SIZE)
    half[: SIZE // 2] += seed
    return {
        "moved": floats(rng.standard_normal((5, SIZE // 5))),
        "half moved": floats(half, "BF16"),
        "still": floats(common.standard_normal(SIZE)),
        "none": floats(np.empty((0, 3))),
        "one": floats(np.array(float(seed))),
        "turned": Part("F32", (300, 200), rng.standard_normal(60_000).astype("<f4").tobytes(), strides=(1, 300)),
        "inline": Part("F32", (2,), np.array([seed, 1], "<f4").tobytes(), inline=True),
    }


@pytest.fixture
def models(tmp_path: Path) -> Iterator[tuple[StoredModel, StoredModel]]:
    with model_of(tmp_path / "a", parts(0)) as first, model_of(tmp_path / "b", parts(1)) as second:
        yield first, second


@pytest.mark.parametrize("number", [1, 2, 3])
def test_processes_find_what_one_finds(number: int, models: tuple[StoredModel, StoredModel]) -> None:
    first, second = models
    pairs = [(tensor, second.tensors[name]) for name, tensor in first.tensors.items()]
    told: list[int] = []
    found = differences(first, second, pairs, progress=told.append, processes=number)
    for (old, new), one in zip(pairs, found, strict=True):
        alone = difference(first, old, second, new)
        for figure in ("identical", "values", "differing", "max_abs", "largest_at"):
            assert getattr(one, figure) == getattr(alone, figure), old.name
        for figure in ("mean_abs", "rms", "distance", "norm", "cosine_distance"):
            expected = getattr(alone, figure)
            near = expected if expected is None else pytest.approx(expected, rel=1e-9)
            assert getattr(one, figure) == near, old.name
    assert [one.identical for one in found] == [name in ("still", "none") for name in first.tensors]
    sizes = sum(old.size_bytes + new.size_bytes for old, new in pairs)
    assert sizes - 4 * len(pairs) * 5 <= sum(told) <= sizes


def test_what_is_wrong_is_told_by_all_of_them(models: tuple[StoredModel, StoredModel], tmp_path: Path) -> None:
    first, second = models
    pairs = [(tensor, second.tensors[name]) for name, tensor in first.tensors.items() if not tensor.inline]
    os.truncate(tmp_path / "b", 10)
    with pytest.raises(ModelError, match="too early: it has 10 bytes"):
        differences(first, second, pairs, processes=3)


def test_a_process_that_is_gone_is_done_without(
    models: tuple[StoredModel, StoredModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = processes._Process.__enter__

    def killed(process: processes._Process) -> processes._Process:
        os.kill(process._process.pid, signal.SIGKILL)
        return begun(process)

    monkeypatch.setattr(processes._Process, "__enter__", killed)
    first, second = models
    pairs = [(first.tensors["moved"], second.tensors["moved"])]
    (found,) = differences(first, second, pairs, processes=2)
    assert found.max_abs == difference(first, *pairs[0][:1], second, pairs[0][1]).max_abs


def test_nothing_of_the_folder_is_run(tmp_path: Path) -> None:
    """A model's folder may hold what is called like a module."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('run')")
    program = (
        "import sys; sys.path[:] = [path for path in sys.path if path]\n"
        "from entrenar_core.measuring.processes import _Process\n"
        "with _Process() as process: assert process._process.poll() is None\n"
        "process = _Process(); process._process.communicate(); assert process._process.returncode == 0"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
