"""The one sink for what a program says: its result to stdout, everything else to stderr.

A command returns a report, a frozen dataclass. A view turns it into blocks for a reader; JSON needs no view. The
sink knows the mode of the program that runs, so commands and libraries below them only call `note`, `warning` and
`detail`. With `--json` a stderr that nobody watches stays empty but for the one object of a failure, and the
processes of a multi-process launch other than the first say nothing.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

from entrenar_common import plots, styles, tables
from entrenar_common.failures import Failure, debugging
from entrenar_common.plots import Plot
from entrenar_common.reports import as_json
from entrenar_common.tables import Table
from entrenar_core.errors import OutputError, UsageError

Block = Table | Plot | str
Blocks = Block | Sequence[Block]


@dataclass(frozen=True, slots=True)
class View:
    """How a report looks. `quiet` is what a script wants of it, such as the output folder."""

    blocks: Callable[[Any], Blocks]
    quiet: Callable[[Any], Sequence[str]] = lambda _: ()


ViewTable = Mapping[type, View | Callable[[Any], Blocks]]
"""The view of each type of report; a function alone is a view with nothing to say when quiet."""


@dataclass(frozen=True, slots=True)
class Sink:
    """The modes of the program that runs, and the only code that writes to its two streams."""

    json: bool = False
    compact: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False

    def show(self, report: object, views: Callable[[], ViewTable]) -> int:
        """Writes the result of a command in the chosen mode; returns the exit status that it carries.

        Raises:
            OutputError: stdout cannot be written, such as a full disk behind it.
        """
        if report is not None and not _silent_rank():
            lines = list(self._lines(report, views))
            if lines:
                self.tell("\n".join(lines))
        return int(getattr(report, "exit_status", 0))

    def tell(self, text: str) -> None:
        """Writes text to stdout: a result, a help page, a version.

        Raises:
            OutputError: stdout cannot be written.
        """
        try:
            self._write(sys.stdout, text + "\n")
        except BrokenPipeError:  # the reader has left (`| head -1`), which is no trouble
            silence(sys.stdout)
        except OSError as error:
            silence(sys.stdout)
            raise OutputError(f"cannot write the result: {error.strerror}", "check where stdout goes") from error

    def fail(self, failure: Failure) -> int:
        """Writes why the program stops to stderr, and returns its exit status."""
        if _silent_rank() and not failure.internal and failure.exit_status == 1 and not self.json:
            # what strikes one rank alone must not be silent; what strikes all is told in full by the first
            self._say(
                styles.redacted(styles.labelled("error", f"rank {os.environ['RANK']}: {failure.message}", colour=False))
            )
        elif failure.internal or not _silent_rank():
            if self.json:
                text = json.dumps(failure.as_json())
            else:
                # Ctrl-C leaves ^C on the line of the cursor
                fresh_line = "\r" if failure.code == "interrupted" and styles.is_terminal(sys.stderr) else ""
                text = fresh_line + failure.as_text(self.colour(sys.stderr))
            self._say(text)
        return failure.exit_status

    def message(self, label: str, text: str) -> None:
        """Writes a line to stderr, for the person who watches."""
        if self.talks:
            colour = self.colour(sys.stderr)
            self._say(styles.redacted(styles.labelled(label, text, colour)))

    @property
    def talks(self) -> bool:
        """Whether notes, warnings and progress are wanted on stderr."""
        for_a_person = not self.json or styles.is_terminal(sys.stderr)
        return for_a_person and not self.quiet and not _silent_rank()

    def colour(self, stream: TextIO | None) -> bool:
        """Whether to colour what goes to the stream."""
        return styles.has_colour(stream) and not self.no_color

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keeps what libraries print by themselves away from the result, and from where nothing may be printed."""
        nobody = (self.json and not styles.is_terminal(sys.stderr)) or _silent_rank()
        with Path(os.devnull).open("w") as nowhere, ExitStack() as stack:
            if nobody and not debugging():
                stack.enter_context(redirect_stderr(nowhere))
            stack.enter_context(redirect_stdout(_Aside() if self.talks else nowhere))
            yield

    def _lines(self, report: object, views: Callable[[], ViewTable]) -> Iterator[str]:
        if self.json:
            yield json.dumps(as_json(report), indent=2, allow_nan=False)
            return
        view = _view(report, views())
        if self.quiet:
            yield from (styles.redacted(styles.printable(line)) for line in view.quiet(report))
            return
        blocks = view.blocks(report)
        blocks = (blocks,) if isinstance(blocks, Table | Plot | str) else blocks
        for index, block in enumerate(blocks):
            if index and not self.compact:
                yield ""
            yield styles.redacted("\n".join(_compact(block)) if self.compact else self._human(block))

    def _human(self, block: Block) -> str:
        terminal, colour = styles.is_terminal(sys.stdout), self.colour(sys.stdout)
        if isinstance(block, Table):
            return tables.for_terminal(block, styles.width(), colour) if terminal else tables.plain(block)
        if isinstance(block, Plot):
            width = min(styles.width() if terminal else 80, 100)
            return plots.line_plot(block.series, block.title, block.x_label, block.y_label, width, colour=colour)
        return "\n".join(styles.marked(line, colour) for line in styles.printable(block, keep="\n").split("\n"))

    def _say(self, text: str) -> None:
        """Writes to stderr. That nobody listens there is no reason to stop the work."""
        try:
            self._write(sys.stderr, text + "\n")
        except OSError:
            silence(sys.stderr)

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is not None:
            stream.write(styles.safe_for(stream, text))
            stream.flush()


class _Aside(TextIOBase):
    """Stands in for stdout while a command works: passes what is printed on to stderr, if that still listens."""

    def write(self, text: str) -> int:
        try:
            if sys.stderr is not None:
                sys.stderr.write(text)
        except OSError:
            silence(sys.stderr)
        return len(text)

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()


_sink = Sink()


def current() -> Sink:
    """The sink of the program that runs; outside of one, that of a person at a terminal."""
    return _sink


def switch(mode: str) -> None:
    """Turns a mode of the current sink on.

    Raises:
        UsageError: it contradicts a mode that is already on.
    """
    global _sink
    for pair in (("json", "compact"), ("quiet", "verbose")):
        if mode in pair and any(getattr(_sink, other) for other in pair if other != mode):
            raise UsageError(f"`--{pair[0]}` and `--{pair[1]}` exclude each other", "give one of them")
    _sink = replace(_sink, **{mode: True})


@contextmanager
def fresh() -> Iterator[None]:
    """A sink without modes for the time that one program runs."""
    global _sink
    before, _sink = _sink, Sink()
    try:
        yield
    finally:
        _sink = before


def note(text: str) -> None:
    """Tells the person who watches what happens."""
    _sink.message("", text)


def warning(text: str) -> None:
    """Tells the person who watches that something may not be as they think."""
    _sink.message("warning", text)


def detail(text: str) -> None:
    """Like `note`, with `--verbose` only."""
    if _sink.verbose:
        _sink.message("", text)


def _view(report: object, views: ViewTable) -> View:
    for kind in type(report).__mro__:
        if kind in views:
            view = views[kind]
            return view if isinstance(view, View) else View(view)
    raise LookupError(f"no view for {type(report).__name__}")


def _compact(block: Block) -> list[str]:
    if isinstance(block, Table):
        return tables.compact_lines(block)
    if isinstance(block, Plot):
        return plots.compact_lines(block)
    return [styles.printable(line) for line in block.split("\n")]


def _silent_rank() -> bool:
    """Whether this is a process of a multi-process launch other than the first."""
    return os.environ.get("RANK", "0") != "0"


def silence(stream: TextIO | None) -> None:
    """Sends what is still buffered for a stream nowhere, so that leaving the interpreter does not complain."""
    with suppress(OSError, ValueError, AttributeError):  # a stream may be closed, or no file at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
