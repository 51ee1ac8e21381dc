"""From configurations of distillations to what is predicted of them, and runs that are refused before they start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from cached_jobs import built, using
from cached_jobs import job as cached_job
from entrenar_core import distill, parse_config
from entrenar_core.config.loading import load_config
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.errors import TrainingError
from entrenar_core.losses.table import LOSSES
from entrenar_core.memory.jobs import CachedSignals, ReadingJob, Sharding, TrainingJob
from entrenar_core.memory.machine import named_machine, this_machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.runs import RunFacts, parts_of
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.training.memory import require_memory, run_parts, told
from entrenar_core.training.preparing import prepare
from memory_twins import held
from tiny_jobs import Models, build_models, classification, language

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


def parts(config: DistillationConfig, task: str, layers: int = 2, **facts: Any) -> dict[str, Any]:
    """The jobs of a run by their names: teachers of so many layers, students of two."""
    kind = "llama" if task == "causal-lm" else "bert"
    teachers = [held(kind, num_labels=3, num_hidden_layers=layers).config] * (
        len(getattr(config.teacher, "members", ())) or 1
    )
    student = held(kind, num_labels=3).config
    found = parts_of(config, RunFacts(task, teachers, student, **{"length": 16, **facts}))
    return {part.name: part.job for part in found}


def parsed(task: str, **sections: Mapping[str, Any]) -> DistillationConfig:
    given: dict[str, Any] = {
        "task": task,
        "teacher": {"model_id": "./teacher"},
        "student": {"model_id": "./student"},
        "dataset": {"path": "rows.jsonl", "max_length": 16},
        "output": {"dir": "out"},
    }
    return parse_config(given | sections)


def assert_traced(job: Any) -> None:
    found = predict(job)
    assert found.method in ("traced", "extrapolated"), found.assumptions
    assert found.peak_bytes > 0


def distilled(file: Path) -> bool:
    return "teacher:" in file.read_text()


@pytest.mark.parametrize("file", sorted(filter(distilled, CONFIGS.glob("*.yaml"))), ids=lambda file: file.stem)
def test_every_configuration_that_we_give_has_jobs(file: Path) -> None:
    config = load_config(file)
    found = parts(config, config.task or "causal-lm", 6, mean_length=9.0)
    assert list(found)[-1] == "training"
    for job in found.values():
        assert_traced(job)


def test_a_student_with_adapters_is_held_as_it_is_said_to_be() -> None:
    lora = {"model_id": "./student", "lora": {"rank": 4}, "dtype": "bfloat16", "quantization": {"type": "fp4"}}
    job = parts(parsed("causal-lm", student=lora), "causal-lm")["training"]
    assert (job.student.dtype, job.student.load_in, job.student.double_quantized) == ("bfloat16", "fp4", True)
    assert job.adapters.rank == 4
    adapted, whole = predict(job), predict(parts(parsed("causal-lm"), "causal-lm")["training"])
    assert adapted.trace.trainable_parameters < 0.2 * whole.trace.trainable_parameters
    off = parsed("causal-lm", student={"model_id": "./student", "lora": {"rank": 4, "enabled": False}})
    assert parts(off, "causal-lm")["training"].adapters is None


def test_a_live_teacher_is_one_job_with_its_student() -> None:
    config = parsed(
        "causal-lm",
        teacher={"model_id": "./teacher", "dtype": "bfloat16", "batch_size": 2},
        training={"batch_size": 6, "gradient_accumulation": 3, "mixed_precision": "bf16", "eval_batch_size": 5},
    )
    (job,) = parts(config, "causal-lm", mean_length=10.0).values()
    assert isinstance(job, TrainingJob)
    assert (job.batch_size, job.gradient_accumulation, job.mixed_precision) == (6, 3, "bf16")
    assert job.evaluation_rows == 5
    assert job.counted == 16 + 5 * 10
    (teaching,) = job.teachers
    assert (teaching.model.dtype, teaching.batch_size, teaching.cached) == ("bfloat16", 2, None)
    assert_traced(job)


def test_without_weight_on_the_teacher_there_is_none() -> None:
    (job,) = parts(parsed("causal-lm", distillation={"alpha": 0.0}), "causal-lm").values()
    assert job.teachers == ()
    assert_traced(job)


def test_a_classifier_that_is_another_reads_all_rows_first() -> None:
    config = parsed("sequence-classification", teacher={"model_id": "./teacher", "finetune": {"method": "probe"}})
    found = parts(config, "sequence-classification")
    assert list(found) == ["the teacher reads all rows", "training"]
    assert isinstance(found["the teacher reads all rows"], ReadingJob)
    assert found["training"].teachers[0].cached == CachedSignals("logits")
    for job in found.values():
        assert_traced(job)


def test_a_teacher_is_fitted_first() -> None:
    finetune = {"method": "full", "batch_size": 7}
    config = parsed("sequence-classification", teacher={"model_id": "./teacher", "finetune": finetune})
    found = parts(config, "sequence-classification")
    assert next(iter(found)) == "the teacher is fitted"
    assert found["the teacher is fitted"].batch_size == 7
    assert found["the teacher is fitted"].teachers == ()
    assert_traced(found["the teacher is fitted"])


def test_a_server_is_no_model() -> None:
    endpoint = {"endpoint": "http://127.0.0.1:1/v1", "model": "served", "top_logprobs": 7}
    found = parts(parsed("causal-lm", teacher=endpoint), "causal-lm")
    assert list(found) == ["training"]
    assert found["training"].teachers[0].cached == CachedSignals("topk", 7)
    assert_traced(found["training"])
    assert predict(found["training"]).trace.teacher_parameters == 0


def test_a_moving_average_is_as_large_as_the_student() -> None:
    found = parts(parsed("causal-lm", teacher={"moving_average": {"decay": 0.9}}), "causal-lm")
    trace = predict(found["training"]).trace
    assert trace.teacher_parameters == trace.parameters > 0


def test_every_teacher_of_several_is_there() -> None:
    members = [{"model_id": "./one"}, {"model_id": "./other", "dtype": "float16"}]
    found = parts(parsed("causal-lm", teacher={"members": members}), "causal-lm")
    assert [one.model.dtype for one in found["training"].teachers] == ["float32", "float16"]
    assert_traced(found["training"])


def test_what_is_kept_in_memory_is_counted() -> None:
    config = parsed("causal-lm", teacher={"model_id": "./teacher", "cache": {"memory": "3MB"}})
    found = parts(config, "causal-lm")
    assert list(found) == ["the teacher reads all rows", "training"]
    assert predict(found["training"]).trace.peak.components["cache"] == pytest.approx(3e6 + 96 * 32 * 4, rel=0.05)


@pytest.mark.parametrize(
    ("task", "dataset", "counted"),
    [
        ("masked-lm", {"mask_probability": 0.25}, 32),
        ("causal-lm", {"packing": True}, None),
        ("sequence-classification", {}, None),
    ],
)
def test_positions_that_count_are_those_of_the_task(task: str, dataset: dict[str, Any], counted: int | None) -> None:
    config = parsed(task, dataset={"path": "rows.jsonl", **dataset}, training={"batch_size": 8})
    job = parts(config, task, mean_length=5.0)["training"]
    assert job.counted == counted
    assert_traced(job)


def test_processes_share_the_rows() -> None:
    config = parsed("causal-lm", training={"batch_size": 8})
    job = parts(config, "causal-lm", mean_length=4.0, sharding=Sharding(4))["training"]
    assert job.counted == 16 + 4
    assert job.sharding.devices == 4


def _task_of(name: str) -> str:
    row = LOSSES[name]
    return {"vectors": "embedding"}.get(row.family, "sequence-classification" if row.scope == "group" else "causal-lm")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_traced(name: str) -> None:
    task = _task_of(name)
    entries = [{"name": name}]
    if name == "cross_entropy":
        entries.append({"name": "forward_kl"})
    config = parsed(task, distillation={"losses": entries}, training={"batch_size": 8})
    for job in parts(config, task, mean_length=9.0).values():
        assert_traced(job)


@pytest.mark.parametrize(
    "kind", ["topk", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("hidden", "sampled"))]
)
def test_a_folder_says_what_is_kept_of_a_teacher(models: Models, kind: Any, tmp_path: Path) -> None:
    given = cached_job(models, tmp_path)
    settings: dict[str, Any] = {"topk": {"top_k": 5}, "sampled": {"samples": 6}}.get(kind, {})
    built(given, tmp_path / "cache", CacheSettings(kind=kind, **settings))
    found = run_parts(prepare(parse_config(using(given, tmp_path / "cache"))), this_machine("cpu"))
    cached = found[-1].job.teachers[0].cached  # type: ignore[union-attr]
    assert [part.name for part in found] == ["training"]
    assert cached is not None
    assert (cached.kind, cached.count) == (kind, {"hidden": 0, "topk": 5}.get(kind, cached.count))
    assert kind != "sampled" or cached.count > 0
    assert_traced(found[-1].job)


def prepared_run(models: Models, folder: Path, **changes: Any) -> Any:
    return prepare(parse_config(language(models, folder, **changes)))


def test_rows_are_as_long_as_they_are(models: Models, tmp_path: Path) -> None:
    prepared = prepared_run(models, tmp_path, dataset={"max_length": 60})
    lengths = list(prepared.train_tokens["length"])
    (part,) = run_parts(prepared, this_machine("cpu"))
    assert isinstance(part.job, TrainingJob)
    assert part.job.length == max(lengths) < 60
    assert part.job.counted == round(max(lengths) + 7 * sum(lengths) / len(lengths))
    teacher = AutoModelForCausalLM.from_pretrained(models.llama)
    assert predict(part.job).trace.teacher_parameters == sum(weight.numel() for weight in teacher.parameters())


def test_a_small_run_is_not_looked_at(models: Models, tmp_path: Path) -> None:
    prepared = prepared_run(models, tmp_path)
    assert require_memory(prepared, "cpu", 1, force=False, machine=named_machine("64GB")) is None
    assert told(None) == []


def large_run(models: Models, folder: Path) -> tuple[Any, int]:
    """Of a student that is larger than its teacher, and what is predicted of it."""
    large = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 512}
    prepared = prepared_run(models, folder, student={"init_from": None, **large}, training={"batch_size": 16})
    return prepared, predict(run_parts(prepared, this_machine("cpu"))[-1].job).peak_bytes


def test_a_run_that_cannot_fit_is_refused_with_what_would_help(models: Models, tmp_path: Path) -> None:
    prepared, needed = large_run(models, tmp_path)
    machine = named_machine(f"{needed * 4 // 5}B")
    with pytest.raises(TrainingError, match=r"the run needs about .* of memory, and .* are available on") as found:
        require_memory(prepared, "cpu", 1, force=False, machine=machine)
    hint = str(found.value.hint)
    assert "would make it fit; --force tries it as it is" in hint


@pytest.mark.nightly
def test_what_nothing_makes_fit_is_refused_with_other_ways(models: Models, tmp_path: Path) -> None:
    prepared, machine = prepared_run(models, tmp_path), named_machine("100KB")
    with pytest.raises(TrainingError) as found:
        require_memory(prepared, "cpu", 1, force=False, machine=machine)
    assert "take a smaller model" in str(found.value.hint)
    forced = require_memory(prepared, "cpu", 1, force=True, machine=machine)
    assert forced is not None
    assert forced.fits is False
    assert told(forced)[0].endswith("it may not be enough")


def test_processes_on_a_processor_share_its_memory(models: Models, tmp_path: Path) -> None:
    prepared, needed = large_run(models, tmp_path)
    machine = named_machine(f"{needed * 3 // 2}B")
    assert require_memory(prepared, "cpu", 1, force=False, machine=machine) is not None
    with pytest.raises(TrainingError):
        require_memory(prepared, "cpu", 2, force=False, machine=machine)


def test_a_run_that_fits_goes_on_as_before(models: Models, tmp_path: Path) -> None:
    report = distill(parse_config(classification(models, tmp_path, training={"max_steps": 2})))
    assert report.steps == 2
    assert (tmp_path / "out" / "model.safetensors").is_file()
