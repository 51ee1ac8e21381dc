"""What memory there is: against psutil, and in trees of `/proc` and `/sys` as containers have them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch

from entrenar_core.errors import UsageError
from entrenar_core.memory.machine import Machine, named_machine, this_machine

GB, GIB = 10**9, 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:   12582912 kB\nHugePages_Total: 0\n"
CPUINFO = "processor\t: 0\nmodel name\t: A Processor @ 2.50GHz\nflags\t\t: fpu vme\n\nprocessor\t: 1\n"


def tree(folder: Path, files: Mapping[str, object]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/cpuinfo": CPUINFO, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    return folder


def test_this_machine_has_what_psutil_finds() -> None:
    memory = psutil.virtual_memory()
    machine = this_machine("cpu")
    assert machine.device == "cpu"
    assert machine.name
    assert not machine.named
    assert 0 < machine.available_bytes <= machine.total_bytes <= memory.total
    if machine.limit is None:
        assert machine.total_bytes == memory.total
        assert machine.available_bytes == pytest.approx(memory.available, rel=0.2)


def test_main_memory_is_found_without_torch() -> None:
    asks = "from entrenar_core.memory.machine import this_machine; this_machine('cpu')"
    code = f"import sys; {asks}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_by_default_it_is_what_torch_would_train_on() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert this_machine().device == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        this_machine("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_metal_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="no MPS device"):
        this_machine("mps")


def test_without_groups_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/"})
    assert this_machine("cpu", root) == Machine("cpu", "A Processor @ 2.50GHz", 16 * GIB, 12 * GIB)


def test_a_system_without_proc_is_asked_through_psutil(tmp_path: Path) -> None:
    machine = this_machine("cpu", tmp_path)
    assert machine.total_bytes == psutil.virtual_memory().total
    assert machine.name


def test_a_group_of_version_2_limits_and_its_idle_files_are_left(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/batch/job_7"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/batch/job_7",
            f"{group}/memory.max": 4 * GIB,
            f"{group}/memory.current": 3 * GIB,
            f"{group}/memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file 5",
            "sys/fs/cgroup/batch/memory.max": "max",
            "sys/fs/cgroup/batch/memory.current": 3 * GIB,
        },
    )
    machine = this_machine("cpu", root)
    assert (machine.total_bytes, machine.available_bytes) == (4 * GIB, 2 * GIB)
    assert machine.limit == "the control group's limit of 4.3 GB"


def test_an_outer_group_with_less_left_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/shell",
            "sys/fs/cgroup/user/shell/memory.max": 8 * GIB,
            "sys/fs/cgroup/user/shell/memory.current": GIB,
            "sys/fs/cgroup/user/memory.max": 10 * GIB,
            "sys/fs/cgroup/user/memory.current": 9 * GIB,
        },
    )
    machine = this_machine("cpu", root)
    assert (machine.total_bytes, machine.available_bytes) == (8 * GIB, GIB)


def test_a_container_of_version_1_whose_path_is_that_of_the_host(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/0f\n4:memory:/docker/0f\n0::/",
            f"{group}/memory.limit_in_bytes": 2 * GIB,
            f"{group}/memory.usage_in_bytes": GIB,
            f"{group}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}",
        },
    )
    machine = this_machine("cpu", root)
    assert (machine.total_bytes, machine.available_bytes) == (2 * GIB, 3 * GIB // 2)


def test_the_largest_limit_of_version_1_is_none(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/session"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/session",
            f"{group}/memory.limit_in_bytes": 9223372036854771712,
            f"{group}/memory.usage_in_bytes": GIB,
        },
    )
    assert this_machine("cpu", root).limit is None


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": GIB,
            "sys/fs/cgroup/memory.current": GIB + 4096,
        },
    )
    assert this_machine("cpu", root).available_bytes == 0


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("16GB", 16 * GB), ("16 GiB", 16 * GIB), (" 0.5tb ", 500 * GB), ("80gb", 80 * GB)]
)
def test_a_machine_is_named_by_its_memory(text: str, size_bytes: int) -> None:
    machine = named_machine(text, "cuda")
    assert (machine.total_bytes, machine.available_bytes, machine.device) == (size_bytes, size_bytes, "cuda")
    assert machine.named


@pytest.mark.parametrize("text", ["16", " 16 ", "1.5", "0"])
def test_a_number_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"`{text.strip()}` has no unit") as caught:
        named_machine(text)
    assert caught.value.hint == f"write `{text.strip()}GB`, or `{text.strip()}GiB`"


@pytest.mark.parametrize("text", ["", "GB", "16G", "-4GB", "lots", "1e3GB", "0GB"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_machine(text)
    assert caught.value.hint
