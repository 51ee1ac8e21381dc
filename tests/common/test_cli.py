"""The sample program run in this process: its modes, the reach of its flags, its errors, its help."""

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import typer

from entrenar_common.cli import build_program

Program = Callable[[Sequence[str] | None], int]
Capture = pytest.CaptureFixture[str]


def test_a_command_keeps_the_promises_of_all_modes(program: Program, check_output: Callable[..., Any]) -> None:
    report = check_output(
        program,
        ["weigh", "a.gguf", "-o", "here"],
        values={"name": "a.gguf", "kind": "causal-lm", "file_bytes": 4_200_000, "ratio": None, "shape": [2, 3]},
        shows=["Model: a.gguf", "File size     4.2 MB", "┤", "✓ it weighs something"],
        lines=["File size\t4.2 MB", "Every layer\tfalse", "train\t0\t2.0"],
        quiet=["here"],
    )
    assert list(report) == ["name", "kind", "file_bytes", "ratio", "shape", "folder", "every_layer"]


def test_a_report_can_carry_a_failed_check(program: Program, check_output: Callable[..., Any]) -> None:
    check_output(program, ["check"], values={"mistakes": 0}, shows=["0 mistakes"], lines=["0 mistakes"])
    check_output(program, ["check", "--mistakes", "2"], values={"mistakes": 2}, shows=["2 mistakes"], status=1)


def test_what_a_library_prints_is_not_the_result(
    program: Program, check_output: Callable[..., Any], capsys: Capture
) -> None:
    check_output(program, ["noisy"], values={"mistakes": 0}, lines=["0 mistakes"])
    program(["noisy"])
    assert capsys.readouterr() == ("0 mistakes\n", "a library says hello\nwarning: no tokenizer\n")
    program(["noisy", "-q"])
    assert capsys.readouterr() == ("", "")


def test_a_flag_that_the_command_defines_is_its_own(program: Program, capsys: Capture) -> None:
    for argv, every_layer, said in (
        (["layers", "x", "--verbose", "--json"], True, ""),
        (["--verbose", "layers", "x"], False, "said with -v"),
        (["layers", "-v", "x"], False, "said with -v"),
        (["layers", "x", "--verbose", "-v"], True, "said with -v"),
    ):
        program(argv)
        out, err = capsys.readouterr()
        assert said in err
        assert ("true" if "--json" in argv else "yes" if every_layer else "no") in out


@pytest.mark.parametrize(
    ("argv", "name", "folder"),
    [
        (["weigh", "-o", "-q", "a", "--json"], "a", "-q"),
        (["weigh", "--output=--compact", "a", "--json"], "a", "--compact"),
        (["weigh", "--json", "--", "--json"], "--json", "out"),
        (["--json", "weigh", "--output", "--quiet", "--", "-q"], "-q", "--quiet"),
        (["weigh", "a", "--json", "--json"], "a", "out"),
        (["weigh", "a", "-qo", "b", "--json"], "a", "b"),
    ],
)
def test_values_are_not_taken_for_flags(
    argv: list[str], name: str, folder: str, program: Program, capsys: Capture
) -> None:
    assert program(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["folder"]) == (name, folder)


def test_short_flags_combine(program: Program, capsys: Capture) -> None:
    assert program(["weigh", "a", "-qo", "b"]) == 0
    assert capsys.readouterr() == ("b\n", "")
    assert program(["weigh", "a", "-vv"]) == 0
    assert "seed 42" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["wiegh", "a"], "`wiegh` is not a command of `sample`", "did you mean `weigh`?"),
        (
            ["zzz"],
            "`zzz` is not a command of `sample`",
            "the commands are weigh, layers, check, rows, noisy, wait, fail",
        ),
        (["weigh"], "`MODEL` is missing", "see `sample weigh --help`"),
        (["weigh", "a", "b"], "unexpected argument `b`", "see `sample weigh --help`"),
        (["weigh", "a", "--sed", "1"], "`--sed` is not an option of `sample weigh`", "did you mean `--seed`?"),
        (["weigh", "a", "--zzz"], "`--zzz` is not an option of `sample weigh`", "see `sample weigh --help`"),
        (["weigh", "a", "-z"], "`-z` is not an option of `sample weigh`", "see `sample weigh --help`"),
        (["weigh", "a", "--output"], "`--output` needs a value", "see `sample --help`"),
        (["weigh", "a", "--quiet=1"], "`--quiet` takes no value", "see `sample --help`"),
        (
            ["weigh", "a", "--seed", "x"],
            "`--seed`: `x` should be a valid integer, unable to parse string as an integer",
            "see `sample weigh --help`",
        ),
        (
            ["weigh", "a", "--seed", "-1"],
            "`--seed`: `-1` should be greater than or equal to 0",
            "see `sample weigh --help`",
        ),
        (
            ["weigh", "a", "--kind", "causal"],
            "`--kind`: 'causal' is not one of 'causal-lm', 'masked-lm'",
            "see `sample weigh --help`",
        ),
        (["-q", "weigh", "a", "-v"], "`--quiet` and `--verbose` exclude each other", "give one of them"),
        (["-q"], "missing command", "see `sample --help`"),
        (["weigh", "a", "\x1b[2J"], "unexpected argument `\\x1b[2J`", "see `sample weigh --help`"),
    ],
)
def test_a_usage_error_names_the_thing_and_what_to_do(
    argv: list[str], message: str, hint: str, program: Program, capsys: Capture
) -> None:
    assert program(argv) == 2
    assert capsys.readouterr() == ("", f"error: {message}\nhint: {hint}\n")
    assert program([*argv, "--json"] if argv[-1] != "--output" else ["--json", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["code"] == "usage"


def test_json_and_compact_exclude_each_other_even_beside_another_mistake(program: Program, capsys: Capture) -> None:
    assert program(["--json", "weigh", "a", "--compact"]) == 2
    message = "`--json` and `--compact` exclude each other"
    assert json.loads(capsys.readouterr().err) == {
        "error": {"code": "usage", "message": message, "hint": "give one of them"}
    }
    assert program(["--compact", "weigh", "a", "--zzz", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["message"] == "`--zzz` is not an option of `sample weigh`"


@pytest.mark.parametrize(
    ("how", "status", "code", "shown"),
    [
        ("missing", 1, "not_found", "error: a.yaml: no such file\nhint: check the spelling\n"),
        ("saved", 130, "interrupted", "error: stopped at step 10, saved in out\nhint: go on with --resume\n"),
        ("ctrl-c", 130, "interrupted", "error: interrupted\n"),
        (
            "full",
            1,
            "machine",
            "error: out/model.safetensors: No space left on device\nhint: free some space, or write to another disk\n",
        ),
        (
            "bug",
            70,
            "internal",
            "error: internal error: KeyError: 'weights'\n"
            "hint: this is a bug in entrenar: please report it, with what ENTRENAR_DEBUG=1 shows\n",
        ),
        (
            "socket",
            70,
            "internal",
            "error: internal error: BrokenPipeError: [Errno 32] Broken pipe\n"
            "hint: this is a bug in entrenar: please report it, with what ENTRENAR_DEBUG=1 shows\n",
        ),
        ("one-problem", 2, "config", "error: a.yaml:14:3: `rnk` is not a setting\nhint: did you mean `rank`?\n"),
        (
            "config",
            2,
            "config",
            "error: a.yaml:14:3: `rnk` is not a setting\nhint: did you mean `rank`?\nerror: no teacher\n"
            "found 2 mistakes\n",
        ),
        ("escape", 1, "not_found", "error: \\x1b[31mred\\x9b\n  hint: run rm -rf\n"),
    ],
)
def test_a_failure_is_said_to_people_and_to_programs(
    how: str, status: int, code: str, shown: str, program: Program, capsys: Capture
) -> None:
    assert program(["fail", how]) == status
    assert capsys.readouterr() == ("", shown)
    assert program(["fail", how, "--json"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert error["code"] == code
    assert set(error) - {"problems"} == {"code", "message", "hint"}
    assert err.isascii()


def test_every_problem_of_a_configuration_is_in_the_json(program: Program, capsys: Capture) -> None:
    program(["fail", "config", "--json"])
    assert json.loads(capsys.readouterr().err)["error"]["problems"] == [
        {"where": "a.yaml:14:3", "message": "`rnk` is not a setting", "hint": "did you mean `rank`?"},
        {"where": None, "message": "no teacher", "hint": None},
    ]


def test_a_traceback_only_when_debugging(program: Program, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTRENAR_DEBUG", "1")
    assert program(["fail", "bug"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "hint: this is a bug in entrenar: please report it\n" in err
    program(["fail", "bug", "--json"])
    assert json.loads(capsys.readouterr().err)["error"]["trace"].startswith("Traceback")


def test_the_token_is_in_no_message(program: Program, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", 'a"secret"\\token')
    for argv in (["fail", "secret"], ["fail", "secret", "--json"], ["weigh", 'a"secret"\\token']):
        program(argv)
        out, err = capsys.readouterr()
        assert "secret" not in out + err
        assert "[token]" in out + err


def test_a_later_process_tells_failures_in_a_line_and_results_never(
    program: Program, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert program(["noisy"]) == 0
    assert capsys.readouterr() == ("", "")
    assert program(["fail", "missing"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: rank 1: ")
    assert program(["fail", "missing", "--json"]) == 1
    assert capsys.readouterr() == ("", ""), "one document, by the first process"
    assert program(["fail", "bug"]) == 70
    assert capsys.readouterr().err.startswith("error: internal error on rank 1: KeyError")


def test_a_command_can_choose_its_status(program: Program) -> None:
    assert program(["fail", "exit"]) == 3


def test_a_mode_does_not_outlive_its_program(program: Program, capsys: Capture) -> None:
    program(["check", "--json"])
    capsys.readouterr()
    program(["check"])
    assert capsys.readouterr().out == "0 mistakes\n"


def test_the_app_itself_is_left_as_it_was(program: Program) -> None:
    app = importlib.import_module("sample_program").app
    assert app.registered_callback is None
    assert build_program("other", app, dict, lambda: "1")(["check", "--help"]) == 0


HELP = """\
Weigh a model.

It takes a while.

Usage: sample weigh [OPTIONS] MODEL

Arguments:
  MODEL  A model of the Hub (org/name, org/name@revision), a folder, a file, or
         pkg://package/path.

Options:
  -o, --output <path>  Where to write. [default: out]
      --seed <int>     Seed of everything random. [default: 42; x>=0]
      --kind <causal-lm|masked-lm>
                       What it is. [default: causal-lm]
  -h, --help           Show this message and exit.

Global options:
      --json      Print the result as one JSON document.
      --compact   Print tab-separated lines.
  -q, --quiet     Print only what a script needs.
  -v, --verbose   Say more about what happens.
      --no-color  Print without colour.

Examples:
  sample weigh a.gguf
  # a list such as [x] survives, and a remark that is too long moves to its own line
  sample weigh org/name --json
"""


def test_help_is_a_calm_page(program: Program, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert program(["weigh", "--help"]) == 0
    assert capsys.readouterr() == (HELP, "")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal(
    columns: int, program: Program, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    program(["--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= min(columns, 100)
    assert "  weigh " in out
    assert "sample weigh a.gguf" in out


def test_without_a_command_the_help_goes_to_stderr(program: Program, capsys: Capture) -> None:
    assert program([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: sample [OPTIONS] COMMAND" in err


def test_the_version_is_data(program: Program, capsys: Capture) -> None:
    assert program(["--version"]) == 0
    assert capsys.readouterr() == ("sample 1.2.3\n", "")


def test_commands_in_groups_have_the_global_flags(capsys: Capture) -> None:
    app, group = typer.Typer(help="Outer."), typer.Typer(help="Inner.")
    app.add_typer(group, name="group")

    @group.command()
    def one() -> None:
        """One."""

    @group.command()
    def other() -> str:
        """Other."""
        return "text"

    program = build_program("grouped", app, lambda: {str: str}, lambda: "1")
    for argv in (["--json", "group", "other"], ["group", "--json", "other"], ["group", "other", "--json"]):
        assert program(argv) == 0
        assert capsys.readouterr().out == '"text"\n'
    assert program(["group", "othr"]) == 2
    assert "did you mean `other`?" in capsys.readouterr().err
