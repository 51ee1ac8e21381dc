"""A folder for what a process converts, gone when the process is: also of one that was killed."""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "entrenar-data-"
_LOCK = ".lock"


def scratch_folder() -> Path:
    """A new folder, deleted when this process ends. What processes that were killed left behind is deleted first.

    Each is locked while its process, or one forked from it, lives: whoever gets the lock knows that nobody does.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*"):
        _delete_if_left(left)
    folder, process = Path(tempfile.mkdtemp(prefix=PREFIX)), os.getpid()
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as unnamed:
        lock = os.dup(unnamed.fileno())  # open until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(unnamed.name).rename(folder / _LOCK)  # nobody finds it before it is locked
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder


def _delete_if_left(folder: Path) -> None:
    with suppress(OSError), (folder / _LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
