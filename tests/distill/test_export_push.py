"""`entrenar-distill export --push`: what is written goes to a Hub on this machine, with a card that says what it is."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from exported_models import exported_model
from hub_pushes import repository, there
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]
Program = Callable[[Sequence[str] | None], int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    folder = exported_model(tmp_path_factory.mktemp("llama") / "model", "llama", **sizes)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Our model\n")
    return folder


@pytest.fixture
def hub_program(writable_hub: HubServer, program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """With the login that `program` forgets."""
    monkeypatch.setenv("HF_TOKEN", next(iter(writable_hub.writers)))
    return program


def told(program: Program, capsys: Any, *flags: object) -> dict[str, Any]:
    assert program(["export", *map(str, flags), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_folder_goes_as_it_is(model: Path, writable_hub: HubServer, hub_program: Program, capsys: Any) -> None:
    report = told(hub_program, capsys, "-i", model, "--push", "org/model", "--private")
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    assert there(writable_hub) == files
    assert repository(writable_hub).private
    assert report["pushed"]["private"]
    assert sorted(report["files"]) == sorted(files)
    assert told(hub_program, capsys, "-i", model, "--push", "org/model")["pushed"]["uploaded"] == []


def test_an_export_goes_alone_with_a_card_of_its_own(
    model: Path, tmp_path: Path, writable_hub: HubServer, hub_program: Program, capsys: Any
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.txt").write_text("not to be uploaded")
    output = tmp_path / "out" / "model.gguf"
    report = told(hub_program, capsys, "-i", model, "-o", output, "--quantize", "q8_0", "--push", "org/model")
    found = there(writable_hub)
    assert set(found) == {"model.gguf", "README.md"}
    assert found["model.gguf"] == output.read_bytes()
    card = found["README.md"].decode()
    assert card.startswith("---\ntags: [gguf]\nlicense: mit\n---\n")
    assert "# Our model" in card
    assert "| model.gguf | gguf | Q8" in card
    assert "llama-cli -m model.gguf" in card
    assert report["pushed"]["url"] == f"{writable_hub.url}/org/model"
    assert not repository(writable_hub).private


def test_a_push_that_fails_leaves_what_was_written_and_says_how_to_go_on(
    model: Path, tmp_path: Path, writable_hub: HubServer, hub_program: Program, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    output = tmp_path / "model.gguf"
    assert hub_program(["export", "-i", str(model), "-o", str(output), "--push", "org/model"]) == 1
    shown = capsys.readouterr().err
    assert f"{output} is written, and not on the Hub" in shown
    assert "--force writes it again" in shown
    assert output.is_file()


def test_what_cannot_be_meant_is_refused(model: Path, program: Program, capsys: Any) -> None:
    for flags, says in (
        (["--private", "-o", "m.gguf"], "--private is for what is uploaded"),
        (["--push", "org/model", "--verify"], "a folder is pushed as it is"),
        (["--push", "no name"], "no name"),
    ):
        assert program(["export", "-i", str(model), *flags]) == 2
        assert says in capsys.readouterr().err
