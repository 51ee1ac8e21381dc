"""Students of a model that a server runs: what they learn, what is kept, and what happens when it goes away."""

import json
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cached_jobs import Job, job, sure_models, using
from entrenar_core import Callback, distill, parse_config
from entrenar_core.errors import ConfigError, EntrenarError, FetchError, Interrupted, ModelError
from entrenar_core.teachers.cache.making import build_cache
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.training.callbacks import StepMetrics
from entrenar_distill.cli import main
from telling_server import MODEL, TellingServer, biased
from tiny_jobs import Models, merged, write_config
from tiny_models import tiny_llama
from watched_runs import run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

K = 319


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


@pytest.fixture
def server(sure: Models) -> Iterator[TellingServer]:
    model = AutoModelForCausalLM.from_pretrained(sure.llama).eval()
    with TellingServer(model, AutoTokenizer.from_pretrained(sure.llama)) as serving:
        serving.behaviour.most = K
        yield serving


def served(server: TellingServer, sure: Models, folder: Path, **changes: Any) -> Job:
    changes = {"distillation": {"temperature": 1.0}, "training": {"epochs": 1, "log_every": 1}, **changes}
    file = job(sure, folder, **changes) | {"student": {"model_id": str(sure.small_llama)}}
    return file | {"teacher": {"endpoint": server.url, "model": MODEL, "top_logprobs": K}}


def live(file: Job, sure: Models) -> Job:
    return file | {"teacher": {"model_id": str(sure.llama)}}


def test_a_student_learns_from_a_server_as_from_the_model(server: TellingServer, sure: Models, tmp_path: Path) -> None:
    file = served(server, sure, tmp_path)
    here, here_watch = run(live(file, sure))
    there, watch = run(file)
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in here_watch.steps], rel=1e-4)
    assert there.teacher_scores.cross_entropy == pytest.approx(here.teacher_scores.cross_entropy, rel=1e-5)
    assert there.teacher_scores.accuracy == pytest.approx(here.teacher_scores.accuracy)
    assert there.student_scores.cross_entropy == pytest.approx(here.student_scores.cross_entropy, rel=1e-3)
    assert (there.teacher.name, there.teacher.parameters) == (f"{MODEL} at {server.url}", None)
    assert "which a server ran" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["fingerprints"]["teacher"] == f"served: {MODEL}"


def test_with_fewer_tokens_the_loss_is_that_of_the_selection(
    server: TellingServer, sure: Models, tmp_path: Path
) -> None:
    file = merged(served(server, sure, tmp_path), {"teacher": {"top_logprobs": 12}})
    selected = merged(live(file, sure), {"distillation": {"top_k": 12}})
    assert run(file)[1].steps[0].loss == pytest.approx(run(selected)[1].steps[0].loss, rel=1e-4)


def test_in_memory_a_server_is_asked_once_for_every_row(server: TellingServer, sure: Models, tmp_path: Path) -> None:
    file = merged(served(server, sure, tmp_path), {"training": {"epochs": 3}, "teacher": {"cache": {"memory": "9MB"}}})
    report, watch = run(file)
    asked = [body for body in server.completions() if isinstance(body.get("prompt"), list)]
    rows = report.train_rows + report.eval_rows
    assert rows <= len(asked) <= rows + 12, "and a few to find out what it tells"
    assert {step.cache_hit_rate for step in watch.steps} == {1.0}


class Notes(Callback):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_note(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.nightly
def test_a_build_waits_for_a_server_that_goes_away_and_comes_back(
    server: TellingServer, sure: Models, tmp_path: Path
) -> None:
    file, settings = served(server, sure, tmp_path), CacheSettings(shard_bytes=60_000)
    whole = build_cache(parse_config(file), tmp_path / "whole", settings)
    before = len(server.completions())

    def restart() -> None:
        while len(server.completions()) < before + 30:
            time.sleep(0.01)
        server.stop()
        time.sleep(1.5)
        server.start()

    notes, restarting = Notes(), threading.Thread(target=restart)
    restarting.start()
    again = build_cache(parse_config(file), tmp_path / "again", settings, callbacks=[notes])
    restarting.join()
    assert [shard["sha256"] for shard in again.shards] == [shard["sha256"] for shard in whole.shards]
    assert any("answers again" in text for text in notes.told), notes.told


def test_what_a_server_said_is_kept_when_it_stays_away_and_is_not_asked_for_again(
    server: TellingServer, sure: Models, tmp_path: Path
) -> None:
    file, settings = served(server, sure, tmp_path), CacheSettings(shard_bytes=60_000)
    whole = build_cache(parse_config(file), tmp_path / "whole", settings)
    assert (whole.kind["name"], whole.kind["k"]) == ("topk", K)
    assert len(whole.shards) > 5
    assert whole.measured is not None
    assert whole.measured["error"] < 1e-3
    assert 0 <= whole.measured["left_out"] < 0.01
    end = len(server.completions()) + 40
    server.behaviour.spoil = lambda answer: {"choices": []} if len(server.completions()) > end else answer
    with pytest.raises(ModelError):
        build_cache(parse_config(file), tmp_path / "cut", settings)
    kept = sorted(path.name for path in (tmp_path / "cut").glob("shard-*.safetensors"))
    assert 0 < len(kept) < len(whole.shards)
    server.behaviour.spoil = lambda answer: answer
    server.behaviour.faults = deque([(503, {}), (429, {"Retry-After": "0"})])
    asked = len(server.completions())
    build_cache(parse_config(file), tmp_path / "cut", settings)
    assert len(server.completions()) - asked < whole.rows
    for shard in whole.shards:
        name = str(shard["file"])
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_from_a_cache_of_a_server_nobody_is_asked(
    server: TellingServer, sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = served(server, sure, tmp_path)
    build = ["cache", "build", str(write_config(tmp_path / "job.yaml", file)), "-o", str(tmp_path / "cache")]
    assert main(build) == 0
    assert main(["cache", "info", str(tmp_path / "cache")]) == 0
    assert f"{MODEL} at {server.url}" in capsys.readouterr().out
    cached = len(server.completions())
    server.stop()
    _, watch = run(using(file, tmp_path / "cache"))
    assert len(server.completions()) == cached
    server.start()
    live_watch = run(live(file, sure))[1]
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=2e-3)
    other = merged(using(file, tmp_path / "cache"), {"teacher": {"model": "another"}})
    with pytest.raises(ConfigError, match="the teacher's weights"):
        run(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": {"temperature": 2.0}}, "another temperature than an endpoint knows"),
        ({"distillation": {"progressive": {}}}, "compares layers, and an endpoint shows none"),
        ({"training": {"diagnose_every": 1}}, "looks at the whole distribution"),
        ({"teacher": {"endpoint": "ftp://x"}}, "is no URL of an HTTP server"),
        ({"student": {"model_id": None, "init_from": {"teacher_layers": 1}}}, r"no `student\.model_id` says"),
        ({"task": "sequence-classification"}, "predicts the next token"),
        ({"distillation": {"temperature": 2.0}, "teacher": {"cache": {"memory": "9MB"}}}, "another temperature than"),
    ],
)
def test_what_a_server_cannot_do_is_refused_by_validate_and_by_run(
    changes: Job, message: str, server: TellingServer, sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = merged(served(server, sure, tmp_path), changes)
    with pytest.raises(ConfigError) as refused:
        run(file)
    assert re.search(message, str(refused.value))
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file))]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_server_that_does_not_tell_labels_is_refused_before_it_is_asked_for_rows(
    server: TellingServer, sure: Models, tmp_path: Path
) -> None:
    server.behaviour.forms, server.behaviour.spoil = ("next",), biased
    file = served(server, sure, tmp_path)
    for start in (run, lambda file: build_cache(parse_config(file), tmp_path / "cache", CacheSettings())):
        asked = len(server.completions())
        with pytest.raises(ModelError, match="only where it is among the likeliest"):
            start(file)
        assert len(server.completions()) - asked < 100, "probes alone"


def test_how_long_a_server_is_waited_for_is_said(server: TellingServer, sure: Models, tmp_path: Path) -> None:
    patient = {"timeout_s": 0.5, "patience_s": 1.0}
    file = merged(served(server, sure, tmp_path), {"teacher": patient, "training": {"max_steps": 2}})
    run(file)
    asked = len(server.completions())

    def hang_after_a_while(answer: dict[str, Any]) -> dict[str, Any]:
        if len(server.completions()) > asked + 20:
            time.sleep(1)
        return answer

    server.behaviour.spoil = hang_after_a_while
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"no answer within 0\.5 s"):
        run(file)
    assert time.monotonic() - began < 30, "not for five minutes"


@pytest.mark.parametrize("how", [pytest.param("stays away", marks=pytest.mark.nightly), "is interrupted"])
def test_steps_are_kept_when_a_server_is_lost_in_the_middle_of_one(
    how: str, server: TellingServer, sure: Models, tmp_path: Path
) -> None:
    file = merged(served(server, sure, tmp_path), {"teacher": {"patience_s": 0.3}, "training": {"max_steps": 6}})
    file["output"]["checkpoint_every"] = 1000
    loud = tiny_llama(tmp_path / "student", num_hidden_layers=1, seed=1, attention_dropout=0.3)
    file["student"] = {"model_id": str(loud), "dropout": 0.3}
    run(file)
    whole = weights(tmp_path)

    class Losing(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            if metrics.step == 3:
                server.behaviour.faults = deque([(503, {})] * 50)
                if how == "is interrupted":
                    os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises((FetchError, Interrupted)):
        distill(parse_config(file), force=True, callbacks=[Losing()])
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000003"]
    server.behaviour.faults.clear()
    assert distill(parse_config(file), resume=True).steps == 6
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.nightly
def test_packed_examples_are_asked_for_one_by_one(server: TellingServer, sure: Models, tmp_path: Path) -> None:
    file = merged(served(server, sure, tmp_path), {"dataset": {"packing": True, "max_length": 48}})
    told = [step.loss for step in run(file)[1].steps]
    assert told == pytest.approx([step.loss for step in run(live(file, sure))[1].steps], rel=1e-4)


def test_rows_that_are_longer_than_the_server_reads_are_refused(sure: Models, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(sure.llama).eval()
    with TellingServer(model, AutoTokenizer.from_pretrained(sure.llama), context=8) as server:
        server.behaviour.most = K
        with pytest.raises(EntrenarError, match="and it reads 8"):
            run(served(server, sure, tmp_path))


def test_validate_does_not_wait_for_a_server(
    server: TellingServer, sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = served(server, sure, tmp_path)
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file)), "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["teacher"]["status"] == "skipped"
    assert not server.completions()
    assert main(["diagnose", str(tmp_path / "job.yaml")]) == 2
    assert main(["validate", str(tmp_path / "job.yaml"), "--teacher", str(sure.llama)]) == 0
