"""Ctrl-C, SIGTERM and SIGHUP as a request: the step in hand is finished and saved. A second one stops at once."""

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self


class StopRequest:
    """While it is entered, remembers that someone asked to stop; in a thread other than the main one it stays False.

    `acknowledge` is called at once, from within the signal handler.
    """

    def __init__(self, acknowledge: Callable[[], None] | None = None) -> None:
        self.requested = False
        self._acknowledge = acknowledge
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._acknowledge is not None:
            with suppress(OSError, RuntimeError, ValueError):  # a terminal that is gone, or in the middle of a line
                self._acknowledge()
