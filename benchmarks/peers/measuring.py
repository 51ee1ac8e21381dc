"""What a call costs: CPU seconds, and how far it raises the memory of its process."""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cost(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, and the peak of resident bytes during the call over those before it."""
    gc.collect()
    before, resettable = _settled()
    began = time.process_time()
    call()
    seconds = time.process_time() - began
    return seconds, max(0, (_status("VmHWM") if resettable else _highest()) - before)


def _settled() -> tuple[int, bool]:
    """Resident bytes, once freed memory has gone back to the system; and whether the mark of the peak starts there.

    Where it cannot be set back, the peak of the process so far counts: then only a first call says something.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        CLEAR_REFS.write_text("5")
        return _status("VmRSS"), True
    except (OSError, AttributeError):
        return _highest(), False


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
