"""Teachers that are several, or the student's own past."""

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cached_jobs import Job, built, job, sure_models
from entrenar_core import Callback, distill, parse_config
from entrenar_core.errors import ConfigError, DataError, EntrenarError, ModelError, UsageError
from entrenar_core.models.loading import load_model
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.moving_average import AverageOfStudent
from entrenar_core.training.assembly import make_accelerator, make_student
from entrenar_core.training.preparing import prepare
from entrenar_core.training.result import read_report
from entrenar_distill.cli import main
from tiny_jobs import Models, build_models, classification, merged, write_config, write_rows
from tiny_models import tiny_bert, tiny_llama
from tiny_runs import start_program, wait_until
from watched_runs import run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def second(sure: Models) -> str:
    return str(tiny_llama(sure.llama.parent / "second", initializer_range=0.4, seed=5))


def of(file: Job, *members: Mapping[str, Any], **settings: Any) -> Job:
    return file | {"teacher": {"members": list(members), **settings}}


class Notes(Callback):
    """What a run tells on its way."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_note(self, text: str) -> None:
        self.told.append(text)


# ── Averages ──


def test_two_equal_teachers_are_one(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    one, one_watch = run(file)
    of_one = weights(tmp_path)
    for settings in ({}, {"weighting": "confidence"}, {"weighting": "learned"}):
        both, watch = run(of(file, file["teacher"], file["teacher"], **settings))
        assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in one_watch.steps], rel=1e-5)
        for name, tensor in weights(tmp_path).items():
            torch.testing.assert_close(tensor, of_one[name], rtol=1e-4, atol=1e-5)
        assert both.teacher_scores.cross_entropy == pytest.approx(one.teacher_scores.cross_entropy, rel=1e-5)
        assert both.student_scores.kl == pytest.approx(one.student_scores.kl, rel=1e-3)
    assert both.teacher.parameters == 2 * one.teacher.parameters
    assert both.teacher.name == f"{one.teacher.name} + {one.teacher.name}"


def test_members_weigh_what_they_say(sure: Models, second: str, tmp_path: Path) -> None:
    file = job(sure, tmp_path, training={"max_steps": 1})
    first = file["teacher"]
    losses = {}
    for weight in (1e-6, 1.0, 1e6):
        _, watch = run(of(file, first | {"weight": weight}, {"model_id": second}))
        losses[weight] = watch.steps[0].loss
    alone = run(file)[1].steps[0].loss
    other = run(file | {"teacher": {"model_id": second}, "student": {"model_id": str(sure.small_llama)}})
    assert other[0].steps == 1
    assert losses[1e6] == pytest.approx(alone, rel=1e-4)
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_weights_are_learnt_from_labels(models: Models, tmp_path: Path) -> None:
    """A teacher that was fitted to the labels beside one that knows nothing."""
    fitted = {"model_id": str(models.classifier), "finetune": {"method": "full", "epochs": 20, "learning_rate": 0.01}}
    file = classification(models, tmp_path) | {"student": {"model_id": str(models.small_classifier)}}
    other = {"model_id": str(models.other_classifier)}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "rows.jsonl", [row | {"label": f"LABEL_{row['label']}"} for row in rows])
    notes = Notes()
    report = distill(parse_config(of(file, fitted, other, weighting="learned")), callbacks=[notes])
    assert report.teacher_scores.accuracy > 0.9
    (line,) = [line for line in notes.told if "learnt from the labels" in line]
    knowing, ignorant = (float(share) for share in line.rpartition(":")[2].split(","))
    assert knowing > 0.9
    assert knowing + ignorant == pytest.approx(1, abs=0.002)
    assert any(line.startswith(f"{models.other_classifier} alone: accuracy") for line in notes.told)
    assert [member.weight for member in report.members] == pytest.approx([knowing, ignorant], abs=1e-3)
    assert report.members[0].scores.accuracy > report.members[1].scores.accuracy
    assert read_report(tmp_path / "out") == report
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| teachers together |" in card
    assert f"| {models.other_classifier}, weight " in card


def test_members_may_be_cached(sure: Models, second: str, tmp_path: Path) -> None:
    file = of(job(sure, tmp_path), {"model_id": str(sure.llama), "weight": 3}, {"model_id": second})
    config = write_config(tmp_path / "job.yaml", file)
    for member in (0, 1):
        build = ["cache", "build", str(config), "--precision", "float32", "--member", str(member)]
        assert main([*build, "--output", str(tmp_path / f"cache-{member}")]) == 0
    _, live_watch = run(file)
    members = [member | {"cache": str(tmp_path / f"cache-{place}")} for place, member in
               enumerate(file["teacher"]["members"])]  # fmt: skip
    _, watch = run(of(file, *members))
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-5)
    assert {step.cache_hit_rate for step in watch.steps} == {1.0}
    built(job(sure, tmp_path), tmp_path / "topk", CacheSettings(kind="topk"))
    with pytest.raises(ConfigError, match="several teachers need whole distributions"):
        run(of(file, members[0] | {"cache": str(tmp_path / "topk")}, members[1]))


def test_a_cache_of_a_member_is_of_the_student_and_the_tokens_that_a_run_of_all_has(
    sure: Models, tmp_path: Path
) -> None:
    """The second teacher is shallower than the student, which is made of the first, and its head has fewer rows."""
    shallow = tiny_llama(tmp_path / "shallow", num_hidden_layers=1, seed=6, initializer_range=0.4)
    file = job(sure, tmp_path)
    file["student"] = {"init_from": {"teacher_layers": [0, 1], "intermediate_size": 16}}
    file = of(file, {"model_id": str(sure.llama)}, {"model_id": str(shallow)})
    built(file, tmp_path / "cache", CacheSettings(precision="float32", member=1))
    live_watch = run(file)[1]
    file["teacher"]["members"][1]["cache"] = str(tmp_path / "cache")
    assert [step.loss for step in run(file)[1].steps] == pytest.approx([s.loss for s in live_watch.steps], rel=1e-5)
    for member, told in ((None, "a cache is of one of them"), (7, "there is no 7")):
        with pytest.raises(UsageError, match=told):
            built(file, tmp_path / "another", CacheSettings(member=member))


# ── Routes ──


def routed(sure: Models, second: str, folder: Path, **changes: Any) -> Job:
    rows = [{"text": f"{index} the fox {'jumps ' * (index % 7)}", "kind": "ab"[index % 2]} for index in range(60)]
    write_rows(folder / "rows.jsonl", rows)
    file = job(sure, folder, dataset={"route_column": "kind"}, distillation={"alpha": 1.0}, **changes)
    write_rows(folder / "rows.jsonl", rows)
    return of(file, {"model_id": str(sure.llama), "rows": ["a"]}, {"model_id": second, "rows": ["b", "c"]})


def test_rows_are_taught_by_the_teacher_of_their_kind(sure: Models, second: str, tmp_path: Path) -> None:
    """The loss of both together is the mean of the losses of their own rows, by tokens."""
    file = routed(sure, second, tmp_path, training={"max_steps": 1, "batch_size": 60})
    together = run(file)[1].steps[0].loss
    prepared = prepare(parse_config(file))
    kinds = {row["row"]: row["route"] for row in prepared.rows.train}
    accelerator = make_accelerator(prepared.config)
    copied = make_student(prepared, load_model(prepared.teacher, prepared.task))
    student = LiveTeacher(copied, accelerator, prepared.counting)
    total, count = 0.0, 0
    for kind, folder in (("a", str(sure.llama)), ("b", second)):
        teacher = LiveTeacher(AutoModelForCausalLM.from_pretrained(folder), accelerator, prepared.counting)
        batch = prepared.collator([row for row in prepared.train_tokens if kinds[row["row"]] == kind])
        p, q = ((of_model.rows(batch).of(slice(None)) / 2).log_softmax(-1) for of_model in (teacher, student))
        total += 4 * float((p.exp() * (p - q)).sum())
        count += batch.num_soft
    assert together == pytest.approx(total / count, rel=1e-5)


def test_rows_of_a_cached_teacher_are_counted_among_all(sure: Models, second: str, tmp_path: Path) -> None:
    file = routed(sure, second, tmp_path, training={"batch_size": 2, "epochs": 1})
    built(file, tmp_path / "cache", CacheSettings(precision="float32", member=0))
    file["teacher"]["members"][0]["cache"] = str(tmp_path / "cache")
    rates = [step.cache_hit_rate for step in run(file)[1].steps]
    assert set(rates) == {0.0, 0.5, 1.0}, "of two rows, none, one or both are the cached teacher's"
    prepared = prepare(parse_config(file))
    own = sum(row["route"] == "a" for row in prepared.rows.train)
    assert sum(rate or 0.0 for rate in rates) * 2 == own


def test_a_row_that_no_teacher_teaches_is_named(sure: Models, second: str, tmp_path: Path) -> None:
    file = routed(sure, second, tmp_path)
    file["teacher"]["members"][1]["rows"] = ["c"]
    with pytest.raises(DataError, match=r"30 rows have 'b' or another value in column `kind` that no teacher teaches"):
        run(file)


def test_diagnostics_look_at_what_several_teachers_say_together(sure: Models, second: str, tmp_path: Path) -> None:
    watched = {"training": {"diagnose_every": 1, "max_steps": 1}}
    routes = merged(routed(sure, second, tmp_path), watched)
    average = of(merged(job(sure, tmp_path / "average"), watched), {"model_id": str(sure.llama)}, {"model_id": second})
    for file in (routes, average):
        run(file)
        lines = (Path(file["output"]["dir"]) / "metrics.jsonl").read_text().splitlines()
        (told,) = [line["diagnostics"] for line in map(json.loads, lines) if "diagnostics" in line]
        assert told["teacher_entropy"]


def test_weights_are_learnt_of_masked_texts_from_caches_too(tmp_path: Path) -> None:
    teachers = [tiny_bert(tmp_path / f"{n}", head="MaskedLM", seed=n, initializer_range=0.4) for n in (1, 2)]
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} the fox jumps over the dog"} for n in range(40)])
    file: Job = {
        "teacher": {"members": [{"model_id": str(path)} for path in teachers], "weighting": "learned"},
        "student": {"init_from": {"teacher_layers": 1}},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 1, "max_steps": 12, "batch_size": 8},
        "output": {"dir": str(tmp_path / "out")},
    }
    live, live_watch = run(file)
    built(file, tmp_path / "cache", CacheSettings(precision="float32", member=0))
    file["teacher"]["members"][0]["cache"] = str(tmp_path / "cache")
    cached, watch = run(file)
    assert (cached.steps, live.steps) == (12, 12), "more passes than `epochs` says"
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-4)


# ── What is refused ──


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"members": [{"model_id": "a"}]}}, "should be a list of at least two teachers"),
        ({"teacher": {"members": [{"model_id": "a", "rows": ["x"]}, {"model_id": "b"}]}}, "are values of a col"),
        ({"teacher": {"members": [{"model_id": "a", "weight": 2}, {"model_id": "b"}], "weighting": "learned"}},
         "weights are learned"),
        ({"teacher": {"members": [{"model_id": "a"}, {"model_id": "b"}], "weigting": "fixed"}},
         r"`teacher\.weigting` is not a setting.*\n?.*did you mean `teacher\.weighting`"),
        ({"teacher": {"members": [{"model_id": "a"}, {"model_id": "b"}], "load_in": "nf4"}},
         r"`teacher\.load_in` is not a setting.*\n?.*of a `teacher` with `model_id`, and this one has `members`"),
        ({"teacher": {"model_id": "a", "top_logprobs": 5}},
         "it is a setting of a `teacher` with `endpoint`, and this one has `model_id`"),
        ({"teacher": {"members": [{"model_id": "a", "dtyp": "x"}, {"model_id": "b"}]}},
         r"`teacher\.members\[0\]\.dtyp` is not a setting"),
        ({"dataset": {"route_column": "kind"}}, "there is one"),
        ({"teacher": {"moving_average": {"decay": 1.0}}}, "should be a number from 0 to below 1"),
        ({"teacher": {"moving_average": {}}, "student": {"init_from": {"teacher_layers": 1}}},
         r"`student\.model_id` is not given"),
    ],
)  # fmt: skip
def test_what_teachers_cannot_be_is_said(changes: Job, message: str, sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    file |= {"teacher": changes.pop("teacher", file["teacher"])}
    with pytest.raises(EntrenarError) as refused:
        parse_config(merged(file, changes))
    told = "\n".join(f"{problem.message} {problem.hint}" for problem in getattr(refused.value, "problems", []))
    assert re.search(message, told), told


def test_teachers_of_other_classes_are_refused(models: Models, tmp_path: Path) -> None:
    other = tiny_bert(tmp_path / "other", num_labels=3, seed=4)
    file = classification(models, tmp_path)
    with pytest.raises(ModelError, match="tells apart LABEL_0, LABEL_1, LABEL_2, and the first teacher"):
        run(of(file, file["teacher"], {"model_id": str(other)}))


def test_validate_looks_at_every_teacher(
    sure: Models, second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = of(job(sure, tmp_path), {"model_id": str(sure.llama)}, {"model_id": second})
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file)), "--json"]) == 0
    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]
    assert {"teacher", "teacher 2", "vocabulary of teacher 2"} <= set(names)
    file["teacher"]["members"][1]["model_id"] = str(tmp_path / "nothing")
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file))]) == 2
    assert "teacher.members[1].model_id" in capsys.readouterr().err


# ── The student's own past ──


def averaging(sure: Models, folder: Path, **changes: Any) -> Job:
    file = job(sure, folder, **changes) | {"student": {"model_id": str(sure.small_llama)}}
    return file | {"teacher": {"moving_average": {"decay": 0.9}}}


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_the_student(
    warmup: bool, sure: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """θ′ ← d θ′ + (1 − d) θ with d from 2/11 up to 0.9, replayed in 64 bits."""
    followed: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    follow = AverageOfStudent.follow

    def watched(self: AverageOfStudent, step: int) -> None:
        follow(self, step)
        name = "model.layers.0.mlp.up_proj.weight"
        pair = (dict(model.named_parameters())[name].detach().clone() for model in (self.student, self.model))
        followed.append((step, *pair))  # type: ignore[arg-type]

    monkeypatch.setattr(AverageOfStudent, "follow", watched)
    file = averaging(sure, tmp_path, training={"epochs": 6})
    file["teacher"]["moving_average"]["warmup"] = warmup
    report, watch = run(file)
    assert [step for step, *_ in followed] == list(range(1, report.steps + 1))
    before = load_file(sure.small_llama / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].double()
    for step, student, mean in followed:
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        before = decay * before + (1 - decay) * student.double()
        torch.testing.assert_close(mean.double(), before, rtol=1e-4, atol=1e-6)
    assert report.teacher.name.startswith("moving average of")
    assert report.teacher_scores.cross_entropy != report.student_scores.cross_entropy
    assert all("forward_kl" in step.losses for step in watch.steps)
    assert watch.steps[0].losses["forward_kl"] == pytest.approx(0, abs=1e-6), "they begin as one"
    assert watch.steps[-1].losses["forward_kl"] > 1e-6


def test_a_run_that_is_stopped_goes_on_with_its_average(sure: Models, tmp_path: Path) -> None:
    whole = averaging(sure, tmp_path / "whole", training={"epochs": 6}, output={"checkpoint_every": 5})
    run(whole)
    cut = averaging(sure, tmp_path / "cut", training={"epochs": 6}, output={"checkpoint_every": 5})
    cut["dataset"]["path"] = whole["dataset"]["path"]
    config = write_config(tmp_path / "cut.yaml", cut)
    process = start_program(["run", str(config)], tmp_path / "log")
    assert wait_until((tmp_path / "cut" / "out" / "checkpoints" / "step-00000010").exists, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert main(["run", str(config), "--resume"]) == 0
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor)


@pytest.mark.parametrize("part", ["", "checkpoints/step-00000004"])
def test_a_run_and_its_checkpoints_can_teach_the_next_generation(part: str, sure: Models, tmp_path: Path) -> None:
    first = job(sure, tmp_path, output={"checkpoint_every": 4, "keep": 5})
    report, _ = run(first)
    (tmp_path / "out").rename(tmp_path / "first")
    again = first | {
        "teacher": {"model_id": str(tmp_path / "first" / part)},
        "student": {"init_from": {"hidden_size": 16}},
    }
    second, watch = run(again)
    assert watch.steps[-1].loss < watch.steps[0].loss
    if not part:
        assert second.teacher_scores.cross_entropy == pytest.approx(report.student_scores.cross_entropy, rel=1e-5)
    else:
        assert second.teacher_scores.cross_entropy != pytest.approx(report.student_scores.cross_entropy, rel=1e-5)
