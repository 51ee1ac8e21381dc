"""What a command line names and is no model: it is said what it is, before the network is asked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hub_server import HubServer

Program = Callable[[list[str]], int]


@pytest.mark.parametrize(
    ("name", "holds"),
    [("config.json", "settings"), ("generation_config.json", "settings"), ("tokenizer.json", "a tokenizer")],
)
@pytest.mark.parametrize("command", ["info", "layers", "validate"])
def test_a_file_beside_the_weights_is_told_from_them(
    llama: Path, program: Program, name: str, holds: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program([command, str(llama / name)]) == 2
    assert capsys.readouterr().err == (
        f"error: {llama / name} holds {holds} and no weights\nhint: name the folder: {llama}\n"
    )
    assert program([command, str(llama), "--file", name]) == 2
    assert capsys.readouterr().err == (f"error: {name} holds {holds} and no weights\nhint: leave out `--file {name}`\n")


def test_one_that_is_not_there_is_not_there(
    tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["info", str(tmp_path / "config.json")]) == 1
    assert f"{tmp_path / 'config.json'} does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.json", "none.safetensors", "runs/none.ckpt", "./none", "/none/at/all"])
def test_what_looks_like_a_file_is_not_looked_for_on_the_hub(
    hub: HubServer, program: Program, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["info", name]) == 1
    assert f"error: {name} does not exist" in capsys.readouterr().err
    assert not hub.requests


def test_a_bare_name_that_the_hub_does_not_know_may_have_been_a_file(
    hub: HubServer, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["info", "nonexist"]) == 1
    assert "hint: no file or folder here is called nonexist; check the spelling" in capsys.readouterr().err
    assert program(["info", "org/nonexist"]) == 1
    assert "no file or folder here" not in capsys.readouterr().err


def test_an_index_is_opened_with_the_shards_that_it_lists(
    llama: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["info", str(llama / "model.safetensors.index.json")]) == 0
    assert "llama" in capsys.readouterr().out
