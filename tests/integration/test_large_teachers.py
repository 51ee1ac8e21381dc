"""Runs with teachers that are quantised, spread, read in parts, or dequantised, and what is refused before them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from entrenar_core import Callback, distill, parse_config
from entrenar_core.errors import ConfigError
from entrenar_core.reports import Scores
from entrenar_core.teachers.assembly import make_teacher
from entrenar_core.teachers.cache.making import build_cache
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.assembly import make_accelerator
from entrenar_core.training.distillation import plan
from entrenar_core.training.preparing import prepare
from entrenar_core.training.signals import StopRequest
from entrenar_distill.assembly import assemble
from entrenar_distill.validation import validate
from tiny_jobs import Models, classification, language, merged, write_config
from tiny_models import tiny_bert, tiny_gguf, tiny_llama
from watched_runs import calls_of, run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

Job = dict[str, Any]
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
SPLIT = {"": "cpu", "model.layers.0": "disk"}


SCORES = Scores(examples=1, targets=1, cross_entropy=1.0, accuracy=1.0)


class Notes(Callback):
    """What a run notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Wide enough to be quantised, and sure of something."""
    folder = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    bert = tiny_bert(folder / "classifier", num_labels=2, **sizes)
    llama = tiny_llama(folder / "llama", **sizes, max_shard_size="200KB")
    return Models(bert, bert, bert, llama, tiny_llama(folder / "small", num_hidden_layers=1, seed=1))


def llama(models: Models, folder: Path, **teacher: Any) -> Job:
    """A student by sizes of the language model."""
    return language(models, folder) | {
        "student": dict(SIZES),
        "teacher": {"model_id": str(models.llama), **teacher},
    }


def noted(job: Job) -> list[str]:
    notes = Notes()
    distill(parse_config(job), force=True, callbacks=[notes])
    return notes.notes


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_a_quantised_teacher_is_told_scored_and_learnt_from(models: Models, tmp_path: Path, load_in: str) -> None:
    whole, _ = run(llama(models, tmp_path / "whole"))
    quantised, _ = run(llama(models, tmp_path / "quantised", load_in=load_in))
    exact, other = whole.teacher_scores.cross_entropy, quantised.teacher_scores.cross_entropy
    assert exact is not None
    assert exact != other == pytest.approx(exact, abs=0.2)
    assert quantised.teacher.parameters == whole.teacher.parameters
    assert any(f"quantised to {load_in}" in note for note in noted(llama(models, tmp_path / "more", load_in=load_in)))


def test_layers_of_a_quantised_teacher_are_copied_whole(models: Models, tmp_path: Path) -> None:
    student = {"init_from": {"teacher_layers": [1]}}
    job = language(models, tmp_path, training={"learning_rate": 1e-30}) | {"student": student}
    run(merged(job, {"teacher": {"load_in": "nf4"}}))
    teacher = LlamaForCausalLM.from_pretrained(models.llama).state_dict()
    found = weights(tmp_path)["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found, teacher["model.layers.1.mlp.up_proj.weight"])


def test_a_probe_is_fitted_to_what_a_quantised_teacher_says(models: Models, tmp_path: Path) -> None:
    scores = []
    for load_in in (None, "int8"):
        teacher = {"load_in": load_in, "finetune": {"method": "probe", "l2": 1.0}}
        report, _ = run(classification(models, tmp_path, teacher=teacher))
        scores.append(report.teacher_scores.cross_entropy)
    assert scores[0] != scores[1] == pytest.approx(scores[0], abs=0.1)


def test_a_teacher_in_parts_on_disk_teaches_what_the_whole_one_does(models: Models, tmp_path: Path) -> None:
    scores, students = [], []
    for name, device_map in (("whole", None), ("auto", "auto"), ("split", SPLIT)):
        teacher = {"device_map": device_map} if device_map else {}
        job = llama(models, tmp_path / name, **teacher)
        attention = {"attention": {"enabled": True, "layer_mapping": [[0, 0]], "head_mapping": "grouped"}}
        report, _ = run(merged(job, {"distillation": attention}))
        scores.append(report.teacher_scores)
        students.append(torch.cat([tensor.flatten() for tensor in weights(tmp_path / name).values()]))
    assert scores[0] == scores[1]
    assert scores[2].cross_entropy == pytest.approx(scores[0].cross_entropy, abs=1e-6)
    assert torch.equal(students[0], students[1])
    assert (students[0] - students[2]).norm() < 1e-2 * students[0].norm()


@pytest.mark.parametrize("head", ["cpu", "disk"])
def test_of_a_teacher_in_parts_hidden_states_are_kept(models: Models, tmp_path: Path, head: str) -> None:
    """The head is copied from wherever it is, also from disk."""
    kept, teacher = {}, str(tiny_llama(tmp_path / "teacher", tie_word_embeddings=False))
    for name, device_map in (("whole", None), ("split", SPLIT | {"lm_head": head})):
        placed = {"model_id": teacher} | ({"device_map": device_map} if device_map else {})
        file = llama(models, tmp_path / name, **placed)
        manifest = build_cache(parse_config(file), tmp_path / name / "cache", CacheSettings(precision="float32"))
        assert manifest.kind["name"] == "hidden"
        assert manifest.measured is not None
        assert abs(manifest.measured["kl"]) < 1e-5
        _, watch = run(merged(file, {"teacher": {"cache": {"dir": str(tmp_path / name / "cache")}}}))
        kept[name] = [step.loss for step in watch.steps]
    assert kept["split"] == pytest.approx(kept["whole"], rel=1e-5)


@pytest.mark.parametrize("task", ["causal-lm", "embedding"])
def test_a_teacher_reads_as_many_rows_at_once_as_it_is_told(models: Models, tmp_path: Path, task: str) -> None:
    """With losses between layers too, and the student's batches stay what they are."""
    students = []
    for name, size in (("together", None), ("parts", 3)):
        layers = {"name": "hidden_cosine", "layers": [[0, 0]], "projection": "linear"}
        entry = "embedding_cosine" if task == "embedding" else "forward_kl"
        job = llama(models, tmp_path / name) | {
            "task": task,
            "distillation": {"losses": [{"name": entry}, layers, {"name": "attention_kl", "layers": [[0, 0]]}]},
            "student": {"hidden_size": 32, "num_layers": 1, "num_heads": 4},
        }
        job["teacher"] |= {"batch_size": size} if size else {}
        with calls_of("LlamaRMSNorm", training=False) as seen:
            run(job)
        if size:
            assert {shape[0] for shape in seen if shape[-1] == 64 and len(shape) == 3} <= {1, 2, 3}
        students.append(torch.cat([tensor.flatten() for tensor in weights(tmp_path / name).values()]))
    assert (students[0] - students[1]).norm() < 1e-2 * students[0].norm()


def test_a_live_teacher_has_no_dropout_no_graph_and_no_mode_but_evaluation(models: Models, tmp_path: Path) -> None:
    loud = tiny_llama(tmp_path / "loud", attention_dropout=0.5)
    prepared = prepare(parse_config(language(models, tmp_path) | {"teacher": {"model_id": str(loud)}}))
    accelerator = make_accelerator(prepared.config)
    with StopRequest() as stop:
        ready = make_teacher(
            prepared, accelerator, (), stop, evaluate=lambda _: SCORES, on_batch=lambda _done, _total: None
        )
    teacher = ready.source
    assert isinstance(teacher, LiveTeacher)
    batch = prepared.sample()
    one, other = (teacher.rows(batch).of(slice(None)) for _ in range(2))
    assert torch.equal(one, other)
    assert not one.requires_grad
    assert not any(module.training for module in teacher.model.modules())


def test_a_cache_of_another_precision_is_of_another_teacher(models: Models, tmp_path: Path) -> None:
    job = llama(models, tmp_path, load_in="nf4")
    manifest = build_cache(parse_config(job), tmp_path / "cache", CacheSettings(precision="float32"))
    assert manifest.identity["load_in"] == "nf4"
    run(merged(job, {"teacher": {"cache": str(tmp_path / "cache")}}))
    for other in (None, "int8"):
        change = {"teacher": {"load_in": other, "cache": str(tmp_path / "cache")}}
        with pytest.raises(ConfigError, match=r"`teacher\.load_in`"):
            plan(parse_config(merged(job, change)), force=True)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"load_in": "nf4", "finetune": {"method": "full"}}, "teacher.load_in"),
        ({"load_in": "nf4", "finetune": {"method": "head"}}, "teacher.load_in"),
        ({"device_map": "auto", "finetune": {"method": "full"}}, "teacher.device_map"),
        ({"load_in": "int8", "device_map": {"model": "disk", "lm_head": 0}}, "teacher.device_map"),
        ({"load_in": "int8", "device_map": {"model": "cpu", "lm_head": 0}}, "teacher.device_map"),
        ({"load_in": "int4"}, "teacher.load_in"),
        ({"device_map": "gpu"}, "teacher.device_map"),
        ({"device_map": {"model": "meta"}}, "teacher.device_map"),
        ({"device_map": {}}, "teacher.device_map"),
        ({"device_map": 0}, "teacher.device_map"),
        ({"batch_size": 0}, "teacher.batch_size"),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(models: Models, tmp_path: Path, change: Job, place: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(classification(models, tmp_path, teacher=change), sort_keys=False))
    with pytest.raises(ConfigError) as refused:
        assemble(file, (), {})
    (problem,) = refused.value.problems
    assert f"`{place}" in problem.message
    assert (problem.where or "").startswith(f"{file}:")
    assert problem.hint


def test_a_gguf_is_told_to_be_dequantised_and_then_quantised(models: Models, tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "model.gguf")
    for teacher, said in (
        ({}, "a GGUF, dequantised to float32"),
        ({"dtype": "bfloat16"}, "a GGUF, dequantised to bfloat16"),
        ({"load_in": "nf4"}, "a GGUF, dequantised to float32, then quantised to nf4 as it is loaded"),
    ):
        job = language(models, tmp_path) | {"teacher": {"model_id": str(file), **teacher}, "student": dict(SIZES)}
        detail = {check.name: check.detail for check in _checks(job)}["teacher"]
        assert detail.endswith(f"; {said}")


def _checks(job: Job) -> Any:
    from entrenar_distill.model_checks import look_at, named

    config, problems = parse_config(job), []
    found = [look_at(part, source, model_id, problems, False)[0] for part, source, model_id in named(config)]
    assert not problems
    return [check for check in found if check is not None]


def test_without_bitsandbytes_both_say_how_to_install_it(models: Models, tmp_path: Path) -> None:
    """And to validate such a teacher takes neither torch nor bitsandbytes."""
    file = write_config(tmp_path / "job.yaml", llama(models, tmp_path, load_in="nf4"))
    code = f"""
import sys
from entrenar_distill.cli import main
assert main(["validate", {str(file)!r}, "-q"]) == 0
assert not {{"torch", "bitsandbytes"}} & sys.modules.keys()
sys.modules["bitsandbytes"] = None  # as if it were not there
assert main(["validate", {str(file)!r}]) == 2
assert main(["run", {str(file)!r}]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count("pip install 'entrenar[quantized]'") == 2


def test_validate_tells_what_becomes_of_the_teacher(models: Models, tmp_path: Path) -> None:
    report = validate(parse_config(llama(models, tmp_path, load_in="fp4")), "job")
    (teacher,) = [check for check in report.checks if check.name == "teacher"]
    assert teacher.detail.endswith("; quantised to fp4 as it is loaded")


def test_shards_are_loaded_from_end_to_end(models: Models, tmp_path: Path) -> None:
    assert len(list(models.llama.glob("*.safetensors"))) >= 2
    report, _ = run(llama(models, tmp_path))
    assert report.teacher.weight_bytes == sum(file.stat().st_size for file in models.llama.glob("*.safetensors"))
