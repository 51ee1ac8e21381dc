"""`diagnose` as a person meets it: what it finds of real tiny models, and that it trains and writes nothing."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import scipy.special
import torch
from safetensors.torch import load_file, save_file

from entrenar_core import parse_config
from entrenar_core.diagnosis import Diagnosis
from entrenar_core.diagnosis.looking import configured_temperatures, look
from entrenar_core.losses.layer_mapping import pairs_by_cka
from tiny_jobs import Models, classification, language, merged, write_config, write_rows
from tiny_models import tiny_bert

Program = Callable[[Sequence[str] | None], int]
Capture = pytest.CaptureFixture[str]
PROBE = {"finetune": {"method": "probe"}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is sure of itself."""
    return tiny_bert(tmp_path_factory.mktemp("sharp") / "teacher", num_labels=2, seed=5, initializer_range=0.4)


def document(program: Program, capsys: Capture, *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert program([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_diagnose_keeps_the_promises_of_all_modes(
    program: Program, check_output: Callable[..., Any], models: Models, sharp: Path, tmp_path: Path
) -> None:
    job = classification(models, tmp_path, teacher={"model_id": str(sharp)})
    config = write_config(tmp_path / "distill.yaml", job)
    before = files(tmp_path)
    report = check_output(
        program,
        ["diagnose", str(config)],
        values={"config": str(config)},
        shows=[
            "Teacher of sequence-classification", "4 evaluation rows of rows.jsonl, 2 classes", "193 tokens",
            "The teacher by temperature", "effective support", "configured", "KL(teacher ‖ student)",
            "Layers that see the tokens alike", "[0, ", "no trouble shows", "nothing was trained",
        ],
        lines=[f"Teacher\t{sharp}", "✓ nothing\tno trouble shows before training\t"],
        quiet=[],
    )  # fmt: skip
    found = report["diagnosis"]
    assert report["vocabulary"]["verdict"] == "identical"
    assert (found["rows"], found["targets"], found["classes"]) == (4, 4, 2)
    assert [at["temperature"] for at in found["by_temperature"]] == [1, 2, 4, 8]
    assert found["by_temperature"][0]["top_mass"].keys() == {"1"}
    assert found["configured_temperatures"] == [2.0]
    assert [len(row) for row in found["layers"]["cka"]] == [2]
    assert found["layers"]["by_cka"] == [list(pair) for pair in pairs_by_cka(found["layers"]["cka"])]
    assert found["layers"]["uniform"] == [[0, 1]]
    assert found["troubles"] == []
    assert files(tmp_path) == before


def test_what_is_found_of_a_classifier_is_what_transformers_says(
    program: Program, capsys: Capture, models: Models, sharp: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [{"text": f"the quick brown fox {index}", "label": index % 2} for index in range(12)]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    write_rows(tmp_path / "data" / "test.jsonl", rows[::-1])
    dataset = {"path": str(tmp_path / "data"), "eval_split": "test"}
    job = classification(models, tmp_path, teacher={"model_id": str(sharp)}, dataset=dataset)
    job["student"] = {"model_id": str(models.small_classifier)}
    config = write_config(tmp_path / "distill.yaml", job)
    found = document(program, capsys, "diagnose", config, "--rows", 7)["diagnosis"]
    tokenizer = AutoTokenizer.from_pretrained(sharp)
    logits: dict[Path, list[Any]] = {sharp: [], models.small_classifier: []}
    for folder, said in logits.items():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        for row in rows[::-1][:7]:
            inputs = tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)
            with torch.no_grad():
                said.append(model(**inputs).logits[0].double().numpy())
    labels = [row["label"] for row in rows[::-1][:7]]
    log_p, log_q = (scipy.special.log_softmax(said, -1) for said in logits.values())
    assert (found["rows"], found["on_labels"]["labels"]) == (7, 7)
    assert found["on_labels"]["accuracy"] == pytest.approx(sum(log_p.argmax(-1) == labels) / 7)
    nats = -sum(log_p[index][label] for index, label in enumerate(labels)) / 7
    assert found["on_labels"]["cross_entropy"] == pytest.approx(nats, rel=1e-4)
    kl = scipy.special.rel_entr(*(scipy.special.softmax(said, -1) for said in logits.values())).sum(-1).mean()
    assert found["student_before"]["kl"] == pytest.approx(kl, rel=1e-3)
    assert found["student_before"]["agreement"] == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).mean())


@pytest.mark.parametrize("always", ["no", "yes"])
def test_a_teacher_that_knows_less_than_the_commonest_class_is_a_finding(
    program: Program, capsys: Capture, models: Models, tmp_path: Path, always: str
) -> None:
    """One that always says the commonest class knows as much, and one that never says it knows less."""
    rows = [{"text": f"the quick fox jumps over {index} dogs", "label": "no"} for index in range(200)]
    rows += [{"text": f"a lazy dog {index}", "label": "yes"} for index in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    classes = {"no": 0, "yes": 1}
    teacher = tiny_bert(
        tmp_path / "teacher", num_labels=2, id2label={0: "no", 1: "yes"}, label2id=classes, initializer_range=0.2
    )
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.bias"][classes[always]] += 50
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    job = classification(models, tmp_path, teacher={"model_id": str(teacher)}, dataset={"eval_fraction": 0.5})
    found = document(program, capsys, "diagnose", write_config(tmp_path / "job.yaml", job))["diagnosis"]
    assert found["on_labels"]["accuracy"] == pytest.approx(0.98 if always == "no" else 0.02, abs=0.02)
    weak = [trouble["name"] for trouble in found["troubles"] if trouble["name"] == "weak teacher"]
    assert weak == ([] if always == "no" else ["weak teacher"])


def test_a_language_model_is_looked_at_token_by_token(
    program: Program, capsys: Capture, models: Models, tmp_path: Path
) -> None:
    job = language(models, tmp_path, distillation={"temperature": {"schedule": "linear", "start": 3.0, "end": 1.0}})
    config = write_config(tmp_path / "lm.yaml", job)
    report = document(program, capsys, "diagnose", config)
    found = report["diagnosis"]
    assert found["task"] == "causal-lm"
    assert found["classes"] == report["vocabulary"]["length"] == 320
    assert found["targets"] == found["on_labels"]["labels"] > found["rows"]
    assert found["configured_temperatures"] == [1.0, 3.0]
    assert [at["temperature"] for at in found["by_temperature"]] == [1, 2, 3, 4, 8]
    assert list(found["by_temperature"][0]["top_mass"]) == ["1", "5", "10", "100"]
    assert found["student_before"]["top_k"] == 10
    # its first layer is the teacher's first, which it was copied from, or its last
    assert max(found["layers"]["cka"][0]) == pytest.approx(1.0, abs=1e-3)
    assert [trouble["name"] for trouble in found["troubles"]] == ["undecided teacher"]  # it was never trained
    assert program(["diagnose", str(config), "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == ["undecided teacher"]


def test_a_temperature_that_flattens_the_teacher_is_a_finding(
    program: Program, capsys: Capture, models: Models, sharp: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "d.yaml", classification(models, tmp_path, teacher={"model_id": str(sharp)}))
    flags = ["--set", "distillation.temperature=500", "--student", models.small_classifier]
    file = json.loads(config.read_text())
    file["student"] = {"model_id": "there/is-none"}
    write_config(config, file)
    found = document(program, capsys, "diagnose", config, *flags)["diagnosis"]
    assert [trouble["name"] for trouble in found["troubles"]] == ["flat temperature"]
    assert found["student"] == str(models.small_classifier)
    assert program(["diagnose", str(config), *map(str, flags)]) == 0
    assert "flat temperature" in capsys.readouterr().out


def test_a_probe_is_fitted_for_the_occasion_and_not_kept(
    program: Program, capsys: Capture, models: Models, home: Path, tmp_path: Path
) -> None:
    job = classification(models, tmp_path, teacher={"model_id": str(models.classifier), **PROBE})
    job["student"] = {"model_id": str(models.small_classifier)}
    config = write_config(tmp_path / "probe.yaml", job)
    fresh = document(program, capsys, "diagnose", config)["diagnosis"]
    assert not home.exists()
    assert fresh["layers"] is not None
    assert program(["run", str(config)]) == 0
    kept = files(home)
    assert document(program, capsys, "diagnose", config)["diagnosis"] == fresh
    assert files(home) == kept


def test_a_teacher_that_would_be_trained_first_is_looked_at_once_it_is(
    program: Program, capsys: Capture, models: Models, home: Path, tmp_path: Path
) -> None:
    finetune = {"method": "head", "epochs": 1}
    job = classification(models, tmp_path, teacher={"model_id": str(models.classifier), "finetune": finetune})
    config = write_config(tmp_path / "head.yaml", job)
    assert program(["diagnose", str(config)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "`teacher.finetune: {method: head}` trains the teacher first" in err
    assert "hint: give the configuration to `entrenar-distill run` once" in err
    assert not home.exists()
    assert program(["run", str(config)]) == 0
    report = document(program, capsys, "run", config, "--resume")
    labels = document(program, capsys, "diagnose", config)["diagnosis"]["on_labels"]
    assert labels["cross_entropy"] == pytest.approx(report["teacher_scores"]["cross_entropy"], rel=1e-4)
    assert labels["accuracy"] == report["teacher_scores"]["accuracy"]


def test_layers_of_other_vocabularies_are_not_compared(
    program: Program, capsys: Capture, models: Models, tmp_path: Path
) -> None:
    job = merged(classification(models, tmp_path), {"student": dict.fromkeys(("hidden_size", "num_layers"))})
    job["student"] = {"model_id": str(models.other_classifier)}
    config = write_config(tmp_path / "other.yaml", job)
    report = document(program, capsys, "diagnose", config)
    assert report["vocabulary"]["verdict"] == "differing"
    assert report["diagnosis"]["layers"] is None
    assert "the vocabularies differ" in report["diagnosis"]["layers_skipped"]
    assert program(["diagnose", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "not compared: the vocabularies differ" in shown
    assert "differing: teacher 193 tokens, student 160" in shown


def test_a_deeper_student_has_no_mapping(program: Program, capsys: Capture, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, student={"num_layers": 3})
    config = write_config(tmp_path / "deep.yaml", job)
    layers = document(program, capsys, "diagnose", config)["diagnosis"]["layers"]
    assert (len(layers["cka"]), layers["by_cka"], layers["uniform"]) == (3, None, None)
    assert program(["diagnose", str(config)]) == 0
    assert "the student has more layers than the teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["diagnose"], "no configuration is given"),
        (["diagnose", "{config}x"], "did you mean"),
        (["diagnose", "{config}", "--rows", "0"], "--rows"),
        (["diagnose", "{config}", "--set", "training.epoch=1"], "is not a setting"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    program: Program, capsys: Capture, models: Models, tmp_path: Path, argv: list[str], message: str
) -> None:
    config = write_config(tmp_path / "distill.yaml", classification(models, tmp_path))
    assert program([item.format(config=config) for item in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err


def test_it_is_a_function_too(models: Models, tmp_path: Path) -> None:
    config = parse_config(classification(models, tmp_path))
    found, vocabulary = look(config, rows=2)
    assert isinstance(found, Diagnosis)
    assert (found.rows, vocabulary.verdict) == (2, "identical")
    assert found.advice.target_support == pytest.approx(math.sqrt(2))
    with pytest.raises(ValueError, match="rows must be positive, got 0"):
        look(config, rows=0)


def test_the_temperatures_of_all_losses_are_looked_at(models: Models, tmp_path: Path) -> None:
    moving = {"schedule": "cosine", "start": 5.0, "end": 2.0, "warmup_from": 8.0, "warmup_steps": 1}
    losses = [
        {"name": "forward_kl", "temperature": moving}, {"name": "jsd"}, {"name": "cross_entropy"},
        {"name": "reverse_kl", "temperature": 3.0, "weight": 0.0},
    ]  # fmt: skip
    job = classification(models, tmp_path, distillation={"losses": losses, "temperature": 4.0})
    assert configured_temperatures(parse_config(job).distillation) == (2.0, 4.0, 5.0, 8.0)
