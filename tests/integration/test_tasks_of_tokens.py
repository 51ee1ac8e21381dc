"""Masked language models and taggers of words, from a configuration to a folder that transformers loads."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.training.run_folder import read_metrics
from entrenar_distill.cli import main
from tiny_jobs import merged
from tiny_models import CORPUS, tiny_bert, tiny_gpt2, tiny_llama
from tiny_runs import WORDS, log, losses, manifest, run, start, wait_until, weights

MASKED, TAGGED = "masked-lm", "token-classification"
TAGS = ("B-X", "I-X", "O")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that are sure of themselves, their students, and models that can do neither task."""
    folder = tmp_path_factory.mktemp("models")
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {name: index for index, name in enumerate(TAGS)}}
    for task, head, settings in ((MASKED, "MaskedLM", {}), (TAGGED, "TokenClassification", labels | {"num_labels": 3})):
        tiny_bert(folder / task / "teacher", head=head, seed=1, initializer_range=0.4, **settings)  # type: ignore[arg-type]
        tiny_bert(folder / task / "student", head=head, seed=2, num_hidden_layers=1, **settings)  # type: ignore[arg-type]
    tiny_bert(folder / "bare")
    tiny_bert(folder / "other", head="MaskedLM", tokenizer_texts=CORPUS[:1], vocab_size=160)
    tiny_llama(folder / "llama")
    tiny_gpt2(folder / "gpt2")
    return folder


def written_rows(file: Path, task: str, num_rows: int = 36) -> Path:
    """Ragged rows; of tagged words every fourth row has no tag, and others lack some."""
    chance, rows = random.Random(3), []
    for index in range(num_rows):
        words = chance.choices(WORDS, k=chance.randint(2, 12))
        tags = [chance.choice([*TAGS, None]) for _ in words]
        tags[0] = "O"
        row = {"text": " ".join(words)} if task == MASKED else {"tokens": words, "tags": tags if index % 4 else None}
        rows.append(row)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def job(folder: Path, models: Path, task: str, /, **changes: Any) -> Path:
    """A configuration in the folder, whose output is `out` beside it."""
    folder.mkdir(exist_ok=True, parents=True)
    config: dict[str, Any] = {
        "teacher": {"model_id": str(models / task / "teacher")},
        "student": {"model_id": str(models / task / "student"), "dropout": 0.2},
        "dataset": {"path": str(written_rows(folder / "rows.jsonl", task)), "max_length": 24, "eval_fraction": 0.2},
        "training": {"epochs": 3, "batch_size": 6, "learning_rate": 0.003, "log_every": 1},
        "output": {"dir": str(folder / "out"), "checkpoint_every": 2},
    }
    if task == TAGGED:
        config["dataset"]["label_column"] = "tags"
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(merged(config, changes)))
    return file


def report(file: Path, capsys: Capture, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["run", str(file), "--json", *flags]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(file: Path, capsys: Capture, command: str, status: int) -> str:
    before = set(file.parent.rglob("*"))
    capsys.readouterr()
    assert main([command, str(file), "--json"]) == status
    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert out == ""
    assert set(file.parent.rglob("*")) == before, "something was written"
    return f"{error['message']}\n{error['hint']}"


@pytest.mark.slow
def test_a_masked_language_model_is_distilled(models: Path, tmp_path: Path, capsys: Capture) -> None:
    from transformers import pipeline

    made = report(job(tmp_path, models, MASKED, training={"baseline": True}), capsys)
    assert made["task"] == MASKED, "not found from the models"
    assert (made["majority_accuracy"], made["labelled_rows"], made["perplexity_ratio"]) == (None, None, None)
    for name in ("teacher_scores", "student_scores", "student_before", "baseline_scores"):
        scores = made[name]
        assert scores["perplexity"] is scores["entity_f1"] is None
        assert scores["examples"] == made["eval_rows"] == 7
        assert scores["targets"] == made["teacher_scores"]["targets"] >= 7, "other tokens are masked"
        assert (
            (scores["kl"] is None) == (scores["agreement"] is None) == (name in ("teacher_scores", "baseline_scores"))
        )
    assert made["student_scores"]["kl"] < made["student_before"]["kl"]
    filled = pipeline("fill-mask", model=str(tmp_path / "out"))("the quick [MASK] fox")
    assert len(filled) == 5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card
    assert "AutoModelForMaskedLM.from_pretrained" in card
    assert f"| student, distilled | {made['student_scores']['cross_entropy']:.3f} |" in card


def test_a_tagger_of_words_is_distilled(models: Path, tmp_path: Path, capsys: Capture) -> None:
    from transformers import pipeline

    file = job(tmp_path, models, TAGGED, training={"baseline": True})
    made = report(file, capsys)
    assert made["task"] == TAGGED
    assert made["eval_rows"] == 5, "a fifth of the labelled rows"
    assert made["labelled_rows"] == 22
    for name in ("teacher_scores", "student_scores", "student_before", "baseline_scores"):
        assert 0 <= made[name]["entity_f1"] <= 1
        assert made[name]["perplexity"] is None
    assert made["student_scores"]["kl"] < made["student_before"]["kl"]
    taught, learnt = (made[name]["entity_f1"] for name in ("teacher_scores", "student_scores"))
    assert made["retention"] == (learnt / taught if taught else None)
    found = pipeline("token-classification", model=str(tmp_path / "out"))("the quick brown fox")
    assert {word["entity"] for word in found} <= set(TAGS)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| | accuracy | entity F1 | agreement with the teacher |" in card
    assert "pipeline_tag: token-classification" in card
    shown = main(["run", str(file), "--resume"]), capsys.readouterr().out
    assert shown[0] == 0
    assert "entity F1" in shown[1]


@pytest.mark.parametrize("task", [MASKED, TAGGED])
def test_validate_and_a_dry_run_write_nothing(models: Path, tmp_path: Path, capsys: Capture, task: str) -> None:
    file = job(tmp_path, models, task)
    assert main(["validate", str(file)]) == 0, capsys.readouterr().err
    assert "skipped" not in capsys.readouterr().out
    plan = report(file, capsys, "--dry-run")
    assert (plan["task"], plan["steps"]) == (task, {MASKED: 15, TAGGED: 18}[task])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scores_count_the_same_words_whatever_the_batch(models: Path, tmp_path: Path, capsys: Capture) -> None:
    """Sums over batches: entities of a row never depend on the rows beside it."""
    made = [
        report(job(tmp_path / str(size), models, TAGGED, training={"max_steps": 1, "eval_batch_size": size}), capsys)
        for size in (1, 3, 32)
    ]
    for name in ("targets", "accuracy", "entity_f1"):
        assert len({scores["teacher_scores"][name] for scores in made}) == 1


@pytest.mark.slow
def test_a_teacher_without_a_head_is_fitted_to_the_tags(
    models: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "kept"))
    fitted = {"model_id": str(models / "bare"), "finetune": {"method": "full", "epochs": 2, "learning_rate": 0.01}}
    file = job(tmp_path, models, TAGGED, teacher=fitted, task=TAGGED, dataset={"labelled_rows": 12})
    made = report(file, capsys)
    assert made["labelled_rows"] == 12
    assert main(["run", str(file), "--force", "--set", "training.max_steps=1"]) == 0
    assert "reusing the teacher fitted before" in capsys.readouterr().err
    assert len(list((tmp_path / "kept" / "teachers").glob("*/model"))) == 1


@pytest.mark.parametrize(
    "student", [{"init_from": {"teacher_layers": 1}}, {"hidden_size": 16, "num_layers": 1, "num_heads": 2}]
)
@pytest.mark.parametrize("task", [MASKED, TAGGED])
def test_students_can_be_built(
    models: Path, tmp_path: Path, capsys: Capture, task: str, student: dict[str, Any]
) -> None:
    config = yaml.safe_load(job(tmp_path, models, task, training={"max_steps": 2}).read_text()) | {"student": student}
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump(config))
    made = report(file, capsys)
    assert made["task"] == task
    assert made["student"]["parameters"] < made["teacher"]["parameters"]


@pytest.mark.slow
def test_masks_are_others_in_every_epoch_and_a_stream_is_masked_too(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    """With a learning rate of nothing, the loss of a whole epoch moves with the masks alone."""
    still = {"batch_size": 36, "learning_rate": 1e-12, "epochs": 2}
    stream = {"streaming": True, "eval_rows": 6, "eval_fraction": None}
    for name, dataset in (("stored", {}), ("streamed", stream)):
        file = job(tmp_path / name, models, MASKED, training=still, dataset=dataset, student={"dropout": 0.0})
        report(file, capsys)
        first, second = losses(file)
        assert abs(first - second) > 1e-4, "the order of rows alone moves it by 1e-6"


@pytest.mark.slow
@pytest.mark.parametrize("task", [MASKED, TAGGED])
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(models: Path, tmp_path: Path, task: str) -> None:
    changes = {"training": {"eval_every": 3, "select": "best", "baseline": True}}
    unbroken = job(tmp_path / "unbroken", models, task, **changes)
    assert run(unbroken) == 0, log(unbroken)
    broken = job(tmp_path / "broken", models, task, **changes)
    process = start(broken)
    assert wait_until(lambda: (tmp_path / "broken/out/checkpoints/step-00000006").is_dir(), process)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert manifest(broken)["status"] == "running"
    assert run(broken, "--resume") == 0, log(broken)
    assert weights(broken) == weights(unbroken)
    assert losses(broken) == losses(unbroken)
    evaluations = [
        [line["evaluation"] for line in read_metrics(file.parent / "out" / "metrics.jsonl") if "evaluation" in line]
        for file in (broken, unbroken)
    ]
    assert evaluations[0] == evaluations[1]


def test_a_tokenizer_without_a_mask_token_is_named(models: Path, tmp_path: Path, capsys: Capture) -> None:
    import shutil

    copy = tmp_path / "maskless"
    for part in ("teacher", "student"):
        shutil.copytree(models / MASKED / part, copy / part)
        file = copy / part / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        settings.pop("mask_token")
        file.write_text(json.dumps(settings))
    sides = {part: {"model_id": str(copy / part)} for part in ("teacher", "student")}
    said = refused(job(tmp_path, models, MASKED, **sides), capsys, "run", 1)
    assert f"the tokenizer of {copy / 'student'} has no mask token" in said
    assert "name its token as `mask_token` in its tokenizer_config.json" in said


@pytest.mark.parametrize(
    ("task", "teacher", "message"),
    [
        (MASKED, "bare", "{teacher} has no trained head for masked tokens"),
        (MASKED, "llama", "{teacher} has no trained head for masked tokens"),
        (TAGGED, "bare", "{teacher} has no trained head that tags words, so it knows nothing of these tags"),
        (TAGGED, f"{MASKED}/teacher", "{teacher} has no trained head that tags words"),
    ],
)
def test_a_teacher_that_cannot_do_the_task_is_refused(
    models: Path, tmp_path: Path, capsys: Capture, task: str, teacher: str, message: str
) -> None:
    name = str(models / teacher)
    built = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "model_id": None, "dropout": None}
    file = job(tmp_path, models, task, task=task, teacher={"model_id": name}, student=built)
    for command in ("validate", "run"):
        assert message.format(teacher=name) in refused(file, capsys, command, 2)


def test_a_decoder_is_no_student_of_masked_tokens(models: Path, tmp_path: Path, capsys: Capture) -> None:
    built = {"architecture": "llama", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "model_id": None}
    file = job(tmp_path, models, MASKED, student=built)
    for command in ("validate", "run"):
        said = refused(file, capsys, command, 2)
        assert "llama reads a text from the left alone, so it cannot learn masked-lm" in said


@pytest.mark.parametrize("named", [True, False])
def test_a_probe_tags_no_words(models: Path, tmp_path: Path, capsys: Capture, named: bool) -> None:
    fitted = {"model_id": str(models / TAGGED / "teacher"), "finetune": {"method": "probe"}}
    file = job(tmp_path, models, TAGGED, teacher=fitted, **({"task": TAGGED} if named else {}))
    for command in ("validate", "run"):
        assert "reads one vector of a whole text, and words are tagged" in refused(file, capsys, command, 2)


@pytest.mark.parametrize(
    ("task", "dataset", "message"),
    [
        (MASKED, {"text_column": "words"}, "the data has no column `words`"),
        (MASKED, {"labelled_rows": 3}, "`dataset.labelled_rows` is about classes, and masked-lm has none"),
        (MASKED, {"mask_probability": 1.5}, "`dataset.mask_probability` should be a number between 0 and 1"),
        (TAGGED, {"tokens_column": "text"}, "the data has no column `text`"),
        (TAGGED, {"label_column": "ner_tags"}, "the data has no column `ner_tags`"),
        (TAGGED, {"mask_probability": 0.2}, "`dataset.mask_probability` is for masked-lm"),
        (TAGGED, {"streaming": True, "eval_fraction": None}, "`dataset.streaming` is not for token-classification"),
    ],
)
def test_settings_of_the_data_that_do_not_suit_are_told(
    models: Path, tmp_path: Path, capsys: Capture, task: str, dataset: dict[str, Any], message: str
) -> None:
    file = job(tmp_path, models, task, dataset=dataset)
    for command in ("validate", "run"):
        assert message in refused(file, capsys, command, 2)


def test_a_tag_that_the_teacher_does_not_know_is_told(models: Path, tmp_path: Path, capsys: Capture) -> None:
    file = job(tmp_path, models, TAGGED)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"I-X"', '"I-Z"'))
    said = refused(file, capsys, "run", 1)
    assert "label 'I-Z' in column `tags` is unknown to the model's head, which has B-X, I-X, O" in said


def test_two_vocabularies_are_refused_where_masked_tokens_are_compared(
    models: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = job(tmp_path, models, MASKED, student={"model_id": str(models / "other")})
    for command in ("validate", "run"):
        said = refused(file, capsys, command, 2)
        assert "the vocabularies of teacher" in said
        assert "or remove" not in said
