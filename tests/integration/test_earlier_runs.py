"""Runs that have been before: complete ones, stopped ones, and what is left of them."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from entrenar_core import Callback, RunReport, Scores, distill, parse_config
from entrenar_core.errors import ConfigError, DataError, Interrupted, ModelError, OutputError, UsageError
from entrenar_core.training.callbacks import StepMetrics
from entrenar_core.training.distillation import plan
from tiny_jobs import Models, build_models, classification, language, write_rows


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


class Watch(Callback):
    """Remembers what it is told, and presses Ctrl-C in a part of the run."""

    def __init__(self, stops_in: str | None = None) -> None:
        self.stops_in, self.phase = stops_in, ""
        self.phases: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.evaluations: list[tuple[int, Scores]] = []

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        self.phase = name
        self.phases.append((name, step))

    def on_batch(self, done: int, total: int) -> None:
        assert done < total
        if self.phase == self.stops_in:
            os.kill(os.getpid(), signal.SIGINT)
            self.stops_in = None

    def on_evaluate(self, step: int, scores: Scores) -> None:
        self.evaluations.append((step, scores))

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def run(job: dict[str, Any], *callbacks: Callback, **how: Any) -> RunReport:
    return distill(parse_config(job), callbacks=callbacks, **how)


def test_a_complete_run_gives_its_report_again_and_says_so(models: Models, tmp_path: Path) -> None:
    job, watch = classification(models, tmp_path), Watch()
    report = run(job)
    assert run(job, watch, resume=True) == report
    assert watch.notes == [f"the run in {tmp_path / 'out'} is complete; this is its report"]
    assert watch.phases == []
    with pytest.raises(UsageError, match="is complete"):
        plan(parse_config(job), resume=True)


@pytest.mark.parametrize(("section", "key", "value"), [("training", "epochs", 7), ("distillation", "temperature", 5.0)])
def test_a_complete_run_of_other_settings_is_not_passed_off_as_this_one(
    models: Models, tmp_path: Path, section: str, key: str, value: object
) -> None:
    run(classification(models, tmp_path))
    other = parse_config(classification(models, tmp_path, **{section: {key: value}}))
    for ask in (distill, plan):
        with pytest.raises(UsageError, match=rf"other settings or inputs: `{section}\.{key}`"):
            ask(other, resume=True)


@pytest.mark.parametrize("damage", [None, b"{", b"{}", b"[]", b"\xff"])
def test_a_damaged_report_of_a_complete_run_is_told(models: Models, tmp_path: Path, damage: bytes | None) -> None:
    job = classification(models, tmp_path)
    run(job)
    file = tmp_path / "out" / "report.json"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(OutputError, match=r"report\.json of the complete run is damaged") as raised:
        run(job, resume=True)
    assert "--force" in str(raised.value.hint)


@pytest.mark.slow
def test_what_another_student_left_does_not_stay_beside_the_new_one(models: Models, tmp_path: Path) -> None:
    run(language(models, tmp_path))
    out = tmp_path / "out"
    assert (out / "chat_template.jinja").exists()
    (out / "notes.txt").write_text("mine")
    report = run(classification(models, tmp_path), force=True)
    assert not (out / "chat_template.jinja").exists()
    assert not (out / "generation_config.json").exists()
    assert {path.name for path in out.iterdir() if path.is_file()} == {*report.files, ".lock", "notes.txt"}


@pytest.mark.slow
def test_what_a_user_puts_into_the_folder_is_the_users(models: Models, tmp_path: Path) -> None:
    class Writing(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            (tmp_path / "out" / "teacher").mkdir(exist_ok=True)
            (tmp_path / "out" / "teacher" / "notes.txt").write_text("mine")
            (tmp_path / "out" / "notes.txt").write_text("mine")

    job = classification(models, tmp_path)
    assert "notes.txt" not in run(job, Writing()).files
    run(job, force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "teacher" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [1, 3, 20])
def test_ctrl_c_while_a_probe_is_fitted_stops_there(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Among the batches that are embedded, or the fits of cross-validation."""

    class Counting(Watch):
        seen = 0

        def on_batch(self, done: int, total: int) -> None:
            self.seen += 1
            if self.seen == place:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))
    job = classification(models, tmp_path, training={"batch_size": 8})
    job["teacher"]["finetune"] = {"method": "probe"}
    watch = Counting()
    with pytest.raises(Interrupted, match="stopped during teacher"):
        run(job, watch)
    assert watch.seen == place
    assert list((tmp_path / "home").rglob("*.safetensors")) == []


@pytest.mark.parametrize("phase", ["teacher", "student before training"])
def test_ctrl_c_before_the_first_step_stops_there(models: Models, tmp_path: Path, phase: str) -> None:
    job, watch = classification(models, tmp_path), Watch(stops_in=phase)
    with pytest.raises(Interrupted, match=f"stopped during {phase}") as raised:
        run(job, watch)
    assert "--resume" in str(raised.value.hint)
    assert watch.notes[-1] == "stopping as soon as all is saved; once more stops at once"
    assert watch.phases[-1] == (phase, 0)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    assert run(job, resume=True).steps == 5


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_earlier_run_is_replaced_when_all_about_the_new_one_is_known(models: Models, tmp_path: Path) -> None:
    run(classification(models, tmp_path))
    before = contents(tmp_path / "out")
    with pytest.raises(Interrupted, match="stopped during teacher") as stopped:
        run(classification(models, tmp_path, training={"seed": 7}), Watch(stops_in="teacher"), force=True)
    assert "the earlier run" in str(stopped.value.hint)
    assert contents(tmp_path / "out") == before
    broken = shutil.copytree(models.classifier, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file({name: weights[name] for name in list(weights)[1:]}, broken / "model.safetensors")
    with pytest.raises(ModelError, match="lack"):
        run(classification(models, tmp_path, teacher={"model_id": str(broken)}), force=True)
    assert contents(tmp_path / "out") == before
    assert run(classification(models, tmp_path, training={"seed": 7}), force=True).steps == 5
    assert contents(tmp_path / "out")["model.safetensors"] != before["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("spelled", ["out", "out/model.safetensors", "out/../out/"])
def test_a_result_does_not_replace_the_models_that_it_is_made_of(
    models: Models, tmp_path: Path, part: str, spelled: str
) -> None:
    run(classification(models, tmp_path))
    before = contents(tmp_path / "out")
    again = parse_config(classification(models, tmp_path) | {part: {"model_id": str(tmp_path / spelled)}})
    for ask in (distill, plan):
        with pytest.raises(ConfigError, match=rf"would replace `{part}\.model_id`"):
            ask(again, force=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.nightly
def test_a_run_that_is_stopped_in_its_baseline_goes_on_there(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"baseline": True}, output={"checkpoint_every": 2})
    expected = run(job)
    second = classification(models, tmp_path / "two", training={"baseline": True}, output={"checkpoint_every": 2})
    with pytest.raises(Interrupted):
        run(second, _StopsAt("baseline", 3))
    watch = Watch()
    report = run(second, watch, resume=True)
    assert ("student", 5) in watch.phases
    assert ("baseline", 3) in watch.phases
    assert report.baseline_scores == expected.baseline_scores


class _StopsAt(Callback):
    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step, self.now = phase, step, ""

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        self.now = name

    def on_step(self, metrics: Any) -> None:
        if (self.now, metrics.step) == (self.phase, self.step):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("changed", [False, True])
def test_going_on_with_other_versions_is_told(models: Models, tmp_path: Path, changed: bool) -> None:
    job, watch = classification(models, tmp_path), Watch()
    with pytest.raises(Interrupted):
        run(job, _StopsAt("student", 3))
    file = tmp_path / "out" / "run.json"
    manifest = json.loads(file.read_text())
    if changed:
        manifest["environment"]["packages"]["torch"], manifest["environment"]["threads"] = "1.0", 99
        file.write_text(json.dumps(manifest))
    run(job, watch, resume=True)
    told = [note for note in watch.notes if "unbroken run" in note]
    assert len(told) == changed
    assert not told or ("threads 99 → " in told[0] and "torch 1.0 → " in told[0])


@pytest.mark.parametrize("every", [None, 2])
def test_the_last_evaluation_is_told_and_written_once(models: Models, tmp_path: Path, every: int | None) -> None:
    watch = Watch()
    report = run(classification(models, tmp_path, training={"eval_every": every}), watch)
    assert [step for step, _ in watch.evaluations] == ([5] if every is None else [2, 4, 5])
    assert watch.evaluations[-1][1] == report.student_scores
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    told = [line["step"] for line in lines if "evaluation" in line]
    assert told == [0, *(step for step, _ in watch.evaluations)]


@pytest.mark.slow
def test_a_damaged_metrics_file_costs_no_checkpoint(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"eval_every": 2}, output={"checkpoint_every": 2})
    expected = run(job)
    other = classification(models, tmp_path / "two", training={"eval_every": 2}, output={"checkpoint_every": 2})
    with pytest.raises(Interrupted):
        run(other, _StopsAt("student", 3))
    (tmp_path / "two" / "out" / "metrics.jsonl").write_text('{"step": 0, "evaluation": {"a": 1}}\n5\n')
    report = run(other, resume=True)
    assert report.student_scores == expected.student_scores
    assert report.student_before == expected.student_before


def test_a_stream_without_a_row_to_learn_from_ends(models: Models, tmp_path: Path) -> None:
    usable = [{"prompt": "the fox", "completion": " jumps"} for _ in range(4)]
    too_long = [{"prompt": "the quick brown fox jumps over the lazy dog " * 4, "completion": " and"} for _ in range(9)]
    rows = write_rows(tmp_path / "rows.jsonl", usable + too_long)
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    job = language(
        models, tmp_path, dataset={"path": str(rows), "streaming": True, "eval_rows": 4, "max_length": 16, **columns}
    )
    with pytest.raises(DataError, match="of the 9 rows of the stream, none has a token to learn"):
        run(job)


def test_the_commonest_class_of_a_stream_is_that_of_the_rows_it_is_judged_on(models: Models, tmp_path: Path) -> None:
    labels = [0, 1, 1, 1, 0, 1] + [0] * 30
    rows = [{"text": f"the fox {index}", "label": label} for index, label in enumerate(labels)]
    write_rows(tmp_path / "rows.jsonl", rows)
    dataset = {"path": str(tmp_path / "rows.jsonl"), "streaming": True, "eval_rows": 6}
    report = run(classification(models, tmp_path, dataset=dataset, training={"max_steps": 1}))
    assert report.majority_accuracy == pytest.approx(4 / 6)


def test_a_pad_token_that_the_model_does_not_know_is_refused(models: Models, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(models.classifier, tmp_path / "teacher"))
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "[NEW]"}))
    with pytest.raises(ModelError, match=r"the pad token of .* has the id \d+, and the model has \d+ embeddings"):
        run(classification(models, tmp_path, teacher={"model_id": str(teacher)}))


@pytest.mark.parametrize("values", [{"hidden_size": "x"}, {"num_hidden_layers": None}])
def test_a_mistake_in_a_config_is_not_told_as_one_in_the_tokenizer(
    models: Models, tmp_path: Path, values: dict[str, object]
) -> None:
    teacher = Path(shutil.copytree(models.classifier, tmp_path / "teacher"))
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(ModelError) as raised:
        run(classification(models, tmp_path, teacher={"model_id": str(teacher)}))
    assert "tokenizer" not in raised.value.message
