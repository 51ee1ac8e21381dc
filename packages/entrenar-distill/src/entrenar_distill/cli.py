"""The program `entrenar-distill`."""

from collections.abc import Sequence

from entrenar_common.cli import build_program
from entrenar_common.output import ViewTable
from entrenar_distill.commands import app


def _views() -> ViewTable:
    from entrenar_distill.views import VIEWS

    return VIEWS


def _version() -> str:
    from importlib.metadata import version

    return version("entrenar-distill")


_program = build_program("entrenar-distill", app, _views, _version)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status."""
    return _program(argv)
