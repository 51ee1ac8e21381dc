"""The result folder: it loads in transformers, scores what the report says, and its files agree with each other."""

import json
import math
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.data.sources import load_rows
from entrenar_distill.cli import main
from tiny_jobs import ANIMALS, PLACES, Models, build_models, classification, language, write_config, write_rows
from tiny_models import tiny_bert

pytestmark = pytest.mark.slow

FILES = {"README.md", "config.json", "loss.svg", "metrics.jsonl", "model.safetensors", "report.json", "run.json"}
FITTED = {"method": "full", "epochs": 6, "learning_rate": 0.01, "batch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(job: dict[str, Any], **how: Any) -> RunReport:
    return distill(parse_config(job), **how)


def evaluation_texts(job: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The held-out rows, as the data set's own tests prove them to be."""
    config = parse_config(job)
    rows = load_rows(config.dataset, task="sequence-classification", seed=config.training.seed).evaluation
    return list(rows["text"]), list(rows["label"])


def test_a_classifier_gives_the_accuracy_of_the_report(models: Models, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    job = classification(models, tmp_path, training={"epochs": 12}, dataset={"eval_fraction": 0.5})
    report = run(job)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    right, nats, agreeing = 0, 0.0, 0
    teacher = AutoModelForSequenceClassification.from_pretrained(models.classifier).eval()
    texts, labels = evaluation_texts(job)
    for text, label in zip(texts, labels, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            logits_C, teacher_C = model(**inputs).logits[0], teacher(**inputs).logits[0]
        right += int(logits_C.argmax() == label)
        nats -= logits_C.log_softmax(-1)[label].item()
        agreeing += int(logits_C.argmax() == teacher_C.argmax())
    assert report.eval_rows == report.student_scores.targets == len(texts) == 20
    assert report.student_scores.accuracy == pytest.approx(right / len(texts))
    assert report.student_scores.cross_entropy == pytest.approx(nats / len(texts), rel=1e-4)
    assert report.student_scores.agreement == pytest.approx(agreeing / len(texts))
    assert report.retention == pytest.approx(report.student_scores.accuracy / report.teacher_scores.accuracy)
    assert report.student_scores.accuracy > report.student_before.accuracy


def test_a_language_model_gives_the_perplexity_of_the_report(models: Models, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "data"
    write_rows(folder / "train.jsonl")
    held_out = [f"{ANIMALS} {index}" for index in range(3)] + [f"{PLACES} {index}" for index in range(3)]
    write_rows(folder / "test.jsonl", [{"text": text} for text in held_out])
    job = language(models, tmp_path, dataset={"path": str(folder), "eval_split": "test", "max_length": 32})
    report = run(job)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    nats, tokens = 0.0, 0
    for text in held_out:
        ids_T = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        if ids_T[-1] != tokenizer.eos_token_id and len(ids_T) < 32:
            ids_T = [*ids_T, tokenizer.eos_token_id]
        ids_BT = torch.tensor([ids_T])
        with torch.no_grad():
            nats += model(input_ids=ids_BT, labels=ids_BT).loss.item() * (len(ids_T) - 1)
        tokens += len(ids_T) - 1
    assert report.student_scores.targets == tokens
    assert report.student_scores.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert report.student_scores.perplexity < report.student_before.perplexity  # type: ignore[operator]
    assert report.perplexity_ratio == pytest.approx(
        report.student_scores.perplexity / report.teacher_scores.perplexity  # type: ignore[operator]
    )
    assert report.retention is None
    assert report.final_loss < report.initial_loss


def test_the_files_agree_with_each_other(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = classification(models, tmp_path, training={"epochs": 2, "log_every": 1, "eval_every": 5})
    assert main(["run", str(write_config(tmp_path / "job.yaml", job)), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert json.loads((out / "report.json").read_text()) == printed
    assert {path.name for path in out.iterdir() if path.is_file() and path.name != ".lock"} == set(printed["files"])
    assert set(printed["files"]) >= FILES
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name == ".result"]

    manifest = json.loads((out / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["config"]["training"]["epochs"] == 2
    assert len(manifest["fingerprints"]["teacher"]) == len(manifest["fingerprints"]["data"]) == 64

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == list(range(1, 11))
    assert (losses[1], losses[10]) == (printed["initial_loss"], printed["final_loss"])
    scores = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert list(scores) == [0, 5, 10]
    assert (scores[0], scores[10]) == (printed["student_before"], printed["student_scores"])

    svg = xml.etree.ElementTree.parse(out / "loss.svg").getroot()
    assert svg.tag.endswith("svg")
    assert printed["student"]["weight_bytes"] == (out / "model.safetensors").stat().st_size


def test_the_card_states_the_facts(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"baseline": True})
    report = run(job)
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-classification"
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert report.baseline_scores is not None
    for fact in (
        str(models.classifier),
        "36 training rows",
        "AutoModelForSequenceClassification",
        f"| teacher | {report.teacher_scores.accuracy:.1%}",
        f"| student, distilled | {report.student_scores.accuracy:.1%} | {report.student_scores.agreement:.1%} |",
        f"| student, without a teacher | {report.baseline_scores.accuracy:.1%}",
        f"| majority class | {report.majority_accuracy:.1%}",
        *report.warnings,
    ):
        assert fact in text, fact
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == job


def test_no_weights_of_the_teacher_are_in_the_result(models: Models, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run(classification(models, tmp_path))
    student, teacher = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models.classifier))
    assert max(tensor.shape[-1] for name, tensor in student.items() if "LayerNorm" in name) == 16
    assert not [name for name in student if "teacher" in name or "layer.1." in name]
    assert not [
        name
        for name, tensor in student.items()
        if name in teacher
        and tensor.shape == teacher[name].shape
        and tensor.any()
        and tensor.equal(teacher[name])
        and not tensor.eq(tensor.flatten()[0]).all()
    ]


def test_a_student_of_given_sizes_has_them(models: Models, tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_layers": 3, "num_heads": 3, "intermediate_size": 40}
    report = run(classification(models, tmp_path, student=sizes, training={"max_steps": 1}))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (24, 3)
    assert (config["num_attention_heads"], config["intermediate_size"]) == (3, 40)
    assert config["model_type"] == "bert"
    assert (
        report.student.parameters == json.loads((tmp_path / "out" / "report.json").read_text())["student"]["parameters"]
    )


def test_a_student_of_all_layers_starts_as_its_teacher(models: Models, tmp_path: Path) -> None:
    student = {"student": {"init_from": {"teacher_layers": [0, 1]}}}
    report = run(classification(models, tmp_path, training={"max_steps": 1}) | student)
    assert report.student_before.kl == pytest.approx(0, abs=1e-6)
    assert report.student_before.agreement == 1
    assert report.student.parameters == report.teacher.parameters


def test_a_teacher_that_is_no_better_than_the_student_alone_is_told(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"baseline": True, "epochs": 8}, dataset={"eval_fraction": 0.5})
    report = run(job)
    assert report.baseline_scores is not None
    assert report.teacher_scores.accuracy < report.baseline_scores.accuracy
    assert any("the teacher is no better than the student trained without it" in text for text in report.warnings)
    assert any("one seed" in text for text in report.warnings)
    assert report.warnings[0] in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "finetune",
    [
        {"method": "probe"},
        pytest.param(
            {"method": "head", "learning_rate": 0.05, "epochs": 6, "batch_size": 8}, marks=pytest.mark.nightly
        ),
        FITTED,
    ],
)
def test_a_fitted_teacher_knows_the_data_and_is_kept(
    models: Models, tmp_path: Path, home: Path, finetune: dict[str, Any]
) -> None:
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # six epochs of a few rows are few
    encoder = tiny_bert(tmp_path / "encoder", initializer_range=0.3, **calm)
    job = classification(
        models, tmp_path, teacher={"model_id": str(encoder), "finetune": finetune}, training={"max_steps": 1}
    )
    job["dataset"]["eval_fraction"] = 0.5
    first = run(job)
    assert first.majority_accuracy is not None
    assert first.teacher_scores.accuracy > first.majority_accuracy + 0.2
    kept = times(home)
    assert kept
    second = run(job, force=True)
    assert times(home) == kept, "it was fitted again"
    assert second.teacher_scores == first.teacher_scores
    assert second.student_scores == first.student_scores


@pytest.mark.parametrize("finetune", [None, FITTED])
def test_the_rival_without_a_teacher_starts_from_the_same_weights(
    models: Models, tmp_path: Path, finetune: dict[str, Any] | None
) -> None:
    job = classification(models, tmp_path, training={"baseline": True, "max_steps": 1, "learning_rate": 1e-20})
    job["teacher"] |= {"dtype": "bfloat16", "finetune": finetune}
    job["student"] = {"init_from": {"teacher_layers": 1}}
    report = run(job)
    assert report.baseline_scores is not None
    assert report.baseline_scores.cross_entropy == report.student_before.cross_entropy


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
    "change", ["data", *(pytest.param(other, marks=pytest.mark.nightly) for other in ("seed", "weights", "settings"))]
)
def test_a_fitted_teacher_is_fitted_again_when_what_made_it_changes(
    models: Models, tmp_path: Path, home: Path, change: str
) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    job = classification(
        models, tmp_path, teacher={"model_id": str(encoder), "finetune": {"method": "probe", "l2": 0.1}}
    )
    job["training"] |= {"max_steps": 1}
    run(job)
    if change == "data":
        rows = [json.loads(line) for line in Path(job["dataset"]["path"]).read_text().splitlines()]
        write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "one more fox", "label": 0}] * 2)
    elif change == "seed":
        job["training"] |= {"seed": 7}
    elif change == "weights":
        tiny_bert(tmp_path / "encoder", seed=5)
    else:
        job["teacher"]["finetune"]["l2"] = 0.2
    before = times(home)
    run(job, force=True)
    assert len(times(home)) == len(before) + 1
