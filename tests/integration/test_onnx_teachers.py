"""An ONNX teacher teaches what the same teacher in safetensors does, and what it cannot do is refused before a run."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from entrenar_core import Callback, distill, parse_config
from entrenar_core.errors import ConfigError
from entrenar_core.models.onnx_rules import NO_RUNTIME
from entrenar_core.teachers.cache.making import build_cache
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.training.distillation import plan
from entrenar_distill.assembly import assemble
from entrenar_distill.cli import main
from entrenar_distill.validation import validate
from hub_server import HubServer
from onnx_models import exported
from tiny_jobs import Models as TinyModels
from tiny_jobs import classification, language, merged, write_config
from tiny_models import tiny_bert, tiny_llama
from tiny_vocabularies import renumbered, shuffled
from watched_runs import run, weights

pytest_plugins = ["hub_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

Job = dict[str, Any]
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that are sure of something, with the same ones as ONNX."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama", initializer_range=0.3)
    tiny_bert(folder / "classifier", num_labels=2, initializer_range=0.3)
    tiny_bert(folder / "encoder", initializer_range=0.3)
    tiny_bert(folder / "masked", head="MaskedLM", initializer_range=0.3)
    for name in ("llama", "classifier", "encoder", "masked"):
        output = "last_hidden_state" if name == "encoder" else "logits"
        exported(folder / name, folder / f"{name}-onnx", output=output, external=name == "llama")
    return folder


def job_of(models: Path, folder: Path, name: str, **changes: Any) -> Job:
    """A job of a task with the teacher of that name; `onnx` beside it takes the exported one."""
    tasks = {"llama": "causal-lm", "masked": "masked-lm", "encoder": "embedding"}
    folders = TinyModels(*[models / "classifier"] * 3, models / "llama", models / "llama")
    job = (language if name in tasks else classification)(folders, folder)
    job |= {"student": dict(SIZES), "teacher": {"model_id": str(models / name)}}
    if name in tasks:
        job["task"] = tasks[name]
    return merged(job, changes)


def onnx(job: Job) -> Job:
    return merged(job, {"teacher": {"model_id": f"{job['teacher']['model_id']}-onnx"}})


@pytest.mark.parametrize("name", ["llama", "masked", "classifier", "encoder"])
def test_a_student_of_the_graph_is_the_student_of_the_weights(models: Path, tmp_path: Path, name: str) -> None:
    reports, students = [], []
    for place, change in (("whole", dict), ("graph", onnx)):
        job = job_of(models, tmp_path / place, name)
        reports.append(run(change(job))[0])
        students.append(weights(tmp_path / place))
    whole, graph = reports
    assert whole.teacher_scores.accuracy == graph.teacher_scores.accuracy
    assert graph.student_scores.cross_entropy == pytest.approx(whole.student_scores.cross_entropy, abs=1e-4)
    assert graph.student_scores.kl == pytest.approx(whole.student_scores.kl, abs=1e-4)
    assert graph.teacher.parameters >= whole.teacher.parameters * 0.9
    whole_W, graph_W = (torch.cat([tensor.flatten() for tensor in student.values()]) for student in students)
    assert (whole_W - graph_W).norm() < 1e-2 * whole_W.norm(), "but for weights whose gradient is noise"


def test_a_graph_reads_the_ids_of_a_student_with_the_same_tokens_in_another_order(models: Path, tmp_path: Path) -> None:
    small = tiny_llama(tmp_path / "small", num_hidden_layers=1, seed=3)
    other = renumbered(small, tmp_path / "other", shuffled(320))
    change = {"student": {"model_id": str(other)} | dict.fromkeys(SIZES)}
    scores = []
    for place, of in (("whole", dict), ("graph", onnx)):
        report, _ = run(of(job_of(models, tmp_path / place, "llama", **change)))
        scores.append(report.teacher_scores)
    assert scores[0].cross_entropy == pytest.approx(scores[1].cross_entropy, abs=1e-5)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_what_a_graph_says_is_kept_in_a_cache(models: Path, tmp_path: Path, kind: Any) -> None:
    job = onnx(job_of(models, tmp_path, "llama", distillation={"temperature": 1.0}))
    keeps = {"topk": {"top_k": 300}, "sampled": {}}[kind]
    manifest = build_cache(parse_config(job), tmp_path / "cache", CacheSettings(kind=kind, **keeps))
    assert manifest.complete
    assert abs(manifest.measured["kl"]) < 1e-2 if kind == "topk" else manifest.measured
    report, _ = run(merged(job, {"teacher": {"cache": str(tmp_path / "cache")}}))
    assert report.steps == 5


def test_hidden_states_of_a_graph_cannot_be_kept(models: Path, tmp_path: Path, capsys: Any) -> None:
    file = write_config(tmp_path / "job.yaml", onnx(job_of(models, tmp_path, "llama")))
    assert main(["cache", "build", str(file), "--output", str(tmp_path / "cache")]) == 2
    assert "--kind topk" in capsys.readouterr().err


def test_a_repository_gives_the_graph_with_the_weights_beside_it(hub: HubServer, models: Path, tmp_path: Path) -> None:
    folder = models / "llama-onnx"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    files |= {f"onnx/{name}": (folder / name).read_bytes() for name in ("model.onnx", "model.onnx_data")}
    hub.add("org/llama", files | {"model.safetensors": b"x", "onnx/model_fp16.onnx": b"x"})
    job = job_of(models, tmp_path, "llama") | {"teacher": {"model_id": "org/llama", "format": "onnx"}}
    report, _ = run(job)
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= hub.fetched()
    assert not {"model.safetensors", "onnx/model_fp16.onnx"} & hub.fetched()
    assert report.teacher_scores.cross_entropy is not None


def test_diagnose_looks_at_what_it_says_and_tells_that_it_shows_no_layers(
    models: Path, tmp_path: Path, capsys: Any
) -> None:
    file = write_config(tmp_path / "job.yaml", onnx(job_of(models, tmp_path, "llama")))
    assert main(["diagnose", str(file)]) == 0
    assert "the teacher is ONNX" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("llama", {"distillation": {"progressive": {"enabled": True}}}, "distillation.progressive"),
        ("llama", {"distillation": {"losses": [{"name": "forward_kl"}, {"name": "cka"}]}}, "distillation.losses[1]"),
        ("llama", {"student": {"init_from": {"teacher_layers": 1}} | dict.fromkeys(SIZES)}, "student.init_from"),
        ("classifier", {"teacher": {"finetune": {"method": "probe"}}}, "teacher.finetune"),
        ("classifier", {"teacher": {"finetune": {"method": "full"}}}, "teacher.finetune"),
        ("llama", {"teacher": {"dtype": "bfloat16"}}, "teacher.dtype"),
    ],
)
def test_what_a_graph_cannot_do_is_refused_at_its_place(
    models: Path, tmp_path: Path, name: str, change: Mapping[str, Any], place: str
) -> None:
    job = onnx(job_of(models, tmp_path, name, **change))
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    loaded = assemble(file, (), {})
    with pytest.raises(ConfigError) as told:
        validate(loaded.config, str(file), loaded.places)
    (problem,) = told.value.problems
    assert place in problem.message
    assert (problem.where or "").startswith(f"{file}:"), problem.where
    assert problem.hint
    with pytest.raises(ConfigError) as refused:
        plan(parse_config(job))
    assert problem.message.endswith(refused.value.problems[0].message)


def test_a_student_is_not_made_of_a_graph(models: Path, tmp_path: Path) -> None:
    student = {"model_id": str(models / "llama-onnx")} | dict.fromkeys(SIZES)
    job = job_of(models, tmp_path, "llama", student=student)
    for check in (lambda: validate(parse_config(job), "job"), lambda: plan(parse_config(job))):
        with pytest.raises(ConfigError, match="is ONNX, which has no weights that can be trained"):
            check()


def test_without_onnxruntime_both_say_how_to_install_it(models: Path, tmp_path: Path) -> None:
    """And to validate such a teacher takes neither torch nor onnxruntime."""
    file = write_config(tmp_path / "job.yaml", onnx(job_of(models, tmp_path, "llama")))
    code = f"""
import sys
from entrenar_distill.cli import main
assert main(["validate", {str(file)!r}, "-q"]) == 0
assert not {{"torch", "onnxruntime", "onnx"}} & sys.modules.keys()
sys.modules["onnxruntime"] = None  # as if it were not there
assert main(["validate", {str(file)!r}]) == 2
assert main(["run", {str(file)!r}]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert said.count(NO_RUNTIME[0]) == 2
    assert said.count("pip install 'entrenar[onnx]'") == 2


def test_the_teacher_is_told_with_its_format(models: Path, tmp_path: Path) -> None:
    class Notes(Callback):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def on_note(self, text: str) -> None:
            self.notes.append(text)

    notes = Notes()
    job = onnx(job_of(models, tmp_path, "llama"))
    distill(parse_config(job), force=True, callbacks=[notes])
    assert any("ONNX" in note for note in notes.notes)
    checks = {check.name: check.detail for check in validate(parse_config(job), "job").checks}
    assert "ONNX" in checks["teacher"]
