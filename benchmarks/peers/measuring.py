"""What a call costs: CPU seconds, and how far it raises the memory of its process."""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cost(call: Callable[[], object]) -> tuple[float, int]:
    """CPU seconds, and the peak of resident bytes during the call over those before it."""
    reset_peak()
    before = resident_bytes()
    began = time.process_time()
    call()
    seconds = time.process_time() - began
    return seconds, max(0, peak_bytes() - before)


def reset_peak() -> None:
    """Gives freed memory back to the system, and starts the mark of the peak from what is left.

    Where it cannot be set back (it can on Linux), the peak of the process so far stays, which is at worst too high.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        CLEAR_REFS.write_text("5")


def resident_bytes() -> int:
    """What the process holds now; its peak where the system does not tell."""
    return _status("VmRSS") if STATUS.exists() else peak_bytes()


def peak_bytes() -> int:
    """The most it held since the mark was set back."""
    if STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
