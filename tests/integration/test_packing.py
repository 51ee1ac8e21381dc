"""Runs whose rows hold several examples each: the same training in fewer places, from a live teacher or a cache."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from entrenar_core import parse_config
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.teachers.cache.making import build_cache
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.training.distillation import plan
from entrenar_distill.cli import main
from tiny_jobs import Models, classification, language, merged, write_config, write_rows
from tiny_models import tiny_bert, tiny_llama, tiny_tokenizer
from tiny_runs import WORDS, log, losses, manifest, start, wait_until
from tiny_runs import run as run_alone
from tiny_runs import weights as bits
from watched_runs import calls_of, run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

Job = dict[str, Any]
TAGS = ("B-X", "I-X", "O")


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models as elsewhere, but the language model is sure of something."""
    folder = tmp_path_factory.mktemp("sure")
    llama = tiny_llama(folder / "llama", initializer_range=0.4)
    return Models(folder, folder, folder, llama, tiny_llama(folder / "small", num_hidden_layers=1, seed=1))


def rows(folder: Path, task: str) -> None:
    words = WORDS[:12]
    found: list[dict[str, Any]] = []
    for index in range(60):
        text = [*words[: 1 + index * 7 % 12], str(index)]
        tags = [TAGS[at % 3] for at, _ in enumerate(text)]
        found.append({"tokens": text, "tags": tags} if task == "token-classification" else {"text": " ".join(text)})
    write_rows(folder / "rows.jsonl", found)


def job(models: Models, folder: Path, task: str = "causal-lm", /, **changes: Any) -> Job:
    """Five epochs of one step each, whose batch holds all rows, packed or not."""
    rows(folder, task)
    training = {"training": {"epochs": 5, "batch_size": 64}, "dataset": {"max_length": 64}}
    if task == "causal-lm":
        return merged(language(models, folder, **training), changes)
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {name: index for index, name in enumerate(TAGS)}}
    tagged: dict[str, Any] = labels | {"num_labels": 3} if task == "token-classification" else {}
    head: Any = "TokenClassification" if tagged else "MaskedLM"
    teacher = tiny_bert(folder / "teacher", head=head, initializer_range=0.4, **tagged)
    base = classification(models, folder, **training) | {"task": task}
    of_task = {"teacher": {"model_id": str(teacher)}, "student": {"init_from": {"teacher_layers": 1}, "dropout": 0.0}}
    columns = {"dataset": {"label_column": "tags"}} if tagged else {}
    return merged(merged(base | of_task, columns), changes)


def packed(job: Job, **dataset: Any) -> Job:
    return merged(job, {"dataset": {"packing": True, **dataset}})


def assert_near(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """A bias of keys changes no attention: its gradient is what rounding leaves, which AdamW makes large."""
    assert found.keys() == expected.keys()
    for name in found.keys() - {key for key in found if key.endswith("key.bias")}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "token-classification"])
def test_a_run_of_packed_rows_is_the_run_of_its_examples(
    sure: Models, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    between = {"progressive": {"layer_mapping": "final"}, "attention": {"loss": "kl", "layer_mapping": "final"}}
    file = job(sure, tmp_path, task, distillation=between)
    alone, alone_watch = run(file)
    of_alone = weights(tmp_path)
    with calls_of("Embedding", training=True) as training, calls_of("Embedding", training=False) as looking:
        together, watch = run(packed(file))
    shapes = {shape for shape in training if len(shape) == 2}
    assert max(shape[0] for shape in shapes) < 54 / 2, "rows of several examples"
    assert max(shape[1] for shape in shapes) <= 64
    assert watch.steps[-1].examples == alone_watch.steps[-1].examples == 5 * 54
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in alone_watch.steps], rel=1e-5)
    assert_near(weights(tmp_path), of_alone)
    assert any(shape[0] == 6 for shape in looking), "evaluation rows stay as they are"
    assert together.teacher_scores == alone.teacher_scores
    assert together.student_before == alone.student_before
    assert together.student_scores.cross_entropy == pytest.approx(alone.student_scores.cross_entropy, rel=1e-3)
    assert main(["run", str(write_config(tmp_path / "job.json", packed(file))), "--force", "-v"]) == 0
    assert "packed 54 examples into" in capsys.readouterr().err


def test_a_cache_of_examples_serves_packed_rows(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"temperature": 2.0}, training={"batch_size": 3})
    build_cache(parse_config(file), tmp_path / "cache", CacheSettings(precision="float32"))
    _, live = run(packed(file))
    of_live = weights(tmp_path)
    _, cached = run(packed(merged(file, {"teacher": {"cache": str(tmp_path / "cache")}})))
    assert len(live.steps) > 5
    assert [step.loss for step in cached.steps] == pytest.approx([step.loss for step in live.steps], rel=1e-5)
    assert_near(weights(tmp_path), of_live)


def test_a_cache_of_masked_texts_serves_packed_rows(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, "masked-lm")
    build_cache(parse_config(packed(file)), tmp_path / "cache", CacheSettings(kind="topk", top_k=190))
    _, live = run(packed(file))
    _, cached = run(packed(merged(file, {"teacher": {"cache": str(tmp_path / "cache")}})))
    assert [step.loss for step in cached.steps] == pytest.approx([step.loss for step in live.steps], rel=5e-3)


def test_a_rival_on_the_labels_alone_reads_packed_rows_of_what_is_labelled(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, "token-classification", training={"baseline": True})
    tagged = [{"tokens": WORDS[: 1 + at % 9], "tags": ["O"] * (1 + at % 9) if at % 3 else None} for at in range(60)]
    write_rows(tmp_path / "rows.jsonl", tagged)
    alone, together = run(file)[0].baseline_scores, run(packed(file))[0].baseline_scores
    assert alone is not None
    assert together is not None
    assert together.cross_entropy == pytest.approx(alone.cross_entropy, rel=1e-3)


def test_packed_rows_are_counted_before_a_run_and_shown(sure: Models, tmp_path: Path) -> None:
    file = job(
        sure,
        tmp_path,
        training={"batch_size": 4, "gradient_accumulation": 2, "group_by_length": True, "diagnose_every": 2},
    )
    alone, together = plan(parse_config(file)), plan(parse_config(packed(file)))
    assert (alone.examples_per_step, alone.fill) == (8, None)
    assert together.fill is not None
    assert 0.9 < together.fill <= 1
    assert together.examples_per_step > alone.examples_per_step
    assert together.steps < alone.steps
    assert len(run(packed(file))[1].steps) == together.steps


def test_a_student_that_cannot_keep_examples_apart_is_refused_before_the_first_step(
    sure: Models, tmp_path: Path
) -> None:
    student = tmp_path / "falcon"
    tokenizer = tiny_tokenizer(student)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    FalconForCausalLM(FalconConfig(**sizes)).save_pretrained(student)
    file = packed(job(sure, tmp_path))
    file["student"] = {"model_id": str(student)}
    with pytest.raises(ModelError, match=r"the student \(FalconForCausalLM\) does not keep the examples"):
        run(file)
    assert not list((tmp_path / "out").rglob("step-*"))
    assert run(merged(file, {"dataset": {"packing": False}, "training": {"max_steps": 1}}))[0].steps == 1


def test_a_task_that_was_found_is_refused_as_one_that_was_named(tiny: Models, tmp_path: Path) -> None:
    file = packed(classification(tiny, tmp_path))
    with pytest.raises(ConfigError, match="models of the task sequence-classification read a row as one"):
        plan(parse_config(file))
    assert main(["validate", str(write_config(tmp_path / "job.json", file))]) == 2


@pytest.mark.nightly
def test_a_packed_run_that_is_killed_and_resumed_ends_with_the_same_bits(sure: Models, tmp_path: Path) -> None:
    def written(name: str) -> Path:
        output = {"dir": str(tmp_path / name / "out"), "checkpoint_every": 2}
        training = {"batch_size": 3, "gradient_accumulation": 2, "log_every": 1}
        return write_config(tmp_path / name / "job.json", packed(job(sure, tmp_path / name, training=training))
                            | {"output": output})  # fmt: skip

    unbroken, killed = written("unbroken"), written("killed")
    assert run_alone(unbroken) == 0, log(unbroken)
    process = start(killed)
    assert wait_until(lambda: (killed.parent / "out" / "checkpoints" / "step-00000004").is_dir(), process)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert manifest(killed)["status"] == "running"
    assert run_alone(killed, "--resume") == 0, log(killed)
    assert bits(killed) == bits(unbroken)
    assert losses(killed) == losses(unbroken)
