"""What is not pushed: what is no part of a model, what the Hub refuses, and what would land where it should not."""

import json
from pathlib import Path

import pytest

from entrenar_core.errors import AccessError, EntrenarError, FetchError, OutputError, UsageError
from entrenar_core.hub import push_files
from hub_content import SECRET
from hub_pushes import push, repository, shards_of_noise, there
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shards_of_noise(tmp_path / "model")


def test_what_is_no_part_of_a_model_stays_here(writable_hub: HubServer, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    (model / "LICENSE").symlink_to(secret)
    for name in ("checkpoints/step-00000001/model.safetensors", "checkpoints/model.safetensors", ".cache/x.gguf"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"x")
    for name in ("report.json", "optimizer.bin", ".model.safetensors.partial", "own.py", "training_args.bin", ".env"):
        (model / name).write_bytes(b"x")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "1_Pooling" / "notes.txt").write_text("x")
    pushed = push(model)
    assert set(there(writable_hub)) == {
        "README.md",
        "config.json",
        "1_Pooling/config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert set(pushed.left_out) == {
        ".cache/",
        ".env",
        ".model.safetensors.partial",
        "1_Pooling/notes.txt",
        "LICENSE",
        "checkpoints/",
        "optimizer.bin",
        "own.py",
        "report.json",
        "training_args.bin",
    }


def test_the_card_of_a_run_tells_no_folder_of_this_machine(
    writable_hub: HubServer, model: Path, tmp_path: Path
) -> None:
    (model / "run.json").write_text(json.dumps({"status": "complete"}))
    local = f"# {tmp_path}/teacher-7b, see /v1/chat and https://a.b/c/d\n\n```yaml\noutput:\n  dir: {model}\n```\n"
    (model / "README.md").write_text(f"---\nlicense: mit\n---\n{local}")
    pushed = push(model)
    card = there(writable_hub)["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# teacher-7b, see /v1/chat and https://a.b/c/d\n")
    assert card.endswith("\noutput:\n  dir: model\n```\n")
    assert "run.json" in pushed.left_out
    assert str(tmp_path) in (model / "README.md").read_text(), "the card here stays as it is"
    assert push(model).commit == pushed.commit


def test_files_are_pushed_by_the_names_they_are_given(writable_hub: HubServer, model: Path) -> None:
    files = {"small.gguf": model / "model-00001-of-00002.safetensors", "README.md": model / "README.md"}
    pushed = push_files(files, "org/model")
    assert there(writable_hub) == {name: path.read_bytes() for name, path in files.items()}
    assert (pushed.uploaded, pushed.left_out) == (("README.md", "small.gguf"), ())
    with pytest.raises(OutputError, match="absent cannot be read"):
        push_files({"x.gguf": model / "absent"}, "org/model")


def test_files_that_the_repository_ignores_are_told(writable_hub: HubServer, model: Path) -> None:
    push(model)
    repository(writable_hub).ignored.add("config.json")
    (model / "config.json").write_text("{}")
    pushed = push(model)
    assert pushed.left_out == ("config.json",)
    assert there(writable_hub)["config.json"] != b"{}"


@pytest.mark.parametrize(("status", "complaint"), [("running", "not over"), ("interrupted", "interrupted")])
def test_a_run_that_is_not_complete_is_refused(hub: HubServer, model: Path, status: str, complaint: str) -> None:
    (model / "run.json").write_text(json.dumps({"status": status}))
    with pytest.raises(UsageError, match=complaint):
        push(model)
    assert not hub.requests


def test_what_cannot_be_pushed_is_refused_before_the_network(hub: HubServer, model: Path, tmp_path: Path) -> None:
    with pytest.raises(EntrenarError, match="there is no folder"):
        push(tmp_path / "absent")
    with pytest.raises(EntrenarError, match="holds no weights to push"):
        push(tmp_path)
    for name in ("model", "a/b/c", "org/na me", "org/..\n"):
        with pytest.raises(UsageError, match="cannot be the name of a repository"):
            push(model, name)
    with pytest.raises(AccessError, match="to push to org/model takes a login") as refused:
        push(model)
    assert "hf auth login" in str(refused.value.hint)
    with pytest.raises(FetchError, match="in offline mode"):
        push(model, offline=True, token=SECRET)
    assert not hub.requests


@pytest.mark.parametrize("exists", [True, False])
def test_a_login_that_may_only_read_is_told_so(writable_hub: HubServer, model: Path, *, exists: bool) -> None:
    if exists:
        writable_hub.add("org/model", {"config.json": b"{}"})
    writable_hub.writers.clear()
    with pytest.raises(AccessError, match="the login in use may not write to org/model: ") as refused:
        push(model)
    assert "write access" in str(refused.value.hint)
    assert SECRET not in f"{refused.value} {refused.value.hint} {refused.value.__cause__}"


def test_a_login_that_is_not_known_or_a_repository_that_is_not_shown(writable_hub: HubServer, model: Path) -> None:
    with pytest.raises(AccessError, match="does not know the login in use"):
        push(model, token="hf_other")
    repository = writable_hub.add("org/model", {"config.json": b"{}"})
    repository.private, repository.granted = True, {"hf_of-someone-else"}
    with pytest.raises(EntrenarError, match="has no model org/model, or does not show it"):
        push(model)


def test_a_private_push_never_lands_in_public(writable_hub: HubServer, model: Path) -> None:
    pushed = push(model, private=True)
    assert pushed.private
    assert repository(writable_hub).private
    assert push(model).private, "an existing repository stays what it is"
    writable_hub.add("org/public", {"config.json": b"{}"})
    with pytest.raises(UsageError, match="org/public exists and is public"):
        push(model, "org/public", private=True)
    assert there(writable_hub, "org/public") == {"config.json": b"{}"}


def test_front_matter_that_the_hub_refuses_costs_no_upload(writable_hub: HubServer, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(OutputError, match=r"refuses README\.md of org/model: Invalid metadata") as refused:
        push(model)
    assert refused.value.hint
    (model / "README.md").write_bytes(b"\xff\xfe# caf\xe9")
    with pytest.raises(OutputError, match=r"README\.md is not a text in UTF-8"):
        push(model)
    assert not writable_hub.received
    assert not writable_hub.repositories


def test_nothing_is_drawn_or_logged(
    writable_hub: HubServer, model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    writable_hub.fail("commit", "unavailable")
    push(model)
    push(model)
    assert capfd.readouterr() == ("", "")
    assert SECRET not in caplog.text
    assert SECRET not in "".join(path.read_text(errors="replace") for path in model.iterdir())


def test_a_hub_that_is_not_there_or_is_none(model: Path, writable_hub: HubServer, gone_url: str) -> None:
    with pytest.raises(FetchError, match=f"the connection to {gone_url} failed") as unreachable:
        push(model, endpoint=gone_url)
    assert "push again" in str(unreachable.value.hint)
    writable_hub.refuses_with = 418
    with pytest.raises(OutputError, match="refused"):
        push(model)


@pytest.fixture
def gone_url() -> str:
    with HubServer() as gone:
        return gone.url
