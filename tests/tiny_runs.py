"""Small distillations of tiny models, and processes that run them.

The processes are forked from one that has loaded the libraries, so that a test can afford to kill twenty of them.
"""

import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from tiny_models import tiny_bert

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "the",
    "teacher",
    "gives",
    "the",
    "student",
    "soft",
    "targets",
]
CLASSES = ("animal", "river", "school")
PRELOADED = [
    "transformers.models.bert.modeling_bert",
    "entrenar_core.training.distillation",
    "entrenar_distill.running",
]


def write_rows(file: Path, num_rows: int = 40, *, seed: int = 0, unlabelled_every: int = 4) -> Path:
    """Ragged texts of three classes; every fourth has no label."""
    chance = random.Random(seed)
    rows = [
        {
            "text": " ".join(chance.choices(WORDS, k=chance.randint(1, 12))),
            "label": None if unlabelled_every and index % unlabelled_every == 3 else CLASSES[index % 3],
        }
        for index in range(num_rows)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_models(folder: Path) -> Path:
    """A teacher that is sure of itself, so that its part of the loss has weight, and a student of one layer."""
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
    tiny_bert(folder / "teacher", seed=1, initializer_range=0.4, **labels, num_labels=3)
    tiny_bert(folder / "student", seed=2, num_hidden_layers=1, **labels, num_labels=3)
    return folder


def write_job(folder: Path, models: Path, *, num_rows: int = 40, **changes: Mapping[str, Any]) -> Path:
    """A configuration in `folder`, whose output is `folder/out`; `changes` are merged into its sections."""
    folder.mkdir(exist_ok=True, parents=True)
    config: dict[str, dict[str, Any]] = {
        "teacher": {"model_id": str(models / "teacher")},
        "student": {"model_id": str(models / "student"), "dropout": 0.2},
        "dataset": {"path": str(write_rows(folder / "rows.jsonl", num_rows)), "max_length": 32},
        "training": {"epochs": 2, "batch_size": 6, "learning_rate": 0.003, "log_every": 1},
        "output": {"dir": str(folder / "out"), "checkpoint_every": 2},
    }
    config = deepcopy(config)
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _print_into(log: str) -> None:
    """What this process prints goes behind what is in the file, also what libraries write to the descriptors."""
    with Path(log).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _program(arguments: Sequence[str], log: str, file_bytes: int | None) -> None:
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    _print_into(log)
    import torch

    from entrenar_distill.cli import main

    torch.set_num_threads(1)
    sys.exit(main(list(arguments)))


def _line(command: Sequence[str], log: str, folder: str, environment: Mapping[str, str]) -> None:
    _print_into(log)
    os.environ.update(environment)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    program, *arguments = command
    if program == "python":
        sys.argv = ["-c"]
        exec(compile(arguments[0], "<a page>", "exec"), {"__name__": "__main__"})
        return
    (found,) = entry_points(group="console_scripts", name=program)
    sys.argv = list(command)
    sys.exit(found.load()())


def run_line(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """The exit status and output of one of our programs, or of `["python", code]`, in a folder."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
        process = _context().Process(target=_line, args=(list(command), log.name, str(folder), dict(environment)))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        return process.exitcode, log.read()


def start(job: Path, *arguments: str, file_bytes: int | None = None) -> BaseProcess:
    """`entrenar-distill run JOB …` in a process of its own, its output appended to `log` beside the job.

    With `file_bytes`, no file that it writes can become longer, as if the disk were full.
    """
    return start_program(["run", str(job), *arguments], job.with_name("log"), file_bytes=file_bytes)


def start_program(arguments: Sequence[str], log: Path, *, file_bytes: int | None = None) -> BaseProcess:
    """The same of any command line, its output appended to a file."""
    process = _context().Process(target=_program, args=(list(arguments), str(log), file_bytes))
    process.start()
    return process


def run(job: Path, *arguments: str, file_bytes: int | None = None) -> int:
    """The exit status of `entrenar-distill run JOB …`."""
    process = start(job, *arguments, file_bytes=file_bytes)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def log(job: Path) -> str:
    """What the runs of a job printed, in one line, however it was wrapped."""
    file = job.with_name("log")
    return " ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""


def wait_until(happened: Callable[[], object], process: BaseProcess) -> bool:
    """Whether it happened while the process was running."""
    while process.is_alive():
        if happened():
            return True
        time.sleep(0.0002)
    return False


def weights(job: Path) -> bytes:
    """The bits of the student that came out."""
    return (job.parent / "out" / "model.safetensors").read_bytes()


def manifest(job: Path) -> dict[str, Any]:
    """The `run.json` of a job."""
    found: dict[str, Any] = json.loads((job.parent / "out" / "run.json").read_text(encoding="utf-8"))
    return found


def losses(job: Path) -> list[float]:
    """The loss of every step."""
    lines = (job.parent / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]
