"""Whether a run fits the memory that there is, found out before it starts.

A look by formulas comes first: where a run needs but a small part of what is free, that is enough. Else a step is
traced, and what cannot fit is refused with what would.
"""

from collections.abc import Sequence
from dataclasses import replace

from accelerate import Accelerator

from entrenar_core.errors import TrainingError
from entrenar_core.memory.closed_form import closed_form
from entrenar_core.memory.jobs import DeviceType, InferenceJob, Sharding, TrainingJob
from entrenar_core.memory.machine import Machine, this_machine
from entrenar_core.memory.report import MemoryReport
from entrenar_core.memory.reporting import report
from entrenar_core.memory.runs import Part, RunFacts, parts_of
from entrenar_core.models.loading import load_config
from entrenar_core.models.student_settings import planned_config
from entrenar_core.training.preparation import Preparation
from entrenar_core.units import size

_SMALL = 0.2
"""Of the memory that is free: what needs less by formulas is not traced."""
ERROR = 0.1
"""The worst error that predictions had where they were compared with runs, about: benchmarks/memory.py."""


def require_memory(
    prepared: Preparation, device: DeviceType, processes: int, *, force: bool, machine: Machine | None = None
) -> MemoryReport | None:
    """Predicts what a run takes, if that may be much; None where it is little.

    Args:
        prepared: the run.
        device: where it trains.
        processes: how many share it; on a CPU they share its memory.
        force: train even if it does not fit.
        machine: whose memory it is; this one's, if not given.

    Raises:
        TrainingError: the run cannot fit, and is not forced to.
    """
    machine = machine or this_machine(device)
    parts = run_parts(prepared, machine, processes)
    together = processes if device == "cpu" else 1
    if _at_first_sight(parts) * together < _SMALL * machine.available_bytes:
        return None
    found = report(parts, subject="the run", machine=machine, words="settings", only_runs=True, own_bytes=0)
    needed = found.needed_bytes
    if needed * (1 - ERROR) > machine.available_bytes and not force:
        raise TrainingError(
            f"the run needs about {size(needed)} of memory, and {size(machine.available_bytes)} are available on "
            f"{machine.name}: the most in {found.largest.name}, {found.largest.phase}",
            _way_out(found),
        )
    return found


def told(found: MemoryReport | None) -> list[str]:
    """A prediction in a sentence, if there is one."""
    if found is None:
        return []
    said = f"predicted to take {size(found.peak_bytes)} of memory at most, in {found.largest.phase}"
    if found.available_bytes is None:
        return [said]
    near = found.peak_bytes * (1 + ERROR) > found.available_bytes
    return [f"{said}, of {size(found.available_bytes)} that are free{': it may not be enough' if near else ''}"]


def device_type(accelerator: Accelerator) -> DeviceType:
    """Where a run trains, as far as memory goes: what has none of its own takes main memory."""
    kind = accelerator.device.type
    return kind if kind in ("cuda", "mps") else "cpu"


def _way_out(found: MemoryReport) -> str:
    if found.enough:
        return f"{' and '.join(found.enough)} would make it fit; --force tries it as it is"
    return "take a smaller model, or rows of fewer tokens (`dataset.max_length`); --force tries it as it is"


def _at_first_sight(parts: Sequence[Part]) -> int:
    return max(
        closed_form(part.job, "at first sight").peak_bytes for part in parts if not isinstance(part.job, InferenceJob)
    )


def run_parts(prepared: Preparation, machine: Machine, processes: int = 1) -> list[Part]:
    """The jobs of a run, with the lengths of its rows."""
    members = prepared.members or (prepared,)
    teachers = [load_config(one.teacher, trust_remote_code=one.config.teacher.trust_remote_code) for one in members]
    if prepared.student is not None:
        trusted = prepared.config.student.trust_remote_code
        student = load_config(prepared.student, trust_remote_code=trusted)
    else:
        student = planned_config(prepared.config.student, teachers[0], task=prepared.task, vocab_size=prepared.num_ids)
    lengths = None if prepared.config.dataset.streaming else list(prepared.train_tokens["length"])
    most = prepared.config.dataset.max_length
    facts = RunFacts(
        prepared.task,
        teachers,
        student,
        length=max(lengths) if lengths and not prepared.config.dataset.packing else most,
        mean_length=sum(lengths) / len(lengths) if lengths else None,
        sharding=Sharding(processes),
        device=machine.device,
        gpus=machine.devices,
        room_bytes=machine.available_bytes,
    )
    parts = parts_of(prepared.given, facts)
    return parts if prepared.tuning is None else [_tuning(parts[-1], prepared)]


def _tuning(part: Part, prepared: Preparation) -> Part:
    """The training of a model without a teacher, by whatever adapter it has."""
    assert isinstance(part.job, TrainingJob), "the last part of a run"
    return replace(part, job=replace(part.job, adapters=prepared.adapter))
