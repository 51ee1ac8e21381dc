"""`merge` at the command line: what it prints, its exit status, and what it refuses before it works."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from entrenar_lora.cli import main
from lora_models import by_peft, load, train
from tiny_models import tiny_llama

Program = Callable[[Sequence[str] | None], int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    base = tiny_llama(folder / "base", dtype="bfloat16")
    train(base, folder / "one", seed=1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    train(base, folder / "two", seed=2, r=4, lora_alpha=8, target_modules=["q_proj"])
    train(base, folder / "dora", r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)
    return folder


@pytest.fixture
def program(files: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(files)
    return main


def test_a_verified_merge_says_what_was_lost_and_how_it_answers(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "merged")
    command = ["merge", "--base", "base", "--adapter", "one", "--output", output, "--dtype", "bf16", "--verify"]
    assert program([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtypes"] == {"BF16": 20}
    assert report["modules"] == report["tensors_changed"] == 4
    assert 0 < report["loss"]["overall"] <= report["loss"]["worst"] < 0.2
    assert set(report["loss"]["modules"]) >= {report["loss"]["worst_module"]}
    check = report["check"]
    assert 0 < check["difference"] <= check["allowed"] < 0.2 * check["largest_logit"]
    assert program(command) == 1  # it is there
    assert "--force" in capsys.readouterr().err


def test_a_merge_that_answers_otherwise_fails(
    program: Program, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter that peft loads is another than the one that was merged: it changes on the way."""
    from entrenar_core.adapters import checking

    inputs = checking._inputs

    def spoiled(folder: Path, config: dict[str, object]) -> object:
        weights = files / "one" / "adapter_model.safetensors"
        kept = load_file(weights)
        save_file({name: tensor * 1.5 for name, tensor in kept.items()}, weights)
        monkeypatch.setattr(checking, "_inputs", inputs)
        spoiled.restore = lambda: save_file(kept, weights)  # type: ignore[attr-defined]
        return inputs(folder, config)

    monkeypatch.setattr(checking, "_inputs", spoiled)
    command = ["merge", "--base", "base", "--adapter", "one", "--output", str(tmp_path / "merged"), "--verify"]
    try:
        assert program(command) == 1
    finally:
        spoiled.restore()  # type: ignore[attr-defined]
    assert "more than rounding explains" in capsys.readouterr().out


def test_the_table_has_the_figures(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "merged")
    adapters = ["--adapter", "one", "--adapter", "two", "--weights", "0.7,0.3"]
    assert program(["merge", "--base", "base", *adapters, "--output", output, "--scale", "2"]) == 0
    shown = capsys.readouterr().out
    for text in ("1.4 × one, 0.6 × two", "linear", "Update lost in storage", "Tensors as they were"):
        assert text in shown
    assert program(["merge", "--base", "base", *adapters, "--output", output, "--force", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == output


def test_a_dry_run_checks_everything_and_writes_nothing(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["merge", "--base", "base", "--adapter", "one", "--output", str(tmp_path / "merged"), "--dry-run"]
    assert program([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dry_run"]
    assert report["tensors_changed"] == 4
    assert report["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_combination_becomes_an_adapter_that_peft_loads(
    program: Program, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "both"
    command = ["merge", "--adapter", "one", "--adapter", "two", "--as-adapter", "--output", str(output), "--json"]
    assert program(command) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [4, 8]
    merged = tmp_path / "merged"
    merging = ["merge", "--base", "base", "--adapter", "one", "--adapter", "two", "--output", str(merged), "--quiet"]
    assert program([*merging, "--dtype", "fp32"]) == 0
    from lora_models import answers

    assert (by_peft(files / "base", output) - answers(load(merged))).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--adapter", "one"], 2, "no --base"),
        (["--base", "base", "--adapter", "./nowhere"], 1, "nowhere"),
        (["--base", "./absent", "--adapter", "one"], 1, "absent"),
        (["--base", "base", "--adapter", "one", "--weights", "1,2"], 2, "1 adapters and 2 weights"),
        (["--base", "base", "--adapter", "one", "--weights", "much"], 2, "no numbers"),
        (["--base", "base", "--adapter", "one", "--combine", "ties"], 2, "--density"),
        (["--base", "base", "--adapter", "one", "--rank", "4"], 2, "--combine svd"),
        (
            ["--base", "base", "--adapter", "one", "--combine", "ties", "--density", "0.5", "--rank", "4"],
            2,
            "no --rank",
        ),
        (["--base", "base", "--adapter", "one", "--as-adapter"], 2, "--base is for a merged model"),
        (["--base", "base", "--adapter", "one", "--quantize", "q4_k_m"], 2, "not quantised"),
        (["--base", "base", "--adapter", "one", "--dtype", "int4"], 2, "int4"),
        (["--base", "base", "--adapter", "one", "--to", "gguf", "--verify"], 2, "--verify"),
        (["--base", "base", "--adapter", "one", "--alpha", "3"], 2, "--alpha 3"),
        (["--base", "base", "--adapter", "dora", "--scale", "0.5", "--verify"], 2, "DoRA"),
        (["--adapter", "dora", "--as-adapter"], 1, "DoRA"),
        (["--adapter", "one", "--as-adapter", "--to", "gguf"], 2, "--to"),
        (["--adapter", "one", "--as-adapter", "--combine", "ties", "--density", "0.5"], 2, "--rank"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    assert program(["merge", *options, "--output", str(tmp_path / "merged")]) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "hint:" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_rounding_that_is_larger_than_the_update_is_no_share_of_it(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base of 32 bits, of which an update says little."""
    base = tiny_llama(tmp_path / "base")
    adapter = train(base, tmp_path / "small", size=3e-3, r=2, lora_alpha=0.01, target_modules=["q_proj"])
    line = ["merge", "--base", str(base), "--adapter", str(adapter)]
    assert main([*line, "--output", str(tmp_path / "merged"), "--dtype", "bf16"]) == 0
    told = capsys.readouterr().out
    assert "Rounding beside the update" in told
    assert "times as large" in told
    assert "Update lost" not in told
    assert main([*line, "--output", str(tmp_path / "m.gguf"), "--to", "gguf", "--quantize", "q8_0"]) == 0
    assert "about " in capsys.readouterr().out.partition("Rounding beside the update")[2]
