"""Progress of long work on stderr: a live display for a person, a line now and then for a log, nothing when quiet.

with Progress() as progress:
    task = progress.task("training", total=1000, unit="steps")
    task.advance(note="loss 2.31")
"""

import math
import sys
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from entrenar_common import output, styles
from entrenar_core.units import duration, size

if TYPE_CHECKING:
    from rich.progress import TaskID

FIRST_LINE_S = 10.0
"""A log hears of a task after this time, then at ever longer intervals: every tenth of the time so far …"""
LONGEST_PAUSE_S = 600.0
"""… but at least this often. A day gives some 180 lines."""
WORTH_A_LINE_S = 1.0
"""What ends sooner leaves no line in a log."""


class _Display(Protocol):
    def add(self, task: "Task") -> None: ...
    def changed(self, task: "Task") -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class Task:
    """One piece of work. Its rate counts from where it began, which after a resume is not zero."""

    description: str
    total: float | None
    unit: str
    completed: float
    display: _Display | None = field(repr=False)
    note: str = ""
    ended: bool = False
    _began_from: float = field(init=False)
    _began_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_from, self._began_at_s = self.completed, monotonic()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Counts work done; `note` replaces the remark behind the numbers, such as the loss."""
        self.update(self.completed + amount, note=note)

    def update(self, completed: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Sets how much is done, how much there is to do, or both."""
        self.completed = self.completed if completed is None else completed
        self.total = self.total if total is None else total
        self.note = self.note if note is None else styles.printable(note)
        if self.display is not None:
            self.display.changed(self)

    def end(self) -> None:
        """Says that nothing follows, which a task without a total cannot know by itself."""
        self.ended = True
        self.update()

    @property
    def complete(self) -> bool:
        return self.ended or (self.total is not None and self.completed >= self.total)

    @property
    def elapsed_s(self) -> float:
        return monotonic() - self._began_at_s

    @property
    def status(self) -> str:
        """`120/1,000 steps, 3.4/s, 4m 10s left, loss 2.31`, as far as these are known."""
        parts = (self.done or duration(self.elapsed_s), self.rate, self.left, self.note)
        return ", ".join(part for part in parts if part)

    @property
    def done(self) -> str:
        if self.unit == "bytes":
            return size(self.completed) + (f" of {size(self.total)}" if self.total is not None else "")
        if self.total is None and not self.unit and not self.completed:
            return ""  # a task that only takes its time
        total = f"/{self.total:,.0f}" if self.total is not None else ""
        return f"{self.completed:,.0f}{total} {self.unit}".rstrip()

    @property
    def rate(self) -> str:
        per_second = self._per_second
        if not per_second:
            return ""
        if self.unit == "bytes":
            return f"{size(per_second)}/s"
        if per_second < 0.1:
            return f"{duration(1 / per_second)} each"
        return f"{per_second:.1f}/s" if per_second < 100 else f"{per_second:,.0f}/s"

    @property
    def left(self) -> str:
        if self.total is None or self.completed >= self.total or not self._per_second:
            return ""
        left_s = (self.total - self.completed) / self._per_second
        return f"{math.ceil(left_s)}s left" if left_s < 60 else f"{duration(left_s)} left"

    @property
    def _per_second(self) -> float:
        return max(0.0, self.completed - self._began_from) / max(self.elapsed_s, 1e-9)


class Progress:
    """The display of any number of tasks. Leaving it clears what was live, so that the result stands alone."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._display: _Display | None = None

    def __enter__(self) -> Self:
        if output.current().talks:
            self._display = _Live() if styles.is_terminal(sys.stderr) else _Log()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._display is not None:
            for task in self._tasks:
                if kind is None and not task.complete:
                    task.end()
            self._display.close()

    def task(self, description: str, total: float | None = None, unit: str = "", completed: float = 0) -> Task:
        """Adds a piece of work. The unit `bytes` is shown as sizes; `completed` is where a resumed one stands."""
        task = Task(styles.printable(description), total, unit, completed, self._display)
        self._tasks.append(task)
        if self._display is not None:
            self._display.add(task)
        return task


class _Log:
    """Plain lines, at growing intervals."""

    def __init__(self) -> None:
        self._due_s: dict[Task, float] = {}

    def add(self, task: Task) -> None:
        self._due_s[task] = FIRST_LINE_S

    def changed(self, task: Task) -> None:
        elapsed_s = task.elapsed_s
        if task.complete:
            if self._due_s.pop(task, None) is not None and elapsed_s >= WORTH_A_LINE_S:
                note = f", {task.note}" if task.note else ""
                took = f"{task.done} in {duration(elapsed_s)}" if task.done else duration(elapsed_s)
                output.note(f"{task.description}: {took}{note}")
        elif elapsed_s >= self._due_s.get(task, FIRST_LINE_S):
            self._due_s[task] = elapsed_s + min(max(FIRST_LINE_S, elapsed_s / 10), LONGEST_PAUSE_S)
            output.note(f"{task.description}: {task.status}")

    def close(self) -> None:
        self._due_s.clear()


class _Live:
    """Lines that move, by rich. Messages and stray prints appear above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        colour = output.current().colour(sys.stderr)
        console = Console(
            stderr=True,
            width=styles.width() - 3,  # the ^C that the terminal echoes must not start another line
            force_terminal=True,
            color_system="standard" if colour else None,
            no_color=not colour,
            legacy_windows=False,
        )
        self._ids: dict[Task, TaskID] = {}
        self._progress = RichProgress(
            SpinnerColumn("dots", style=styles.STYLES["label"], finished_text=styles.GOOD),
            TextColumn("{task.description}", markup=False),
            BarColumn(
                min(24, max(8, styles.width() - 66)),
                style=styles.STYLES["rule"],
                complete_style=styles.STYLES["label"],
                finished_style=styles.STYLES["good"],
                pulse_style=styles.STYLES["label"],
                table_column=Column(min_width=8),
            ),
            TextColumn("{task.fields[work].status}", style=styles.STYLES["muted"], markup=False),
            console=console,
            transient=True,
        )
        self._progress.start()

    def add(self, task: Task) -> None:
        self._ids[task] = self._progress.add_task(
            task.description, total=task.total, completed=int(task.completed), work=task
        )

    def changed(self, task: Task) -> None:
        total = task.completed if task.ended and task.total is None else task.total
        self._progress.update(self._ids[task], completed=task.completed, total=total)

    def close(self) -> None:
        self._progress.stop()
