"""Command lines of `entrenar-inspect` in a process of their own that is measured: seconds, memory, what it opened.

The processes are forked from one that has the program imported, so that a test can afford hundreds of them, and that
has nothing else: not what other tests have imported. `python tests/measured_runs.py` is that process.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S, LIMIT_BYTES = 10, 2 << 30
"""A process that takes much more than any may is stopped, before the machine feels it."""

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
_WATCHED = ("open", "os.listdir", "os.scandir")
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
_SOUND = ("safetensors", "gguf", "apr", "apr.json", "bin", "onnx")


@dataclass(frozen=True, slots=True)
class Told:
    """What one command line gave."""

    status: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Process:
    """A process that ran some command lines: what each gave, unless it ended before, and what all together took.

    `opened` are the files and folders that were looked into and the files whose code was run, links followed; and `did`
    what no look into a model does: processes, connections, code from nowhere.
    """

    status: int
    told: tuple[Told, ...]
    peak_bytes: int
    opened: tuple[str, ...]
    did: tuple[str, ...]


class Runner:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "ENTRENAR_DEBUG", "RANK")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        )

    def run(self, *commands: Sequence[str | Path]) -> Process:
        """What `entrenar-inspect` does with each of these, one after the other in one process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([list(map(str, command)) for command in commands]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        told = tuple(Told(**told) for told in answer["told"])
        return Process(answer["status"], told, answer["peak_bytes"], tuple(answer["opened"]), tuple(answer["did"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.communicate()


def _run(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs a command line in this process; what it writes goes into files."""
    from entrenar_inspect.cli import main

    paths = (folder / "out", folder / "err")
    for number, path in enumerate(paths, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    begun = time.perf_counter()
    status = main(arguments)
    seconds = time.perf_counter() - begun
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = (path.read_bytes().decode() for path in paths)
    return {"status": status, "out": out, "err": err, "seconds": seconds}


def _child(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Runs command lines and writes down what they did."""
    opened: dict[str, None] = {}
    did: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event in _WATCHED and isinstance(details[0], str | bytes):
            opened[os.fsdecode(details[0])] = None
        elif event == "exec":
            name = getattr(details[0], "co_filename", "")
            if Path(name).is_absolute():
                opened[name] = None
            else:
                did.append(f"exec {name}")
        elif event in _NEVER:
            did.append(event)

    if sys.platform == "linux":  # elsewhere nobody holds it
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    sys.addaudithook(watch)
    told = [_run(command, folder) for command in commands]
    own = {os.devnull, *(str(folder / name) for name in ("out", "err"))}
    found = {"told": told, "opened": [os.path.realpath(path) for path in opened if path not in own], "did": did}
    (folder / "found").write_text(json.dumps(found))


def _measured(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Runs command lines in a process and waits for it."""
    with tempfile.TemporaryDirectory() as name:
        folder, ended = Path(name), 99
        process = os.fork()
        if not process:
            try:
                _child(commands, folder)
                ended = 0
            finally:
                os._exit(ended)
        _, status, usage = os.wait4(process, 0)
        found = folder / "found"
        return {
            "status": os.waitstatus_to_exitcode(status),
            "peak_bytes": usage.ru_maxrss * _MAXRSS_BYTES,
            **(json.loads(found.read_text()) if found.exists() else {"told": [], "opened": [], "did": []}),
        }


def _warm_up() -> None:
    """Runs the commands on sound models, so that all that they import and keep is there."""
    from entrenar_inspect.cli import main
    from malformed_folders import write_llama
    from malformed_parts import apr, apr_json, gguf, safetensors
    from malformed_programs import SOUND_ONNX, SOUND_PYTORCH

    contents = (safetensors(), gguf(), apr(), apr_json(), SOUND_PYTORCH, SOUND_ONNX)
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        folder = Path(name)
        (folder / "llama").mkdir()
        write_llama(folder / "llama")
        for suffix, content in zip(_SOUND, contents, strict=True):
            (folder / f"model.{suffix}").write_bytes(content)
        for path in (folder / "llama", *(folder / f"model.{suffix}" for suffix in _SOUND)):
            for command in (["info"], ["info", "--json"], ["layers", "--stats"], ["compare", str(path)]):
                assert main([*command, str(path), "--allow-pickle"]) == 0, (command, path)
            main(["validate", str(path), "--allow-pickle"])  # a model of one tensor is none of any family
        for kind in ("safetensors", "apr", "apr-json", "pytorch"):
            assert main(["convert", f"{name}/model.safetensors", "--to", kind, "-o", f"{name}/{kind}"]) == 0


def _serve() -> None:
    _warm_up()
    gc.collect()
    gc.freeze()  # what is shared with the processes stays so
    for line in sys.stdin:
        print(json.dumps(_measured(json.loads(line))), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    _serve()
