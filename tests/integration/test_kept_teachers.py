"""Fitted teachers are shared by all runs of a user: one run fits, others wait; what cannot be used or kept is told."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.forkserver import _forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.config import load_config
from entrenar_core.errors import EntrenarError, ModelError, OutputError
from entrenar_core.training.callbacks import Callback, StepMetrics
from tiny_jobs import Models, build_models, classification
from tiny_models import tiny_bert
from tiny_runs import log, manifest, run, start, wait_until, weights, write_job, write_models

pytestmark = pytest.mark.slow

PROBE = {"method": "probe", "l2": 0.1}
HEAD = {"method": "head", "learning_rate": 0.05, "epochs": 2, "batch_size": 8}
FULL = {"method": "full", "learning_rate": 0.01, "epochs": 20, "batch_size": 4}
WAITING = "waiting for another run that fits the same teacher"
REUSING = "reusing the teacher fitted before"
HINT = "set ENTRENAR_HOME to a folder that can be written"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`ENTRENAR_HOME` of this process, and of those it starts: theirs is that of the server that forks them."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTRENAR_HOME", str(folder))
        _forkserver._stop()
        yield folder
    _forkserver._stop()


@pytest.fixture(autouse=True)
def home(shared: Path) -> Path:
    """The same, empty for every test."""
    shutil.rmtree(shared)
    shared.mkdir()
    return shared


class Watcher(Callback):
    """Remembers the notes of a run, the steps of its teacher, and where that one began."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.began: list[int] = []
        self.steps: list[int] = []
        self.phase = ""

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        self.phase = name
        if name == "teacher" and total_steps:
            self.began.append(step)

    def on_step(self, metrics: StepMetrics) -> None:
        if self.phase == "teacher":
            self.steps.append(metrics.step)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def job_of(models: Models, folder: Path, finetune: dict[str, Any], **teacher: Any) -> dict[str, Any]:
    model_id = teacher.pop("model_id", str(models.classifier))
    section = {"model_id": model_id, "finetune": finetune, **teacher}
    return classification(models, folder, teacher=section, training={"max_steps": 1})


def again(job: dict[str, Any]) -> tuple[RunReport, Watcher]:
    """Runs a job as a new process would, over what an earlier run of it left."""
    torch.manual_seed(0)  # the dropout of a fit goes on from where the generator is
    watcher = Watcher()
    return distill(parse_config(job), force=True, callbacks=[watcher]), watcher


def kept_model(home: Path) -> Path:
    (folder,) = (home / "teachers").glob("*/model")
    return folder


def begin_fit(job: Path, home: Path) -> BaseProcess:
    """Starts a run; its first steps of fitting are done when this returns."""
    process = start(job)
    assert wait_until(lambda: any(file.stat().st_size for file in home.glob("teachers/*/work/metrics.jsonl")), process)
    return process


@pytest.mark.long
def test_of_two_runs_that_fit_the_same_teacher_the_second_waits_and_reuses_it(
    pair: Path, tmp_path: Path, home: Path
) -> None:
    one, two = (write_job(tmp_path / name, pair, teacher={"finetune": FULL}) for name in ("one", "two"))
    first = begin_fit(one, home)
    os.kill(first.pid or 0, signal.SIGSTOP)
    second = start(two)
    try:
        assert wait_until(lambda: WAITING in log(two), second), log(two)
    finally:
        os.kill(first.pid or 0, signal.SIGCONT)
    first.join()
    second.join()
    assert first.exitcode == 0, log(one)
    assert second.exitcode == 0, log(two)
    assert log(two).count(WAITING) == 1
    assert REUSING in log(two)
    assert WAITING not in log(one)
    assert REUSING not in log(one)
    assert weights(one) == weights(two)
    assert list(home.glob("teachers/*/work")) == []


def test_a_run_that_is_killed_while_it_fits_lets_go_and_the_next_ends_with_the_same_bits(
    pair: Path, tmp_path: Path, home: Path
) -> None:
    unbroken, job = (write_job(tmp_path / name, pair, teacher={"finetune": FULL}) for name in ("unbroken", "job"))
    assert run(unbroken) == 0, log(unbroken)
    expected = (kept_model(home) / "model.safetensors").read_bytes()
    shutil.rmtree(home / "teachers")
    process = begin_fit(job, home)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert run(job, "--resume") == 0, log(job)
    assert WAITING not in log(job)
    assert (kept_model(home) / "model.safetensors").read_bytes() == expected
    assert weights(job) == weights(unbroken)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_next_run_goes_on_with_the_teacher_that_a_stopped_one_left_half_fitted(
    pair: Path, tmp_path: Path, home: Path, number: signal.Signals, status: int
) -> None:
    one, two = (write_job(tmp_path / name, pair, teacher={"finetune": FULL}) for name in ("one", "two"))
    process = start(one)
    assert wait_until(lambda: list(home.glob("teachers/*/work/checkpoints/step-*")), process), log(one)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == status, log(one)
    newest = max(home.glob("teachers/*/work/checkpoints/step-*"))
    step = int(newest.name.removeprefix("step-"))
    watcher = Watcher()
    distill(load_config(two), callbacks=[watcher])
    assert watcher.began == [step]
    assert watcher.steps[0] == step + 1
    assert REUSING not in watcher.notes


def test_a_run_that_waits_can_be_stopped(pair: Path, tmp_path: Path, home: Path) -> None:
    job = write_job(tmp_path, pair, teacher={"finetune": HEAD})
    assert run(job) == 0, log(job)
    (lock,) = home.glob("teachers/*.lock")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = start(job, "--force")
        assert wait_until(lambda: WAITING in log(job), process)
        os.kill(process.pid or 0, signal.SIGINT)
        process.join()
    assert process.exitcode == 130, log(job)
    assert "stopped while another run fits the same teacher" in log(job)
    assert "give the same command again; the earlier run" in log(job)
    assert manifest(job)["status"] == "complete", "it is not replaced before its successor begins"


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 5)


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "model.safetensors", metadata={"format": "pt"})


def drop_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def put_a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        cut_header,
        drop_weights,
        *(
            pytest.param(damage, marks=pytest.mark.nightly)
            for damage in (cut_weights, drop_config, cut_config, drop_a_tensor, drop_all, put_a_file_in_its_place)
        ),
    ],
)
def test_a_damaged_kept_teacher_is_made_again(models: Models, tmp_path: Path, home: Path, damage: Any) -> None:
    job = job_of(models, tmp_path, HEAD)
    first, _ = again(job)
    sound = {file.name: file.read_bytes() for file in kept_model(home).iterdir()}
    damage(kept_model(home))
    second, watcher = again(job)
    assert watcher.steps, "it was not fitted again"
    assert REUSING not in watcher.notes
    assert second.teacher_scores == first.teacher_scores
    assert {file.name: file.read_bytes() for file in kept_model(home).iterdir()} == sound
    assert REUSING in again(job)[1].notes


def test_a_damaged_kept_probe_is_made_again(models: Models, tmp_path: Path, home: Path) -> None:
    job = job_of(models, tmp_path, PROBE)
    first, _ = again(job)
    (file,) = home.glob("teachers/*.safetensors")
    sound = load(file.read_bytes())  # not the bytes themselves: safetensors writes its metadata in any order
    file.write_bytes(file.read_bytes()[:-20])
    second, watcher = again(job)
    assert watcher.notes == ["fitted a probe to the labelled rows"]
    assert all(torch.equal(tensor, sound[name]) for name, tensor in load_file(file).items())
    assert second.teacher_scores == first.teacher_scores


CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "entrenar_kept"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_kept_teacher_with_code_of_its_own_is_reused_when_trusted_and_left_alone_when_not(
    models: Models, tmp_path: Path, home: Path
) -> None:
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    folder = tiny_bert(tmp_path / "own", num_labels=2, auto_map=names)
    (folder / "own.py").write_text(CODE)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "entrenar_kept"'))
    job = job_of(models, tmp_path, HEAD, model_id=str(folder), trust_remote_code=True)
    job["student"] = {"model_id": str(models.small_classifier)}
    first, _ = again(job)
    sound = {file.name: file.read_bytes() for file in kept_model(home).iterdir() if file.is_file()}
    job["teacher"]["trust_remote_code"] = False
    with pytest.raises(EntrenarError) as raised:
        again(job)
    assert "trust_remote_code" in f"{raised.value.message} {raised.value.hint}"
    job["teacher"]["trust_remote_code"] = True
    second, watcher = again(job)
    assert watcher.notes == [REUSING]
    assert second.teacher_scores == first.teacher_scores
    assert {file.name: file.read_bytes() for file in kept_model(home).iterdir() if file.is_file()} == sound


def broken_teacher(folder: Path) -> str:
    """A model whose embeddings are no numbers: reading a text with it is an error of its own."""
    teacher = tiny_bert(folder, num_labels=2)
    file = teacher / "model.safetensors"
    nothing = {name: tensor * float("nan") for name, tensor in load_file(file).items()}
    save_file(nothing, file, metadata={"format": "pt"})
    return str(teacher)


@pytest.mark.parametrize("finetune", [PROBE, HEAD], ids=["probe", "head"])
@pytest.mark.parametrize("place", ["/proc/nope", "a file", "below a file"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetune: dict[str, Any], place: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    elsewhere = {"/proc/nope": Path(place), "a file": file, "below a file": file / "deep"}[place]
    monkeypatch.setenv("ENTRENAR_HOME", str(elsewhere))
    job = job_of(models, tmp_path, finetune, model_id=broken_teacher(tmp_path / "broken"))
    with pytest.raises(OutputError) as raised:
        again(job)
    assert f"{elsewhere / 'teachers'} cannot be written" in raised.value.message
    assert raised.value.hint == HINT
    assert file.read_text() == "mine"


def test_a_broken_teacher_is_told_when_its_probe_can_be_kept(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="embeddings are not all finite"):
        again(job_of(models, tmp_path, PROBE, model_id=broken_teacher(tmp_path / "broken")))


def test_a_full_disk_while_a_teacher_is_fitted_says_how_to_keep_it_elsewhere(
    pair: Path, tmp_path: Path, home: Path
) -> None:
    job = write_job(tmp_path, pair, teacher={"finetune": FULL})
    assert run(job, file_bytes=30_000) == 1, log(job)  # the data set's files fit, the teacher's do not
    assert f"{home / 'teachers'}" in log(job)
    assert "File too large" in log(job)
    assert f"hint: {HINT}" in log(job)
    assert "Traceback" not in log(job)
    assert list(home.rglob("*.partial")) + list(home.glob("teachers/*/model")) == []


def test_a_probe_that_cannot_be_kept_says_how_to_keep_it_elsewhere(models: Models, tmp_path: Path, home: Path) -> None:
    job = job_of(models, tmp_path, PROBE)
    again(job)
    (file,) = home.glob("teachers/*.safetensors")
    file.unlink()
    file.mkdir()
    with pytest.raises(OutputError, match="cannot be written: Is a directory") as raised:
        again(job)
    assert str(file) in raised.value.message
    assert raised.value.hint == HINT
    assert list(home.glob("teachers/.*")) == []


def two_ranks(job: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    return subprocess.run(
        [sys.executable, *torchrun, "-m", "entrenar_distill", "run", str(job), "--force"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.nightly
def test_two_ranks_do_what_the_first_finds(pair: Path, tmp_path: Path, home: Path) -> None:
    job = write_job(tmp_path, pair, teacher={"finetune": HEAD}, training={"max_steps": 2})
    assert run(job) == 0, log(job)
    fitted = two_ranks(job)
    assert fitted.returncode == 0, fitted.stderr
    assert REUSING not in fitted.stderr, "two processes draw other dropout than one: theirs is another teacher"
    cut_weights(max((home / "teachers").glob("*/model"), key=lambda folder: folder.stat().st_mtime))
    again = two_ranks(job)
    assert again.returncode == 0, again.stderr
    assert REUSING not in again.stderr
    reused = two_ranks(job)
    assert reused.returncode == 0, reused.stderr
    assert REUSING in reused.stderr


@pytest.mark.nightly
def test_two_ranks_end_together_when_nothing_can_be_kept(pair: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    job = write_job(tmp_path, pair, teacher={"finetune": PROBE}, training={"max_steps": 2})
    done = two_ranks(job, ENTRENAR_HOME=str(file))
    assert done.returncode == 1
    assert HINT in " ".join(done.stderr.split())
    assert "internal error" not in done.stderr
