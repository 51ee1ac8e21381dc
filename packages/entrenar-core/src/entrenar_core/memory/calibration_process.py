"""The process that measures a machine: a clean one, so that what it takes is what a training process takes.

It says what it measures on stdout, a JSON object a line, and at last what it found. It ends with the process that
started it, however that ends: the pipe to it closes then.

    python -P -m entrenar_core.memory.calibration_process '{"device": "cpu", "models": ["small", "medium"]}'
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from entrenar_core.memory.calibration import Kind, ModelName, Precision, Rate
from entrenar_core.memory.jobs import DeviceType

if TYPE_CHECKING:
    from entrenar_core.memory.timed_steps import Size

_LEAST, _MOST, _BUDGET_S = 3, 9, 2.5
"""Rounds of each measurement, and after how long there are no more than the least."""
_TOKENS = 12
_PRECISIONS: dict[DeviceType, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "bf16", "fp16"),
    "mps": ("fp32", "fp16"),
}
_KINDS: tuple[Kind, ...] = ("training", "reading", "decoding")
_HELD = "import sys, torch; print(torch.cuda.mem_get_info()[0], flush=True); sys.stdin.read()"
"""A process that has a context on the GPU and nothing else; it says how much is free, and stays until it is told."""


def main(argument: str) -> None:
    """Measures what `argument` asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = json.loads(argument)
    device: DeviceType = asked["device"]
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no result

    def say(**message: object) -> None:
        os.write(out, f"{json.dumps(message)}\n".encode())

    say(done=0, total=1, doing="memory of the process")
    memory = _memory(device)
    work = list(_work(device, asked["models"]))
    notes: list[str] = []
    rates: list[Rate] = []
    for number, (doing, measure) in enumerate(work, start=1):
        say(done=number, total=len(work) + 1, doing=doing)
        try:
            rates += measure()
        except (NotImplementedError, RuntimeError) as error:  # such as out of memory, or no kernel for a precision
            notes.append(
                f"{doing} could not be measured: {str(error).splitlines()[0][:200] if str(error) else error!r}"
            )
        gc.collect()
    say(done=len(work) + 1, total=len(work) + 1, doing="")
    import torch

    say(threads=torch.get_num_threads(), memory=memory, rates=[asdict(rate) for rate in rates], notes=notes)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def _work(device: DeviceType, models: Sequence[ModelName]) -> Iterator[tuple[str, Callable[[], list[Rate]]]]:
    """What is measured, in words and in functions."""
    from entrenar_core.memory.timed_steps import SIZES

    sizes = [size for size in SIZES[device] if size.name in models]
    measures = {"training": _training, "reading": _reading, "decoding": _decoding}
    for kind in _KINDS:
        for precision in _PRECISIONS[device]:
            for size in sizes[-1:] if kind == "decoding" else sizes:
                doing = f"{kind} of a {size.name} Llama in {precision}"
                yield doing, _bound(measures[kind], device, precision, size)


def _bound(measure: Callable[..., list[Rate]], device: DeviceType, precision: Precision, size: "Size") -> Any:
    return lambda: measure(device, precision, size)


def _training(device: DeviceType, precision: Precision, size: "Size") -> list[Rate]:
    from entrenar_core.memory.real_steps import RealTraining
    from entrenar_core.memory.timed_steps import rounds, training_flops

    job = size.training(device, precision)
    flops, needed = training_flops(job)
    _require(device, needed)
    training = RealTraining(job)
    found = rounds(training.timed_parts, least=_LEAST, most=_MOST, budget_s=_BUDGET_S)
    passes, updates = zip(*found, strict=True)
    trained = sum(one.numel() for one in training.trained)
    return [
        Rate("training", precision, size.name, flops, passes),
        Rate("update", precision, size.name, trained, updates),
    ]


def _reading(device: DeviceType, precision: Precision, size: "Size") -> list[Rate]:
    from entrenar_core.memory.timed_steps import Reading, reading_flops, rounds

    job = size.reading(device, precision)
    flops, needed = reading_flops(job)
    _require(device, needed)
    seconds = rounds(Reading(job), least=_LEAST, most=_MOST, budget_s=_BUDGET_S)
    return [Rate("reading", precision, size.name, flops, tuple(seconds))]


def _decoding(device: DeviceType, precision: Precision, size: "Size") -> list[Rate]:
    from entrenar_core.memory.timed_steps import Writing, rounds

    writing = Writing(size.reading(device, precision))
    seconds = rounds(writing, least=_TOKENS, most=_TOKENS, budget_s=_BUDGET_S)
    return [Rate("decoding", precision, size.name, writing.size_bytes, tuple(seconds))]


def _require(device: DeviceType, needed_bytes: int) -> None:
    """Refuses to begin what would run out of memory; an operating system may end the process for that."""
    from entrenar_core.memory.machine import this_machine
    from entrenar_core.units import size

    available = this_machine(device).available_bytes
    if needed_bytes > available:
        raise RuntimeError(f"it takes {size(needed_bytes)}, and {size(available)} are available")


def _memory(device: DeviceType) -> dict[str, int | None]:
    """What a process takes that has trained a tiny model, and what the device's allocator and libraries take."""
    import datasets  # noqa: F401 - what a run loads

    import entrenar_core.training.distillation  # noqa: F401
    from entrenar_core.memory.real_steps import RealTraining
    from entrenar_core.memory.timed_steps import TINY

    training = RealTraining(TINY.training(device, "fp32"))
    for _ in range(2):
        training.timed_step()
    del training
    gc.collect()
    if device == "cuda":
        return _cuda_memory()
    return {"process": _resident() if device == "cpu" else _driver(), "rounding": None, "workspace": None}


def _resident() -> int:
    import psutil  # type: ignore[import-untyped]  # which accelerate brings

    return int(psutil.Process().memory_info().rss)


def _driver() -> int:
    import torch

    torch.mps.empty_cache()
    return int(torch.mps.driver_allocated_memory())


def _cuda_memory() -> dict[str, int | None]:
    """The context of another process is what is free less while it is there."""
    import torch

    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    with subprocess.Popen([sys.executable, "-c", _HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        context = before - int(other.stdout.readline() or before)
        other.communicate()
    held = torch.cuda.memory_allocated()
    one = torch.empty(1, dtype=torch.uint8, device="cuda")
    rounding = torch.cuda.memory_allocated() - held
    del one
    return {"process": max(0, context), "rounding": rounding, "workspace": _cuda_workspace()}


def _cuda_workspace() -> int:
    """What a product takes at its peak beyond its factors and itself, with the workspace that is already there."""
    import torch

    torch._C._cuda_clearCublasWorkspaces()
    factor = torch.ones(256, 256, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    product = factor @ factor
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - product.untyped_storage().nbytes()


if __name__ == "__main__":
    main(sys.argv[1])
