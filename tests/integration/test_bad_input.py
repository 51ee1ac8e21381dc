"""Bad input ends in one clear error with a hint, status 1 or 2, and nothing half-written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entrenar_distill.cli import main
from tiny_jobs import Models, build_models, classification, language, write_config, write_rows
from tiny_models import CORPUS, tiny_bert, tiny_gguf, tiny_llama

Capture = pytest.CaptureFixture[str]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def refused(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a job that must fail, asserts what all failures have in common, and returns what was said."""
    monkeypatch.delenv("ENTRENAR_DEBUG", raising=False)

    def run(job: dict[str, Any], status: int, *flags: str, command: str = "run") -> str:
        file = write_config(tmp_path / "job.yaml", job)
        before = contents(tmp_path)
        capsys.readouterr()
        assert main([command, str(file), "--json", *flags]) == status
        out, err = capsys.readouterr()
        error = json.loads(err)["error"]
        assert out == ""
        assert error["message"]
        assert error["hint"] or "\n" in error["message"], "no hint"
        assert contents(tmp_path) == before, "something was written"
        assert main([command, str(file), *flags]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1 + error["message"].count("\n")
        return f"{error['message']}\n{error['hint']}"

    return run


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if "cache" not in str(path)}


def test_a_configuration_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert main(["run", str(tmp_path / "none.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "none.yaml" in err
    assert "hint: " in err


@pytest.mark.parametrize("part", ["teacher", "student", "dataset"])
def test_a_model_or_file_that_is_not_there(refused: Refused, models: Models, tmp_path: Path, part: str) -> None:
    missing = str(tmp_path / "nothing_here")
    change: dict[str, dict[str, Any]] = {
        "teacher": {"teacher": {"model_id": missing}},
        "student": {"student": {"model_id": missing, "hidden_size": None, "num_layers": None, "num_heads": None}},
        "dataset": {"dataset": {"path": missing + ".jsonl"}},
    }
    assert "nothing_here" in refused(classification(models, tmp_path, **change[part]), 2)


def test_a_data_set_without_rows(refused: Refused, models: Models, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    assert "rows.jsonl" in refused(classification(models, tmp_path), 2)


def test_a_column_that_is_not_there(refused: Refused, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, dataset={"text_column": "sentence"})
    said = refused(job, 2)
    assert "`sentence`" in said
    assert "text" in said
    assert "sentence" in refused(job, 2, command="validate")


def test_labels_that_the_head_of_the_teacher_does_not_know(refused: Refused, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"row {i}", "label": ("cat", "dog")[i % 2]} for i in range(20)])
    said = refused(classification(models, tmp_path), 1)
    assert "cat" in said


def test_more_classes_than_the_head_of_the_teacher_has(refused: Refused, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"row {i}", "label": i % 3} for i in range(30)])
    assert "2" in refused(classification(models, tmp_path), 1)


def test_two_vocabularies_where_the_loss_compares_tokens(refused: Refused, models: Models, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", tokenizer_texts=CORPUS[:1], vocab_size=300)
    job = language(models, tmp_path) | {"student": {"model_id": str(other)}}
    said = refused(job, 2)
    assert "`student.model_id`: the vocabularies of teacher (320 tokens) and student (300 tokens) differ" in said
    assert "`student.init_from`" in said
    assert refused(job, 2, command="validate") == said


def test_two_vocabularies_are_no_matter_to_a_classifier(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path) | {"student": {"model_id": str(models.other_classifier)}}
    file = write_config(tmp_path / "job.yaml", job)
    assert main(["run", str(file), "-q"]) == 0
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 160, "the student keeps its own tokenizer"


def test_two_vocabularies_are_a_matter_to_a_classifier_that_reads_a_stream(
    refused: Refused, models: Models, tmp_path: Path
) -> None:
    job = classification(models, tmp_path, dataset={"streaming": True, "eval_rows": 8}, training={"max_steps": 2})
    said = refused(job | {"student": {"model_id": str(models.other_classifier)}}, 2)
    assert "the vocabularies of teacher" in said
    assert "remove `dataset.streaming`" in said


def test_a_file_where_the_result_folder_should_be(refused: Refused, models: Models, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for output in ("taken", "taken/below"):
        job = classification(models, tmp_path, output={"dir": str(tmp_path / output)})
        assert "taken" in refused(job, 2)
        assert "taken" in refused(job, 2, command="validate")


def test_a_folder_with_other_files(refused: Refused, models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for flags in ([], ["--force"], ["--resume"]):
        assert "thesis.txt" in refused(classification(models, tmp_path), 2, *flags)


def test_a_complete_run_is_not_replaced_unasked(refused: Refused, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path)
    assert main(["run", str(write_config(tmp_path / "job.yaml", job)), "-q"]) == 0
    said = refused(job, 2)
    assert "complete run" in said
    assert "--force" in said
    assert "--resume" in said


def test_ten_mistakes_are_told_at_once(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        """teacher:
  modelid: a
student:
  hidden_size: 30
  num_layers: 0
  num_heads: 4
distillation:
  temperature: -1
  alpha: 2
dataset:
  path: x.jsonl
  subset: y
training:
  epochs: many
  schedul: linear
  select: best
output:
  keep: 0
  colour: red
"""
    )
    assert main(["validate", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for word in (
        *("modelid", "num_layers", "num_heads", "temperature", "alpha", "subset"),
        *("epochs", "schedul", "select", "keep", "colour"),
    ):
        assert word in err, word
    places = [int(line) for line in re.findall(r"job\.yaml:(\d+)", err)]
    assert len(places) >= 10
    assert places == sorted(places)
    assert main(["run", str(file)]) == 2


def test_a_language_model_does_not_learn_from_a_classifier(refused: Refused, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path) | {"student": {"model_id": str(models.llama)}}
    refused(job | {"task": "causal-lm"}, 2)


def test_a_teacher_without_a_head_knows_nothing_of_the_labels(refused: Refused, models: Models, tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    job = classification(models, tmp_path, teacher={"model_id": str(encoder)}, task="sequence-classification")
    assert "finetune" in refused(job, 2)


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_model_that_sees_what_it_would_predict(
    refused: Refused, models: Models, tmp_path: Path, part: str, head: str, command: str
) -> None:
    folder = str(tiny_bert(tmp_path / "encoder", head=head))
    job = language(models, tmp_path, task="causal-lm") | {part: {"model_id": folder}}
    assert f"the {part} is a bert, which reads a text from both sides" in refused(job, 2, command=command)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([{"name": "attention_kl", "layers": [[0, 0]], "heads": [[0, 99]]}], "losses[0].heads"),
        ([{"name": "minilm", "relation_heads": 7}], "losses[0].relation_heads"),
        ([{"name": "cka", "group_size": 2}], "losses[0].group_size"),
    ],
)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_heads_and_groups_that_cannot_be(
    refused: Refused, models: Models, tmp_path: Path, losses: list[Any], said: str, command: str
) -> None:
    job = language(models, tmp_path, distillation={"losses": losses})
    job["distillation"] = {"losses": losses}
    assert said in refused(job, 2, command=command)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "text": "b", "label": "river"}', "the key `text` is there twice"),
        ('{"text": "a \\ud83d b", "label": "river"}', "half of a character"),
    ],
)
def test_lines_that_are_json_and_cannot_be_rows(
    refused: Refused, models: Models, tmp_path: Path, line: str, said: str
) -> None:
    good = [json.dumps({"text": f"row {index}", "label": "river"}) for index in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*good, line, *good]) + "\n")
    assert f"rows.jsonl:21: {said}" in refused(classification(models, tmp_path), 1)


@pytest.mark.parametrize("setting", ["output.dir", "dataset.path", "teacher.model_id"])
def test_a_name_that_is_longer_than_names_can_be(
    refused: Refused, models: Models, tmp_path: Path, setting: str
) -> None:
    name = f"{setting}={tmp_path}/{'a' * 300}.jsonl"
    said = refused(classification(models, tmp_path), 2, "--set", name, command="validate")
    assert "longer than a name of a file can be" in said


def test_the_rows_that_are_trained_on_do_not_judge(refused: Refused, models: Models, tmp_path: Path) -> None:
    assert "`dataset.eval_split` is the split" in refused(
        classification(models, tmp_path, dataset={"eval_split": "train"}), 2
    )


def test_rows_without_labels_have_nothing_for_the_hard_loss(refused: Refused, models: Models, tmp_path: Path) -> None:
    labels = [{"text": f"row {index}", "label": None} for index in range(30)]
    judged = [{"text": f"row {index}", "label": index % 2} for index in range(30)]
    folder = tmp_path / "data"
    write_rows(folder / "train.jsonl", labels)
    write_rows(folder / "test.jsonl", judged)
    job = classification(models, tmp_path, dataset={"path": str(folder), "eval_split": "test"})
    assert "alpha" in refused(job, 1)


@pytest.mark.parametrize("reader", ["student", "teacher"])
def test_a_length_beyond_the_positions(refused: Refused, models: Models, tmp_path: Path, reader: str) -> None:
    job = classification(models, tmp_path, dataset={"max_length": 129})
    if reader == "student":
        job["student"] = {"model_id": str(models.small_classifier)}
    assert "128" in refused(job, 2)
    assert "128" in refused(job, 2, command="validate")


def test_a_length_that_special_tokens_fill(refused: Refused, models: Models, tmp_path: Path) -> None:
    said = refused(classification(models, tmp_path, dataset={"max_length": 2}), 2)
    assert "`dataset.max_length` 2 leaves no room" in said
    assert "set it to 3 or more" in said


def test_half_precision_floats_on_the_processor(refused: Refused, models: Models, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "fp16" in refused(classification(models, tmp_path, training={"mixed_precision": "fp16"}), 2)


def test_a_tracker_that_is_not_installed(refused: Refused, models: Models, tmp_path: Path) -> None:
    assert "comet_ml" in refused(classification(models, tmp_path, training={"trackers": ["comet_ml"]}), 2)


def test_pickles_are_not_read_unless_allowed(refused: Refused, models: Models, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tiny_bert(tmp_path / "pickled", num_labels=2)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    job = classification(models, tmp_path, teacher={"model_id": str(folder)})
    assert "pickle" in refused(job, 2)
    job["teacher"]["allow_pickle"] = True
    assert main(["run", str(write_config(tmp_path / "job.yaml", job)), "-q"]) == 0


def test_several_ggufs_and_no_choice(refused: Refused, models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "ggufs"
    for name in ("small.gguf", "large.gguf"):
        tiny_gguf(folder / name)
    said = refused(language(models, tmp_path, teacher={"model_id": str(folder), "format": "gguf"}), 2)
    assert "small.gguf" in said
    assert "large.gguf" in said


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(
    models: Models, tmp_path: Path, capsys: Capture
) -> None:
    training = {"learning_rate": 1e30, "max_grad_norm": None, "schedule": "constant", "epochs": 3}
    job = language(models, tmp_path, training=training, output={"checkpoint_every": 1})
    job["training"]["max_grad_norm"] = None
    assert main(["run", str(write_config(tmp_path / "job.yaml", job))]) == 1
    err = capsys.readouterr().err
    assert re.search(
        r"error: the (loss|gradient norm|largest weight) is (nan|inf) at step \d+, in the batch of rows \d+", err
    )
    assert re.search(r"the last good checkpoint is .*step-\d{8}", err)
    assert "hint: " in err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "out" / "model.safetensors").exists()
