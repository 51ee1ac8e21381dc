"""The program `entrenar-lora`."""

from collections.abc import Sequence

from entrenar_common.cli import build_program
from entrenar_common.output import ViewTable
from entrenar_lora.commands import app


def _views() -> ViewTable:
    from entrenar_lora.views import VIEWS

    return VIEWS


def _version() -> str:
    from importlib.metadata import version

    return version("entrenar-lora")


_program = build_program("entrenar-lora", app, _views, _version)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status."""
    return _program(argv)
