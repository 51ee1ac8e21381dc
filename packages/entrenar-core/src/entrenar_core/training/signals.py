"""Ctrl-C and SIGTERM as a request: the step in hand is finished and saved. A second Ctrl-C stops at once."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """While it is entered, remembers that someone asked to stop; in a thread other than the main one it stays False."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
