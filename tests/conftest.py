"""Fixtures that several packages' tests share."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

Program = Callable[[Sequence[str] | None], int]
pytest_plugins = ["profiles", "hub_fixtures"]
MODES = ((), ("--json",), ("--compact",), ("-q",))


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture
def check_output(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs one command in all its output modes, asserts what every command promises of them, returns the JSON.

    check_output(program, ["info", "model.gguf"], values={"layers": 30}, shows=["30"], lines=["Layers\\t30"], quiet=[])

    `values` are keys of the JSON document, `shows` words of the table, `lines` whole lines of the compact output,
    `quiet` all lines of the quiet one. A command whose report holds measured times is not `repeatable`: its modes
    are run once instead of with the flag in both places.
    """

    def run(program: Program, argv: Sequence[str], status: int) -> str:
        capsys.readouterr()
        assert program(argv) == status, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err, "escape codes reached a pipe"
        assert not out or out.endswith("\n")
        assert "--json" not in argv or err == "", "with --json, stderr is for failures"
        return out

    def check(
        program: Program,
        argv: Sequence[str],
        *,
        values: Mapping[str, Any],
        shows: Sequence[str] = (),
        lines: Sequence[str] = (),
        quiet: Sequence[str] = (),
        status: int = 0,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        outputs = []
        for mode in MODES:
            out = run(program, [*mode, *argv], status)
            if mode and repeatable:
                assert run(program, [argv[0], *mode, *argv[1:]], status) == out, f"{mode} after the command differs"
            outputs.append(out)
        table, document, compact, script = outputs
        report: dict[str, Any] = json.loads(document, parse_constant=refuse_constant)
        assert {key: report[key] for key in values} == values
        assert [word for word in shows if word not in table] == []
        assert [line for line in lines if line not in compact.splitlines()] == []
        assert all(compact.splitlines()), "a blank line is no row"
        assert script.splitlines() == list(quiet)
        return report

    return check
