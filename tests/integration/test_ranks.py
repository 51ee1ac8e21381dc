"""Two processes under torchrun train the student that one process trains."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_jobs import build_models, language, write_config
from tiny_runs import log, losses, manifest, run, start, wait_until, weights, write_job, write_models

# 36 training rows in batches of 5: the ranks' parts are of 2 and 3 rows, and of the last row one rank has nothing.
TRAINING = {"epochs": 4, "batch_size": 5, "gradient_accumulation": 2, "eval_every": 5, "select": "best"}


def torchrun(job: Path, *arguments: str, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """`entrenar-distill run JOB …` by two processes; with `file_bytes`, no file can become longer."""
    limit = None if file_bytes is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return subprocess.run(
        [*launcher, "-m", "entrenar_distill", "run", str(job), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=limit,
    )


@pytest.mark.nightly
def test_a_checkpoint_that_one_rank_cannot_write_ends_both_with_one_error(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_models(tmp_path / "models"))
    done = torchrun(job, file_bytes=100_000)
    assert done.returncode == 1
    assert done.stderr.count("step-00000002 cannot be written") >= 1
    assert "hint: free space" in done.stderr
    assert "internal error" not in done.stderr
    assert "SIGKILL" not in done.stderr, "no rank waits for one that is gone"
    assert manifest(job)["status"] == "interrupted"


@pytest.mark.nightly
def test_two_ranks_do_not_go_on_with_the_run_of_one(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_models(tmp_path / "models"), training={"epochs": 40})
    process = start(job)
    assert wait_until(lambda: (tmp_path / "out" / "checkpoints" / "step-00000002").is_dir(), process)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    done = torchrun(job, "--resume")
    assert done.returncode == 1
    assert "was made by 1 process, and this run has 2 processes" in done.stderr
    assert "hint: resume with 1 process" in done.stderr
    assert "internal error" not in done.stderr
    assert run(job, "--resume", "--set", "training.epochs=40") == 0, log(job)


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_with_uneven_and_empty_parts_equal_one_process(tmp_path: Path) -> None:
    """Losses agree to 1e-6 of their size, weights to a hundredth of what the steps can have moved them.

    Sums over ranks round differently in the last bit. AdamW divides a gradient by its own size, so where a gradient
    is all but zero that bit decides the direction of a move of the size of the learning rate.
    """
    models = write_models(tmp_path / "models")
    one, two = (
        write_job(tmp_path / name, models, student={"dropout": 0.0}, training=TRAINING) for name in ("one", "two")
    )
    assert run(one) == 0, log(one)
    done = torchrun(two)
    assert done.returncode == 0, done.stderr
    assert (manifest(one)["environment"]["processes"], manifest(two)["environment"]["processes"]) == (1, 2)
    newest = sorted((two.parent / "out" / "checkpoints").glob("step-*"))[-1]
    assert {file.name for file in newest.glob("random-*")} == {"random-0.safetensors", "random-1.safetensors"}
    assert done.stdout.count("held-out rows") == 1, "one process reports"
    assert len(losses(one)) == 16
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    alone, together = (load_file(job.parent / "out" / "model.safetensors") for job in (one, two))
    assert alone.keys() == together.keys()
    moved = 0.003 * len(losses(one))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=0.01 * moved)


@pytest.mark.nightly
def test_two_ranks_share_packed_rows_as_one_process_takes_them(tmp_path: Path) -> None:
    """Each step has three rows of several examples: one rank takes one of them, the other two."""
    models = build_models(tmp_path / "models")
    training = {"epochs": 3, "batch_size": 3, "log_every": 1, "learning_rate": 0.001}
    jobs = []
    for name in ("one", "two"):
        job = language(models, tmp_path / name, dataset={"packing": True, "max_length": 48}, training=training)
        jobs.append(write_config(tmp_path / name / "job.json", job))
    one, two = jobs
    assert run(one) == 0, log(one)
    done = torchrun(two)
    assert done.returncode == 0, done.stderr
    assert len(losses(one)) > 5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    alone, together = (load_file(job.parent / "out" / "model.safetensors") for job in jobs)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=0.01 * 0.001 * len(losses(one)))


@pytest.mark.nightly
@pytest.mark.real_models
def test_two_ranks_equal_one_process_on_the_quickstart(tmp_path: Path) -> None:
    """Losses of two steps to 1e-6 of their size, weights to a thousandth of what the steps can have moved them."""
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    short = ["--max-steps", "2", "--no-baseline", "--set", "training.log_every=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = [sys.executable, "-m", "entrenar_distill", "run", str(config), "--output", str(one / "out"), *short]
    assert subprocess.run(alone, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode == 0
    done = torchrun(config, "--output", str(two / "out"), *short)
    assert done.returncode == 0, done.stderr
    assert manifest(two / "job")["environment"]["processes"] == 2
    assert len(losses(one / "job")) == 2
    assert losses(two / "job") == pytest.approx(losses(one / "job"), rel=1e-6)
    before, after = (load_file(folder / "out" / "model.safetensors") for folder in (one, two))
    rate = 5e-4 * (1 + 2) / 50  # of the two steps of the warm-up
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0.1 * rate)


@pytest.mark.nightly
def test_the_diagnostics_of_the_first_rank_change_nothing_for_both(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    training = {"epochs": 2, "batch_size": 5, "gradient_accumulation": 2}
    plain = write_job(tmp_path / "plain", models, training=training)
    looked = write_job(tmp_path / "looked", models, training=training | {"diagnose_every": 3})
    for job in (plain, looked):
        done = torchrun(job)
        assert done.returncode == 0, done.stderr
    assert losses(looked) == losses(plain)
    assert weights(looked) == weights(plain)
    lines = map(json.loads, (looked.parent / "out" / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["diagnostics"] for line in lines if "diagnostics" in line}
    assert list(found) == [1, *range(3, max(found) + 1, 3)]
    assert all(look["kl"] > 0 and min(look["gradient_norms"].values()) > 0 for look in found.values())
