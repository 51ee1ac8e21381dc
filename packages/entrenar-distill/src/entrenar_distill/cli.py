"""The program `entrenar-distill`."""

from collections.abc import Sequence
from importlib.metadata import version

from entrenar_common.cli import build_program
from entrenar_common.output import ViewTable
from entrenar_distill.commands import app


def _views() -> ViewTable:
    from entrenar_distill.views import VIEWS

    return VIEWS


_program = build_program("entrenar-distill", app, _views, version("entrenar-distill"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status."""
    return _program(argv)
