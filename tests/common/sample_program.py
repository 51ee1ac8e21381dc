"""A small real program, for tests that run it in this process and in others."""

import os
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from entrenar_common.cli import ModelReference, build_program
from entrenar_common.output import ViewTable, detail, note, warning
from entrenar_common.progress import Progress
from entrenar_core.errors import ConfigError, Interrupted, NotFoundError, Problem


class Kind(Enum):
    CAUSAL = "causal-lm"
    MASKED = "masked-lm"


@dataclass(frozen=True, slots=True)
class Weighed:
    name: str
    kind: Kind
    file_bytes: int
    ratio: float
    shape: tuple[int, ...]
    folder: Path
    every_layer: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    mistakes: int

    @property
    def exit_status(self) -> int:
        return 1 if self.mistakes else 0


@dataclass(frozen=True, slots=True)
class Rows:
    number: int


app = typer.Typer(help="Weigh things.\n\nNothing in a file is executed.", epilog="sample weigh a.gguf   one file")

EXAMPLES = """
sample weigh a.gguf

sample weigh org/name --json   a list such as [x] survives, and a remark that is too long moves to its own line
"""


@app.command(epilog=EXAMPLES)
def weigh(
    model: ModelReference,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path("out"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 42,
    kind: Annotated[Kind, typer.Option(help="What it is.")] = Kind.CAUSAL,
) -> Weighed:
    """Weigh a model.

    It takes a while.
    """
    note(f"reading {model}")
    warning("it has no tokenizer")
    detail(f"seed {seed}")
    return Weighed(model, kind, 4_200_000, float("nan"), (2, 3), folder)


@app.command()
def layers(model: ModelReference, verbose: Annotated[bool, typer.Option("--verbose")] = False) -> Weighed:
    """List layers; its --verbose is its own."""
    detail("said with -v")
    return Weighed(model, Kind.MASKED, 0, 0.5, (), Path(), every_layer=verbose)


@app.command()
def check(mistakes: int = 0) -> Checked:
    """Find mistakes."""
    return Checked(mistakes)


@app.command()
def rows() -> Rows:
    """Print many rows."""
    return Rows(20_000)


@app.command()
def noisy() -> Checked:
    """Print where a command must not."""
    print("a library says hello")  # noqa: T201
    warning("no tokenizer")
    return Checked(0)


@app.command()
def wait() -> None:
    """Work until interrupted."""
    with Progress() as progress:
        task = progress.task("training", total=1000, unit="steps")
        for _ in range(1000):
            task.advance(note="loss 2.31, best 2.30 at step 120, 8.1 GB in use")
            time.sleep(0.02)
            if task.completed == 5:
                note("working")
                Path(os.environ.get("SAMPLE_READY", os.devnull)).write_text("working")


@app.command()
def fail(how: str) -> None:
    """Fail."""
    problems = (Problem("`rnk` is not a setting", "did you mean `rank`?", "a.yaml:14:3"), Problem("no teacher"))
    failures: dict[str, BaseException] = {
        "missing": NotFoundError("a.yaml: no such file", "check the spelling"),
        "config": ConfigError(problems),
        "one-problem": ConfigError(problems[:1]),
        "bug": KeyError("weights"),
        "full": OSError(28, "No space left on device", "out/model.safetensors"),
        "socket": BrokenPipeError(32, "Broken pipe"),
        "ctrl-c": KeyboardInterrupt(),
        "saved": Interrupted("stopped at step 10, saved in out", "go on with --resume"),
        "secret": NotFoundError(f"https://hub/?token={os.environ.get('HF_TOKEN')} refused"),
        "escape": NotFoundError("\x1b[31mred\x9b\nhint: run rm -rf"),
        "exit": typer.Exit(3),
    }
    raise failures[how]


def views() -> ViewTable:
    from sample_views import VIEWS

    return VIEWS


main = build_program("sample", app, views, lambda: "1.2.3")
