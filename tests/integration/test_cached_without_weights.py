"""Training from a cache on a machine that has not the teacher's weights: they are neither needed nor fetched."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cached_jobs import FP32, Job, built, forward_passes_of_layers, job, sure_models, using
from entrenar_core import Callback, distill, parse_config
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.reports import RunReport
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.training.callbacks import StepMetrics
from entrenar_distill.cli import main
from hub_server import HubServer
from tiny_jobs import Models, build_models, classification, merged, write_config
from tiny_models import tiny_bert, tiny_llama
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


def away(teacher: Path) -> str:
    return f"the weights of {teacher} are not here, and were not compared with those of its cache"


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
    assert unseen(report) == [away(teacher)]


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


def test_of_several_teachers_only_the_one_that_is_kept_is_loaded(sure: Models, tmp_path: Path) -> None:
    """And a student that is made of layers of the first takes them from there alone."""
    file = job(sure, tmp_path)
    folders = [shutil.copytree(sure.llama, tmp_path / name) for name in ("first", "second")]
    file["teacher"] = {"members": [{"model_id": str(folder)} for folder in folders]}
    whole = run(file)[1]
    (folders[0] / WEIGHTS).rename(tmp_path / "aside")
    built(file, tmp_path / "cache", CacheSettings(precision="float32", member=1))
    (tmp_path / "aside").rename(folders[0] / WEIGHTS)
    (folders[1] / WEIGHTS).unlink()
    file["teacher"]["members"][1]["cache"] = str(tmp_path / "cache")
    report, watch = run(file)
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in whole.steps], rel=1e-5)
    assert unseen(report) == [
        f"the weights of {folders[1]} are not here, and were not compared with those of its cache"
    ]


def test_a_run_goes_on_when_weights_come_back(sure: Models, tmp_path: Path) -> None:
    file = taught_by_a_small_student(sure, tmp_path)
    teacher = moved(file, tmp_path / "teacher")
    built(file, tmp_path / "cache")
    (teacher / WEIGHTS).rename(tmp_path / "aside")
    cached = using(file, tmp_path / "cache") | {"output": {"dir": str(tmp_path / "out"), "checkpoint_every": 2}}

    class StopAfter(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            if metrics.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(parse_config(cached), callbacks=[StopAfter()])
    (tmp_path / "aside").rename(teacher / WEIGHTS)
    assert distill(parse_config(cached), resume=True).steps > 3


def test_diagnose_looks_at_the_teacher_itself(sure: Models, tmp_path: Path) -> None:
    file = taught_by_a_small_student(sure, tmp_path)
    built(file, tmp_path / "cache")
    config = write_config(tmp_path / "job.yaml", using(file, tmp_path / "cache"))
    with forward_passes_of_layers(2) as seen:
        assert main(["diagnose", str(config)]) == 0
    assert seen


def test_a_classifier_on_the_hub_is_not_taken_for_one_of_two_classes(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which validate sees the config alone."""
    hub.add("org/five", tiny_bert(tmp_path / "five", num_labels=5))
    models = build_models(tmp_path / "models")
    file = classification(models, tmp_path, distillation={"top_k": 3}) | {"teacher": {"model_id": "org/five"}}
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file))]) == 0, capsys.readouterr().err


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
