"""The sample program as a process of its own: real pipes, signals and terminals, and what it loads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "RANK", "TERM", "FORCE_COLOR", "COLUMNS"}}
TERMINAL = {**ENVIRONMENT, "TERM": "xterm-256color"}
LOADED = "import sys; from sample_program import main; main({argv!r}); print(*sys.modules, file=sys.stderr)"


def run(command: list[str], *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *argv], capture_output=True, text=True, timeout=60, env={**ENVIRONMENT, **environment}, check=False
    )


def shell(script: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """The script in bash; `$@` is the program. The status is that of the program, not of the reader."""
    return subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}", "bash", *command],
        capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False,
    )  # fmt: skip


def in_terminal(command: list[str], *argv: str, **environment: str) -> tuple[str, int | None]:
    child = pexpect.spawn(
        command[0], [*command[1:], *argv], env={**TERMINAL, **environment}, dimensions=(24, 80), encoding="utf-8"
    )
    text = child.read()
    child.close()
    return text, child.exitstatus


@pytest.mark.parametrize("arguments", ["rows", "rows --json", "rows --compact"])
def test_a_reader_that_leaves_ends_the_program_quietly(arguments: str, command: list[str]) -> None:
    done = shell(f'"$@" {arguments} | head -1', command)
    assert len(done.stdout.splitlines()) == 1
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("argv", "status"), [(["weigh", "--help"], 0), (["--version"], 0), (["check", "--mistakes", "2"], 1), (["rows"], 0)]
)
def test_a_reader_that_never_was_changes_no_status(argv: list[str], status: int, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*command, *argv], stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == ("", status)


def test_a_stderr_that_nobody_reads_does_not_stop_the_work(command: list[str]) -> None:
    done = shell('"$@" noisy 2>&1 >/dev/null | true', command)
    assert done.returncode == 0
    done = shell('"$@" noisy 2>&-', command)
    assert (done.stdout, done.returncode) == ("0 mistakes\n", 0)


def test_a_result_that_finds_no_room_is_an_error(command: list[str]) -> None:
    done = shell('"$@" check >/dev/full', command)
    assert done.stderr == "error: cannot write the result: No space left on device\nhint: check where stdout goes\n"
    assert done.returncode == 1


def test_an_ascii_terminal_gets_what_it_can_show(command: list[str]) -> None:
    done = run(command, "weigh", "模型", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "Model: ??" in done.stdout


def test_ctrl_c_ends_with_130_and_no_traceback(command: list[str]) -> None:
    child = subprocess.Popen(
        [*command, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert child.stderr is not None
    assert child.stderr.readline() == "working\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (out, err, child.returncode) == ("", "error: interrupted\n", 130)


def test_ctrl_c_with_json_is_one_object(command: list[str], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    environment = {**ENVIRONMENT, "SAMPLE_READY": str(ready)}
    child = subprocess.Popen(
        [*command, "wait", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not ready.exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (out, child.returncode) == ("", 130)
    assert json.loads(err) == {"error": {"code": "interrupted", "message": "interrupted", "hint": None}}


def test_a_terminal_sees_live_progress_which_leaves_no_trace(command: list[str]) -> None:
    child = pexpect.spawn(
        command[0], [*command[1:], "wait"], env=TERMINAL, dimensions=(24, 80), encoding="utf-8", timeout=30
    )
    child.expect("working")
    child.expect(r"\d+/1,000 steps, [\d.]+/s, \d+s left, loss 2.31")
    child.sendintr()
    rest = child.read()
    child.close()
    assert child.exitstatus == 130
    after = rest.rpartition("\x1b[2K")[2]
    assert "interrupted" in after
    assert "steps" not in after, "the live line is cleared, and not drawn again"
    assert "Traceback" not in rest
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", rest).replace("\r", "\n").split("\n")
    assert max(len(line) for line in lines if "steps" in line) <= 77, "^C must not start another line"


def test_colour_is_for_terminals_that_want_it(command: list[str]) -> None:
    text, status = in_terminal(command, "weigh", "a")
    assert status == 0
    assert "\x1b[1mModel: a\x1b[0m" in text
    assert "\x1b[1;33mwarning\x1b[0m" in text
    assert "\x1b[32m✓ it weighs something" in text
    for environment, argv in (({"NO_COLOR": "1"}, []), ({"TERM": "dumb"}, []), ({}, ["--no-color"])):
        text, status = in_terminal(command, "weigh", "a", *argv, **environment)
        assert status == 0
        assert "\x1b" not in text
        assert "Model: a" in text


def test_help_in_a_terminal_has_colour_unless_told_otherwise(command: list[str]) -> None:
    assert "\x1b[1;32mUsage:\x1b[0m" in in_terminal(command, "weigh", "--help")[0]
    assert "\x1b" not in in_terminal(command, "weigh", "--help", "--no-color")[0]


def test_the_shell_completes_commands_and_flags(command: list[str]) -> None:
    asked = {"_SAMPLE_COMPLETE": "complete_bash"}
    assert run(command, COMP_WORDS="sample we", COMP_CWORD="1", **asked).stdout.split() == ["weigh"]
    assert run(command, COMP_WORDS="sample check --j", COMP_CWORD="2", **asked).stdout.split() == ["--json"]


@pytest.mark.parametrize(
    ("argv", "absent", "present"),
    [
        (["--help"], ("rich", "pydantic", "plotille", "sample_views"), ()),
        (["weigh", "--help"], ("rich", "pydantic", "plotille", "sample_views"), ()),
        (["rows", "--json"], ("rich", "pydantic", "plotille", "sample_views"), ()),
        (["noisy"], ("rich", "pydantic", "plotille"), ("sample_views",)),
        (["weigh", "a"], ("rich",), ("plotille", "sample_views")),
    ],
)
def test_a_command_loads_only_what_it_shows(argv: list[str], absent: tuple[str, ...], present: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(argv=argv)],
        cwd=Path(__file__).parent, capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    loaded = set(re.split(r"\s+", done.stderr))
    assert "sample_program" in loaded
    assert loaded.isdisjoint(absent)
    assert loaded.issuperset(present)
