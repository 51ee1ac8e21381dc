"""Runs that cannot go on: one clear error, status 1 or 2, nothing half-written, and the last good checkpoint kept."""

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tiny_runs import log, manifest, run, start, wait_until, weights, write_job, write_models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def hidden(out: Path) -> list[str]:
    """What a write that failed would have left."""
    return [path.name for path in out.rglob(".*") if path.name != ".lock"]


def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(models: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, models)
    out = tmp_path / "out"
    assert run(job, file_bytes=100_000) == 1  # the student's weights fit, its optimiser's do not
    assert "step-00000002 cannot be written: " in log(job)
    assert "File too large" in log(job)
    assert "hint: free space" in log(job)
    assert "Traceback" not in log(job)
    assert hidden(out) == []
    assert list((out / "checkpoints").iterdir()) == []
    assert manifest(job)["status"] == "interrupted"
    assert not (out / "model.safetensors").exists()
    assert run(job, "--resume") == 0, log(job)
    complete = weights(job)
    assert run(job, "--resume", "--json") == 0
    assert '"retention"' in log(job), "a complete run gives its report again"
    assert weights(job) == complete
    assert run(job) == 2
    assert "holds a complete run" in log(job)


def test_a_loss_that_is_not_a_number_names_step_and_rows_and_keeps_the_last_checkpoint(
    models: Path, tmp_path: Path
) -> None:
    changes = {"learning_rate": 1e30, "schedule": "constant", "weight_decay": 0.0}
    job = write_job(tmp_path, models, training=changes, output={"checkpoint_every": 1, "keep": 1})
    assert run(job) == 1
    saved = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0].startswith("step-")
    step = int(saved[0].removeprefix("step-")) + 1
    assert f" at step {step}, in the batch of rows " in log(job)
    assert saved[0] in log(job)
    assert "training.learning_rate" in log(job)
    assert "Traceback" not in log(job)
    assert hidden(tmp_path / "out") == []
    assert not (tmp_path / "out" / "model.safetensors").exists()
    kept = load_file(tmp_path / "out" / "checkpoints" / saved[0] / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_student_that_says_nan_at_the_end_is_no_result(models: Path, tmp_path: Path) -> None:
    changes = {"learning_rate": 1e30, "schedule": "constant", "weight_decay": 0.0, "max_steps": 1}
    job = write_job(tmp_path, models, training=changes)
    assert run(job) == 1
    assert "the student's logits after step 1 are not all finite numbers" in log(job)
    assert "hint: lower `training.learning_rate`" in log(job)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert manifest(job)["status"] == "interrupted"


def test_a_teacher_that_says_nan_is_named_before_the_first_step(models: Path, tmp_path: Path) -> None:
    broken = write_models(tmp_path / "models")
    file = broken / "teacher" / "model.safetensors"
    save_file(
        {name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    job = write_job(tmp_path, broken)
    assert run(job) == 1
    assert "the logits of the teacher" in log(job)
    assert "are not all finite numbers" in log(job)
    assert "teacher.dtype: float32" in log(job)
    assert "Traceback" not in log(job)


def test_a_folder_in_use_and_a_run_of_other_settings_are_refused(models: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, models, training={"epochs": 40})
    first = start(job)
    assert wait_until(lambda: (tmp_path / "out" / "checkpoints" / "step-00000002").is_dir(), first)
    assert run(job, "--resume") == 2
    assert "is in use by another run" in log(job)
    assert first.is_alive(), "the run that holds the folder goes on"
    assert manifest(job)["status"] == "running"
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    assert run(job, "--resume", "--set", "training.learning_rate=0.5") == 2
    assert "`training.learning_rate` (0.003 → 0.5)" in log(job)
    newest = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    assert run(job, "--resume") == 1
    assert f"{newest} is damaged" in log(job)
    assert "Traceback" not in log(job)
