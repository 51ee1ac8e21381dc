"""The program `entrenar-inspect`."""

from collections.abc import Sequence

from entrenar_common.cli import build_program
from entrenar_common.output import ViewTable
from entrenar_inspect.commands import app


def _views() -> ViewTable:
    from entrenar_inspect.views import VIEWS

    return VIEWS


def _version() -> str:
    from importlib.metadata import version

    return version("entrenar-inspect")


_program = build_program("entrenar-inspect", app, _views, _version)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status."""
    return _program(argv)
