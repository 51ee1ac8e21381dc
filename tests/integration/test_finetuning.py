"""Fine-tuning on tiny models: what trains, what is written, and that it goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from entrenar_core import Callback, distill, parse_config
from entrenar_core.config.loading import parse_finetuning
from entrenar_core.conversion.converting import convert
from entrenar_core.errors import Interrupted, ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import PathReference
from entrenar_core.reports import TuneReport
from entrenar_core.stored_model import open_model
from entrenar_core.training.callbacks import StepMetrics
from entrenar_core.training.finetuning import FineTuneTrainer
from tiny_jobs import Models, build_models, classification, merged, write_rows
from tiny_models import tiny_bert, tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers bitsandbytes can quantise."""
    folder = tmp_path_factory.mktemp("wide")
    return tiny_llama(folder / "wide", hidden_size=64, intermediate_size=128)


def job(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Five steps on `rows.jsonl` in the folder, into its `out`."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    plain = {
        "model": {"model_id": str(base)},
        "adapter": {"rank": 4},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "output": {"dir": str(folder / "out")},
    }
    return merged(plain, changes)


def train(values: Mapping[str, Any], *, resume: bool = False, callbacks: tuple[Callback, ...] = ()) -> TuneReport:
    trainer = FineTuneTrainer(parse_finetuning(values), callbacks=callbacks)
    return trainer.train(resume=resume, force=not resume)


class StopAfter(Callback):
    """Ends a run as Ctrl-C does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.step:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


def test_a_language_model_learns_by_its_adapter_and_peft_loads_it(wide: Path, tmp_path: Path) -> None:
    report = train(job(wide, tmp_path, training={"epochs": 3}))
    assert report.task == "causal-lm"
    assert report.method == "LoRA of rank 4, alpha 16, on attention"
    assert report.scores.perplexity is not None
    assert report.scores_before.perplexity is not None
    assert report.scores.perplexity < 0.9 * report.scores_before.perplexity
    folder = tmp_path / "out"
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= set(report.files)
    assert not (folder / "model.safetensors").exists()
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(wide), str(folder)).eval()
    trained = sum(one.numel() for name, one in model.named_parameters() if "lora_" in name)
    assert report.trained_parameters == trained == 2 * 4 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64)
    assert (folder / "adapter_model.safetensors").stat().st_size == report.model.weight_bytes

    rows = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        losses = []
        for text in rows:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=15).input_ids
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert sum(losses) / len(losses) < 0.95 * torch.tensor(report.scores_before.perplexity).log()


def test_a_bare_encoder_becomes_a_classifier_and_its_head_is_in_the_adapter(tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    values = job(encoder, tmp_path, task="sequence-classification", training={"epochs": 4}, output={"merge": True})
    report = train(values)
    assert report.scores.accuracy == 1.0
    assert report.majority_accuracy is not None
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("classifier" in name for name in saved)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True, truncation=True, max_length=16)
    with torch.no_grad():
        answers = model(**batch).logits.argmax(-1).tolist()
    assert answers == [row["label"] for row in rows]
    merged_model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "merged").eval()
    assert merged_model.config.id2label == {0: "0", 1: "1"}
    with torch.no_grad():
        torch.testing.assert_close(merged_model(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


def test_a_classifier_of_other_classes_gets_a_head_for_them(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "classifier", num_labels=3)
    report = train(job(base, tmp_path, training={"epochs": 2}, output={"merge": True}))
    assert report.task == "sequence-classification"
    before = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(before, str(tmp_path / "out")).eval()
    merged_model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "merged").eval()
    assert merged_model.config.id2label == {0: "0", 1: "1"}
    ids = torch.arange(5, 20).reshape(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(merged_model(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_all_weights_train_without_an_adapter(wide: Path, tmp_path: Path) -> None:
    report = train(job(wide, tmp_path, adapter=None))
    assert report.method == "all weights"
    assert report.trained_parameters == report.model.parameters
    before, after = load_file(wide / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if before[name].ndim == 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"rank": 2, "dora": True}},
        {"adapter": {"rank": 2, "init": "pissa"}},
        {"adapter": {"rank": 2, "init": "eva"}, "training": {"lora_plus": None}},
        {"adapter": {"rank": 2, "lora_plus_ratio": 8.0, "dropout": 0.1}, "training": {"gradient_checkpointing": True}},
        {"adapter": {"rank": 2}, "model": {"quantization": {}, "dtype": "bfloat16"}},
    ],
    ids=["dora", "pissa", "eva", "lora+", "qlora"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(wide: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = train(job(wide, tmp_path, **changes, output={"dir": str(tmp_path / "whole")}))
    values = job(wide, tmp_path, **changes)
    with pytest.raises(Interrupted):
        train(values, callbacks=(StopAfter(2),))
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000002"
    assert {"trained.safetensors", "adapter_model.safetensors", "adapter_config.json"} <= {
        file.name for file in checkpoint.iterdir()
    }
    assert not (checkpoint / "model.safetensors").exists()
    again = train(values, resume=True)
    assert again.final_loss == whole.final_loss
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert train(values, resume=True) == again  # its report


def test_the_best_weights_of_an_adapter_become_the_result(wide: Path, tmp_path: Path) -> None:
    report = train(job(wide, tmp_path, training={"epochs": 2, "eval_every": 2, "select": "best", "learning_rate": 0.3}))
    best = tmp_path / "out" / "checkpoints" / f"best-{report.selected_step:08d}" / "trained.safetensors"
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, tensor in load_file(best).items():
        assert torch.equal(saved[f"base_model.model.{name}".replace(".default", "")], tensor)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_adapter_is_merged_when_training_is_over(wide: Path, tmp_path: Path, kind: str) -> None:
    base = wide
    if kind == "gguf":
        base = tmp_path / "base.gguf"
        with open_model(PathReference(str(wide))) as stored:
            convert(stored, WeightFormat.GGUF, base)
    formats = {"merge": True, "formats": ["safetensors", "apr"]}
    report = train(job(base, tmp_path, adapter={"rank": 4, "dora": True}, output=formats))
    assert report.merged == "merged"
    assert {"merged", "model.apr", "adapter_model.safetensors"} <= set(report.files)
    merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    # the names of a GGUF's own tensors are llama.cpp's: what it was made of is the same model
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(wide), str(tmp_path / "out")).eval()
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(merged_model(ids).logits, model(ids).logits, rtol=0, atol=2e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "merged")("the fox").input_ids
    assert not (tmp_path / "out" / ".base").exists()
    again = train(job(base, tmp_path, output={"dir": str(tmp_path / "out")}))  # replaces it all
    assert again.merged is None
    assert not (tmp_path / "out" / "merged").exists()


def test_a_plan_says_what_would_train_and_writes_nothing(wide: Path, tmp_path: Path) -> None:
    plan = FineTuneTrainer(parse_finetuning(job(wide, tmp_path, adapter={"method": "ia3", "rank": None}))).plan()
    assert (plan.method, plan.trained_parameters) == ("IA³", 2 * (32 + 32 + 128))
    assert plan.steps == 5
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_trained_is_said(wide: Path, tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    with pytest.raises(UsageError, match="the task cannot be told"):
        train(job(encoder, tmp_path))
    with pytest.raises(ModelError, match="no module q_prj"):
        train(job(wide, tmp_path, adapter={"rank": 4, "target_modules": ["q_prj"]}))
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_student_with_adapters_in_4_bits_learns_from_its_teacher_live_or_cached(wide: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    student = tiny_llama(tmp_path / "student", hidden_size=64, intermediate_size=128, seed=7)
    found = {}
    for name, cache in (("live", {}), ("cached", {"cache": {"memory": "10MB"}})):
        values = {
            "teacher": {"model_id": str(wide), **cache},
            "student": {"model_id": str(student), "lora": {"rank": 4}, "quantization": {"bits": 4}},
            "distillation": {"alpha": 1.0, "temperature": 1.0},
            "dataset": {"path": str(tmp_path / "rows.jsonl"), "max_length": 16},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
            "output": {"dir": str(tmp_path / name)},
        }
        found[name] = distill(parse_config(values))
        before, after = found[name].student_before.kl, found[name].student_scores.kl
        assert before is not None
        assert after is not None
        assert after < 0.9 * before
        assert "adapter_model.safetensors" in found[name].files
    assert found["cached"].final_loss == pytest.approx(found["live"].final_loss, rel=1e-4)
    said = json.loads((tmp_path / "live" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(student)


def test_a_student_with_adapters_learns_from_hidden_states_too(tmp_path: Path) -> None:
    models: Models = build_models(tmp_path / "models")
    values = classification(
        models,
        tmp_path,
        student={"model_id": str(models.small_classifier), "lora": {"rank": 2}, "hidden_size": None, "num_layers": None,
                 "num_heads": None},
        distillation={"progressive": {"layer_mapping": [[0, 1]], "weight": 0.5}},
        training={"baseline": True},
    )  # fmt: skip
    report = distill(parse_config(values))
    assert report.baseline_scores is not None
    assert "adapter_model.safetensors" in report.files
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    lines = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["labels"] == ["LABEL_0", "LABEL_1"]
    assert found["model"].config.id2label == dict(enumerate(found["labels"]))
    assert found["tokenizer"]("a")["input_ids"]
