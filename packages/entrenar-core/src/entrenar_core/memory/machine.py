"""What memory there is: of the machine at hand, as far as this process may use it, or of one that is named.

Main memory is what Linux says is available without swapping, and no more than what the control groups of this process
leave, as containers and batch systems have them. Sources: proc_pid_status(5), Documentation/admin-guide/cgroup-v2.rst
and cgroup-v1/memory.rst of Linux.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from entrenar_core.errors import UsageError
from entrenar_core.memory.jobs import DeviceType
from entrenar_core.units import parse_size, size

_UNLIMITED_BYTES = 1 << 60
"""A limit of version 1 that is as large is none: it is the largest number of whole pages."""
_KB = 1024
_ELSEWHERE = "say how much memory the one that is meant has, as `--available 80GB`, or name another device, such as cpu"


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory that a job may take, in bytes: of the smallest of its `devices`, if there are several.

    `available_bytes` is what is free now, `total_bytes` what there is. `limit` says what sets the available memory
    where it is not the memory itself. What is only `named` is not at hand.
    """

    device: DeviceType
    name: str
    total_bytes: int
    available_bytes: int
    devices: int = 1
    limit: str | None = None
    named: bool = False


def this_machine(device: DeviceType | None = None, root: Path = Path("/")) -> Machine:
    """The machine at hand.

    Args:
        device: whose memory is meant; by default what training would use, which asks torch. Of `cpu`, torch is not
            asked.
        root: where `/proc` and `/sys` are.

    Raises:
        UsageError: there is no such device.
    """
    kind = device or default_device()
    if kind == "cuda":
        return _cuda()
    if kind == "mps":
        return _mps()
    return _cpu(root)


def asked_machine(available: str | None, device: DeviceType | None = None) -> Machine:
    """The machine that a command is asked about: one of so much memory, or this one as a new process would find it,
    when the one that asks is gone.

    Raises:
        UsageError: this is no size, or has no unit; or there is no such device.
    """
    kind = device or default_device()
    if available is not None:
        return named_machine(available, kind)
    machine = this_machine(kind)
    if kind != "cpu":
        return machine
    own = 0
    with suppress(OSError, ValueError, IndexError):
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return replace(machine, available_bytes=min(machine.total_bytes, machine.available_bytes + own))


def named_machine(text: str, device: DeviceType = "cpu") -> Machine:
    """A machine of which only the memory is known, such as `16GB`.

    Raises:
        UsageError: this is no size, or has no unit.
    """
    bare = text.strip()
    if bare.replace(".", "", 1).isdecimal():
        raise UsageError(f"`{bare}` has no unit: it could be bytes or gigabytes", f"write `{bare}GB`, or `{bare}GiB`")
    size_bytes = parse_size(text)
    if size_bytes == 0:
        raise UsageError(f"`{text}` is no memory", "write what the machine has, such as `16GB`")
    return Machine(device, f"a machine with {size(size_bytes)}", size_bytes, size_bytes, named=True)


def default_device() -> DeviceType:
    """What training uses if nothing else is said: a GPU, if torch finds one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cuda() -> Machine:
    import torch

    if not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here", _ELSEWHERE)
    count = torch.cuda.device_count()
    free, total = zip(*(torch.cuda.mem_get_info(number) for number in range(count)), strict=True)
    return Machine("cuda", torch.cuda.get_device_name(0), min(total), min(free), devices=count)


def _mps() -> Machine:
    import torch

    if not torch.backends.mps.is_available():
        raise UsageError("torch finds no MPS device here", _ELSEWHERE)
    most = int(torch.mps.recommended_max_memory())
    free = max(0, most - int(torch.mps.driver_allocated_memory()))
    return Machine("mps", processor_name(), most, free, limit="what Metal recommends as the most")


def _cpu(root: Path) -> Machine:
    total, available = _main_memory(root)
    limit = None
    for most, left in _groups(root):
        total = min(total, most)
        if left < available:
            available, limit = left, f"the control group's limit of {size(most)}"
    return Machine("cpu", processor_name(root), total, max(0, available), limit=limit)


def _main_memory(root: Path) -> tuple[int, int]:
    """All of it and what is available, in bytes."""
    file = root / "proc/meminfo"
    if file.is_file():
        found = {name: int(value.split()[0]) * _KB for name, value in _fields(file) if value.split()}
        if "MemTotal" in found and "MemAvailable" in found:
            return found["MemTotal"], found["MemAvailable"]
    import psutil  # type: ignore[import-untyped]  # which accelerate brings

    memory: Any = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def processor_name(root: Path = Path("/")) -> str:
    """What the processor calls itself."""
    file = root / "proc/cpuinfo"
    names = dict(_fields(file)) if file.is_file() else {}
    return names.get("model name") or platform.processor() or platform.machine() or "a processor"


def _fields(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Of each control group of this process that has a limit: the limit, and what is left of it, in bytes.

    Files that the kernel may take back at any time are counted as left, as `MemAvailable` counts them.
    """
    for folder, (limit, used, idle) in _group_folders(root):
        most, taken = _number(folder / limit), _number(folder / used)
        if most is not None and taken is not None and most < _UNLIMITED_BYTES:
            yield most, max(0, most - max(0, taken - _idle(folder / "memory.stat", idle)))


_VERSION_2 = "memory.max", "memory.current", "inactive_file"
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _group_folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The groups of this process, from its own up to the outermost that is seen from here."""
    file = root / "proc/self/cgroup"
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts: tuple[str, ...]
        if not controllers:
            mounts, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _VERSION_2
        elif "memory" in controllers.split(","):
            mounts, names = ("sys/fs/cgroup/memory",), _VERSION_1
        else:
            continue
        own = Path(path.lstrip("/"))
        for mount in mounts:
            # in a container the path may be that of the host, of which only the last group is seen, as the outermost
            for group in (own, *own.parents):
                yield root / mount / group, names


def _number(file: Path) -> int | None:
    """None where there is none, or no limit."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _idle(file: Path, name: str) -> int:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(
        int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name and value.isdigit()
    )
