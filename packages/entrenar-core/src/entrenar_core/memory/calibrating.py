"""Measures the machine at hand, in a process of its own, and keeps what it found for predictions (calibration.py)."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import IO, Any

from entrenar_core.errors import EntrenarError
from entrenar_core.memory.calibration import Calibration, ModelName, Rate, Setting, keep_calibration
from entrenar_core.memory.jobs import DeviceType
from entrenar_core.memory.machine import default_device, this_machine

Progress = Callable[[int, int, str], None]
"""Is told how many measurements are done, of how many, and what is measured now."""
_LOG_BYTES = 4000
_BUSY = 0.5
"""Programs for each core, from which on they are in the way."""


def calibrate(
    device: DeviceType | None = None,
    progress: Progress | None = None,
    models: Sequence[ModelName] = ("small", "medium"),
) -> Calibration:
    """Measures a device and keeps what was found, in place of what was measured with the same torch before.

    Takes about a minute on two cores; a third of that with the small model alone, which says less of larger ones.

    Raises:
        UsageError: there is no such device.
        EntrenarError: the measurement ended before it was done.
        OutputError: what was found cannot be kept.
    """
    kind = device or default_device()
    name = this_machine(kind).name
    busy = said_of_load(os.getloadavg()[0], os.cpu_count() or 1)
    found = _measured({"device": kind, "models": list(models)}, progress or _untold)
    setting = Setting(kind, name, version("torch"), found["threads"] if kind == "cpu" else 0)
    memory: Mapping[str, int | None] = found["memory"]
    calibration = Calibration(
        setting,
        datetime.now().astimezone().isoformat(timespec="seconds"),
        memory["process"] or 0,
        memory["rounding"],
        memory["workspace"],
        tuple(Rate(**{**rate, "seconds": tuple(rate["seconds"])}) for rate in found["rates"]),
        (*found["notes"], *((f"measured with a {models[0]} model alone",) if len(models) == 1 else ()), *busy),
    )
    keep_calibration(calibration)
    return calibration


def said_of_load(load: float, cores: int) -> tuple[str, ...]:
    """What is to be said of a machine on which so many programs were at work when the measurement began."""
    if load < _BUSY * cores:
        return ()
    return (
        f"other programs were at work (a load of {load:.1f} on {cores} cores), and the rates are lower for it: "
        "calibrate again when they are done",
    )


def _untold(_done: int, _total: int, _doing: str) -> None:
    pass


def _measured(asked: Mapping[str, object], progress: Progress) -> dict[str, Any]:
    """The last message of the process that measures."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile() as log, _process(asked, log) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "doing" in message:
                progress(message["done"], message["total"], message["doing"])
            else:
                found = message
        if process.wait() or not found:
            raise EntrenarError(
                f"the calibration ended before it was done: {_reason(process.returncode, log)}",
                "close programs that take much memory, and calibrate again",
            )
    return found


@contextlib.contextmanager
def _process(asked: Mapping[str, object], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs it for as long as the block lasts, and ends it then."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "entrenar_core.memory.calibration_process", json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C at a terminal is for this process, which ends that one
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _reason(status: int, log: IO[bytes]) -> str:
    if status < 0:
        return f"signal {-status} ended its process" + (", perhaps for want of memory" if status == -9 else "")
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LOG_BYTES))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"its process ended with status {status} and said nothing"
