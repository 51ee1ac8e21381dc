"""Training from a cache on a machine that has not the teacher's weights: they are neither needed nor fetched."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cached_jobs import FP32, Job, built, job, sure_models, using
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.reports import RunReport
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_distill.cli import main
from hub_server import HubServer
from tiny_jobs import Models, build_models, classification, merged, write_config
from tiny_models import tiny_llama
from watched_runs import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


def moved(file: Job, folder: Path) -> Path:
    """The teacher's folder as a copy, of which the job is."""
    shutil.copytree(file["teacher"]["model_id"], folder)
    file["teacher"] = file["teacher"] | {"model_id": str(folder)}
    return folder


def taught_by_a_small_student(sure: Models, folder: Path) -> Job:
    return job(sure, folder) | {"student": {"model_id": str(sure.small_llama)}}


def unseen(report: RunReport) -> list[str]:
    return [warning for warning in report.warnings if "weights of" in warning]


def test_a_student_learns_where_the_teachers_weights_are_not(
    sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = taught_by_a_small_student(sure, tmp_path)
    teacher = moved(file, tmp_path / "teacher")
    built(file, tmp_path / "cache")
    cached = using(file, tmp_path / "cache")
    whole, watch = run(cached)
    assert unseen(whole) == []
    (teacher / WEIGHTS).unlink()
    config = write_config(tmp_path / "job.yaml", cached)
    assert main(["validate", str(config)]) == 0
    capsys.readouterr()
    report, again = run(cached)
    assert [step.loss for step in again.steps] == [step.loss for step in watch.steps]
    assert report.teacher_scores == whole.teacher_scores
    assert report.teacher.parameters == whole.teacher.parameters
    assert report.teacher.weight_bytes is None
    assert unseen(report) == [f"the weights of {teacher} are not here, and were not compared with those of its cache"]


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"model_id": None, "init_from": {"teacher_layers": 1}}},
        {"teacher": {"cache": {"dir": "cache", "missing": "live"}}},
    ],
    ids=["made of the teacher", "read live"],
)
def test_where_the_weights_are_needed_they_are_asked_for(changes: Job, sure: Models, tmp_path: Path) -> None:
    file = taught_by_a_small_student(sure, tmp_path)
    (moved(file, tmp_path / "teacher") / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="has no weights"):
        run(merged(using(file, tmp_path / "cache"), changes))


def test_a_classifier_of_which_the_config_is_here(tmp_path: Path) -> None:
    models = build_models(tmp_path / "models")
    file = classification(models, tmp_path)
    teacher = moved(file, tmp_path / "teacher")
    built(file, tmp_path / "cache", CacheSettings())
    whole, watch = run(using(file, tmp_path / "cache"))
    (teacher / WEIGHTS).unlink()
    report, again = run(using(file, tmp_path / "cache"))
    assert [step.loss for step in again.steps] == [step.loss for step in watch.steps]
    assert report.teacher_scores == whole.teacher_scores


def test_of_the_hub_no_weights_are_fetched_and_they_are_compared_by_what_it_says(
    hub: HubServer, sure: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add("org/teacher", sure.llama)
    file: dict[str, Any] = taught_by_a_small_student(sure, tmp_path) | {"teacher": {"model_id": "org/teacher"}}
    built(file, tmp_path / "cache", FP32)
    cached = using(file, tmp_path / "cache")
    _, watch = run(cached)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere" / "hub"))
    hub.forget()
    report, again = run(cached)
    assert WEIGHTS not in hub.fetched()
    assert [step.loss for step in again.steps] == [step.loss for step in watch.steps]
    assert unseen(report) == [], "they were compared"
    assert report.teacher.weight_bytes == (sure.llama / WEIGHTS).stat().st_size
    other = tiny_llama(tmp_path / "other", seed=9)
    repository.commit({path.name: path.read_bytes() for path in other.iterdir()})
    with pytest.raises(ConfigError, match="the teacher's weights"):
        run(cached)
    assert WEIGHTS not in hub.fetched()
