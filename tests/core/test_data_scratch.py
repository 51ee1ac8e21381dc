"""The folder of a process is there while the process is, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from entrenar_core.data.scratch import scratch_folder
(scratch_folder() / "rows.arrow").write_text("private")
print("ready", flush=True)
sys.stdin.read()
"""


def started(temporary: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"TMPDIR": str(temporary)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate("")
    assert process.returncode == 0


def folders(temporary: Path) -> set[str]:
    return {folder.name for folder in temporary.iterdir()}


def test_it_is_deleted_when_its_process_ends(tmp_path: Path) -> None:
    process = started(tmp_path)
    (name,) = folders(tmp_path)
    assert (tmp_path / name / "rows.arrow").read_text() == "private"
    ended(process)
    assert folders(tmp_path) == set()


def test_the_next_process_deletes_what_one_that_was_killed_left(tmp_path: Path) -> None:
    killed = started(tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (left,) = folders(tmp_path)
    other = started(tmp_path)
    assert left not in folders(tmp_path)
    assert len(folders(tmp_path)) == 1
    ended(other)


def test_processes_leave_each_others_folders_alone(tmp_path: Path) -> None:
    processes = [started(tmp_path) for _ in range(3)]
    assert len(folders(tmp_path)) == 3
    for process in processes:
        ended(process)
    assert folders(tmp_path) == set()


@pytest.mark.parametrize("content", [None, "a file that is not ours"])
def test_a_folder_without_a_lock_is_not_ours(tmp_path: Path, content: str | None) -> None:
    other = tmp_path / "entrenar-data-notes"
    other.mkdir()
    if content:
        (other / "notes.txt").write_text(content)
    ended(started(tmp_path))
    assert folders(tmp_path) == {"entrenar-data-notes"}
