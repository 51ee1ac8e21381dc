"""A folder goes to the Hub whole, in one commit, and goes on where it broke off."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entrenar_core.errors import FetchError, OutputError
from entrenar_core.hub import Transfer
from hub_client import fetch, files_of
from hub_content import SECRET, FaultKind
from hub_pushes import push, repository, shards_of_noise, there
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shards_of_noise(tmp_path / "model")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("way", ["basic", "parts", "xet"])
def test_what_is_pushed_is_fetched_again_byte_by_byte(
    writable_hub: HubServer, llama_folder: Path, tmp_path: Path, way: str
) -> None:
    writable_hub.part_bytes = 20_000 if way == "parts" else None
    writable_hub.xet = tmp_path / "xet" if way == "xet" else None
    seen: list[Transfer] = []
    pushed = push(llama_folder, progress=seen.append, message="A tiny Llama")
    files = files_of(llama_folder)
    assert there(writable_hub) == files
    assert repository(writable_hub).messages == ["A tiny Llama"], "one commit makes everything visible"
    assert pushed.url == f"{writable_hub.url}/org/model"
    assert pushed.commit == repository(writable_hub).refs["main"]
    assert (set(pushed.uploaded), pushed.present, pushed.left_out) == (set(files), (), ())
    total = sum(map(len, files.values()))
    assert pushed.size_bytes == total
    weights = len(files["model.safetensors"])
    assert 0.5 * weights < pushed.sent_bytes <= weights, "Xet packs what it sends"
    assert seen[-1].done_bytes == seen[-1].total_bytes == total
    assert {step.name for step in seen} == set(files)
    assert (len(writable_hub.received) == 0) is (way == "xet")
    fetched = fetch("org/model")
    assert fetched.commit == pushed.commit
    assert fetched.fingerprint() == fetch(str(llama_folder)).fingerprint()


def test_a_second_push_sends_nothing_and_makes_no_commit(writable_hub: HubServer, model: Path) -> None:
    first = push(model)
    writable_hub.forget()
    second = push(model)
    assert (second.commit, second.uploaded, second.sent_bytes) == (first.commit, (), 0)
    assert set(second.present) == set(first.uploaded)
    assert not writable_hub.received
    assert writable_hub.asked("/commit/") == 0


def test_only_what_changed_is_sent_and_what_else_is_there_stays(writable_hub: HubServer, model: Path) -> None:
    push(model)
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    (model / "model-00002-of-00002.safetensors").rename(model / "model-00003-of-00003.safetensors")
    writable_hub.forget()
    pushed = push(model)
    assert pushed.uploaded == ("config.json",), "the storage has the bytes of what is only called otherwise"
    assert not writable_hub.received
    assert set(there(writable_hub)) == {*files_of(model), "model-00002-of-00002.safetensors"}


def test_a_push_that_is_killed_goes_on_where_it_was(writable_hub: HubServer, model: Path) -> None:
    first, second = (sha256(model / f"model-{shard:05d}-of-00002.safetensors") for shard in (1, 2))
    writable_hub.fail(second, "stall", after_bytes=50_000)
    program = "import sys, pathlib, entrenar_core.hub as h; h.push_folder(pathlib.Path(sys.argv[1]), 'org/model')"
    child = subprocess.Popen([sys.executable, "-c", program, str(model)])
    try:
        assert writable_hub.stalled.wait(60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    writable_hub.released.set()
    assert there(writable_hub) == {}, "nothing is visible before everything is there"
    writable_hub.forget()
    pushed = push(model)
    assert dict(writable_hub.received) == {second: 200_000}
    assert first not in writable_hub.received
    assert pushed.sent_bytes == 200_000
    assert "model-00001-of-00002.safetensors" in pushed.present
    assert there(writable_hub) == files_of(model)


@pytest.mark.parametrize(("step", "kind"), [("put", "reset"), ("batch", "unavailable"), ("verify", "limited")])
def test_what_breaks_off_once_is_tried_again(writable_hub: HubServer, model: Path, step: str, kind: FaultKind) -> None:
    writable_hub.fail(step, kind, after_bytes=1000)
    seen: list[Transfer] = []
    push(model, progress=seen.append)
    assert there(writable_hub) == files_of(model)
    assert seen[-1].done_bytes == seen[-1].total_bytes


@pytest.mark.parametrize("step", ["create", "preupload", "yaml", "commit"])
def test_a_server_that_is_unwell_is_asked_again(writable_hub: HubServer, model: Path, step: str) -> None:
    writable_hub.fail(step, "unavailable", times=2 if step != "preupload" else 1)
    push(model)
    assert there(writable_hub) == files_of(model)


def test_too_many_requests_are_told(writable_hub: HubServer, model: Path) -> None:
    writable_hub.fail("yaml", "limited", times=9)
    with pytest.raises(FetchError, match="too many requests") as refused:
        push(model)
    assert "push again" in str(refused.value.hint)
    assert writable_hub.asked("validate-yaml") == 3


def test_a_commit_whose_answer_was_lost_is_not_made_twice(writable_hub: HubServer, model: Path) -> None:
    writable_hub.fail("commit", "lost")
    pushed = push(model)
    assert len(repository(writable_hub).messages) == 1
    assert pushed.commit == repository(writable_hub).refs["main"]


def test_of_a_file_that_changes_a_little_xet_sends_a_little(
    writable_hub: HubServer, model: Path, tmp_path: Path
) -> None:
    writable_hub.xet = tmp_path / "xet"
    file = model / "model-00001-of-00002.safetensors"
    data = os.urandom(2_000_000)
    file.write_bytes(data)
    assert push(model).sent_bytes > 1_900_000
    file.write_bytes(data[:-1000] + os.urandom(1000))
    again = push(model)
    assert again.uploaded == (file.name,)
    assert 0 < again.sent_bytes < 500_000
    assert there(writable_hub) == files_of(model)


def test_a_hub_without_xet_gets_plain_requests_and_hf_xet_is_left_alone(
    writable_hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(model)
    assert writable_hub.asked("xet-write-token") == 0
    writable_hub.xet = tmp_path / "xet"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    (model / "model-00001-of-00002.safetensors").write_bytes(b"other")
    push(model)
    assert writable_hub.asked("xet-write-token") == 0
    assert there(writable_hub) == files_of(model)


def test_a_storage_that_refuses_xet_is_told(writable_hub: HubServer, model: Path, tmp_path: Path) -> None:
    writable_hub.xet = tmp_path / "file"
    writable_hub.xet.write_text("not a folder")
    with pytest.raises(FetchError, match=r"model-00001-of-00002\.safetensors of org/model") as failed:
        push(model)
    assert "HF_HUB_DISABLE_XET" in str(failed.value.hint)
    assert SECRET not in f"{failed.value} {failed.value.hint} {failed.value.__cause__}"
    assert there(writable_hub) == {}


@pytest.mark.parametrize("xet", [True, False])
def test_a_file_that_changes_or_goes_while_it_is_pushed_is_told(
    writable_hub: HubServer, model: Path, tmp_path: Path, *, xet: bool
) -> None:
    writable_hub.xet = tmp_path / "xet" if xet else None
    second = model / "model-00002-of-00002.safetensors"

    def change(step: Transfer) -> None:
        if step.name == "model-00001-of-00002.safetensors":
            second.write_bytes(b"other") if xet else second.unlink(missing_ok=True)

    with pytest.raises(OutputError, match=f"{second} (changed while|cannot be read)"):
        push(model, progress=change)
    assert there(writable_hub) == {}
