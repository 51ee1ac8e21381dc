"""The settings that choose models and what they learn: each changes what happens."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from entrenar_core import RunReport
from entrenar_core.errors import EntrenarError
from hub_server import HubServer
from tiny_jobs import Models, classification, language, write_rows
from tiny_models import tiny_bert
from watched_runs import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


def test_the_task_decides_what_is_learnt(tiny: Models, tmp_path: Path) -> None:
    job = language(tiny, tmp_path, training={"max_steps": 1})
    del job["task"]
    assert run(job)[0].task == "causal-lm"
    job["teacher"] = {**job["teacher"], "finetune": {"method": "probe"}}
    with pytest.raises(EntrenarError, match="causal-lm"):
        run(job)
    report, _ = run(job | {"task": "sequence-classification", "student": {"model_id": str(tiny.small_llama)}})
    assert report.task == "sequence-classification"


def test_the_teacher_is_held_in_its_dtype(tiny: Models, tmp_path: Path) -> None:
    job = language(tiny, tmp_path, training={"max_steps": 1})
    exact = run(job)[0].teacher_scores.cross_entropy
    job["teacher"]["dtype"] = "bfloat16"
    rounded = run(job)[0].teacher_scores.cross_entropy
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    "pair",
    [
        ({"method": "probe", "l2": 0.01}, {"method": "probe", "l2": 10.0}),
        ({"method": "full", "epochs": 1}, {"method": "full", "epochs": 2}),
        ({"method": "full", "learning_rate": 1e-3}, {"method": "full", "learning_rate": 1e-2}),
        ({"method": "full", "batch_size": 4}, {"method": "full", "batch_size": 32}),
    ],
)
def test_how_a_teacher_is_fitted_changes_it(tiny: Models, tmp_path: Path, pair: tuple[dict[str, Any], ...]) -> None:
    scores = []
    for finetune in pair:
        job = classification(tiny, tmp_path, teacher={"finetune": finetune}, training={"max_steps": 1})
        scores.append(run(job)[0].teacher_scores.cross_entropy)
    assert scores[0] != scores[1]


def job_with(models: Models, folder: Path, part: str, source: dict[str, Any]) -> dict[str, Any]:
    """A job whose teacher or student comes from a source."""
    job = classification(models, folder, training={"max_steps": 1})
    return job | {part: source}


def score(report: RunReport, part: str) -> float:
    """What tells which weights a part had."""
    return (report.teacher_scores if part == "teacher" else report.student_before).cross_entropy


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_format_and_files_choose_the_weights(tiny: Models, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file

    folder = tiny_bert(tmp_path / "both", num_labels=2)
    write_rows(tmp_path / "rows.jsonl")
    other = tiny_bert(tmp_path / "other", num_labels=2, seed=9)
    (folder / "other.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    third = tiny_bert(tmp_path / "third", num_labels=2, seed=10)
    torch.save(load_file(third / "model.safetensors"), folder / "pytorch_model.bin")
    sources: list[dict[str, Any]] = [{}, {"files": ["other.safetensors"]}, {"format": "pytorch", "allow_pickle": True}]
    found = [score(run(job_with(tiny, tmp_path, part, {"model_id": str(folder), **s}))[0], part) for s in sources]
    plain = [score(run(job_with(tiny, tmp_path, part, {"model_id": str(f)}))[0], part) for f in (other, third)]
    assert found[1:] == plain
    assert all(one != two for one, two in itertools.combinations(found, 2))
    with pytest.raises(EntrenarError, match="pickle"):
        run(job_with(tiny, tmp_path, part, {"model_id": str(folder), "format": "pytorch"}))


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_revision_chooses_the_weights(hub: HubServer, tiny: Models, tmp_path: Path, part: str) -> None:
    old = tiny_bert(tmp_path / "old", num_labels=2, seed=9)
    repository = hub.add("org/bert", tiny.classifier)
    repository.commit({path.name: path.read_bytes() for path in old.iterdir()}, revision="old")
    found = [
        score(run(job_with(tiny, tmp_path, part, {"model_id": "org/bert", **choice}))[0], part)
        for choice in ({}, {"revision": "old"})
    ]
    assert found[0] != found[1]
