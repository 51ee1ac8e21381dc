"""`extract` at the command line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from entrenar_lora.cli import main
from lora_models import merged, train
from tiny_models import tiny_llama

Program = Callable[[Sequence[str] | None], int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    base = tiny_llama(folder / "base")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm"]}
    merged(base, [train(base, folder / "adapter", **lora)], folder / "tuned")
    train(base, folder / "plain", r=6, lora_alpha=6, target_modules=["q_proj"])
    return folder


@pytest.fixture
def program(files: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(files)
    return main


def test_it_says_what_is_kept_and_what_is_left_out(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--base", "base", "--tuned", "tuned", "--output", str(tmp_path / "found")]
    assert program([*command, "--rank", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ranks"] == [2, 2]
    assert 0 < report["worst"]["kept"] <= report["kept"] < 1
    assert len(report["left_out"]) == 5
    assert all(one["name"].endswith("norm.weight") for one in report["left_out"])
    assert program([*command, "--energy", "0.999", "--modules-to-save", "norm", "--force"]) == 0
    shown = capsys.readouterr().out
    assert "Energy kept" in shown
    assert "Held whole" in shown
    assert "Differs" not in shown


def test_an_adapter_is_cut_without_its_base(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["extract", "--adapter", "plain", "--rank", "3", "--output", str(tmp_path / "cut"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ranks"] == [3, 3]
    assert 0.5 < report["kept"] < 1


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--base", "base", "--tuned", "tuned"], 2, "--rank"),
        (["--base", "base", "--rank", "4"], 2, "no --tuned"),
        (["--base", "base", "--tuned", "tuned", "--rank", "4", "--targets", "q_porj"], 2, "q_proj"),
        (["--base", "base", "--tuned", "tuned", "--rank", "4", "--targets", ","], 2, "empty"),
        (["--base", "base", "--tuned", "base", "--rank", "4"], 1, "in no matrix"),
        (["--base", "base", "--tuned", "adapter", "--rank", "4"], 1, "in no matrix"),
        (["--adapter", "plain", "--energy", "0.9"], 2, "--rank"),
        (["--adapter", "adapter", "--rank", "2"], 1, "whole modules"),
    ],
)
def test_what_cannot_be_done_is_said(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    assert program(["extract", *options, "--output", str(tmp_path / "found")]) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "hint:" in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []
