"""From jobs to what is said of them: predicted, held against a machine, beside what else could be done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from entrenar_core.errors import UsageError
from entrenar_core.memory.assumptions import assumptions_of
from entrenar_core.memory.calibration import kept_calibration
from entrenar_core.memory.changing import Words
from entrenar_core.memory.constants import constants_of
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.fitting import Fitting
from entrenar_core.memory.jobs import InferenceJob, Job, ReadingJob, Sharding, TrainingJob
from entrenar_core.memory.machine import Machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.report import MemoryReport, PartMemory, PhasePeak, Tried
from entrenar_core.memory.runs import Part
from entrenar_core.memory.timing import StepTime, precision_of, time_of
from entrenar_core.units import size


def report(
    parts: Sequence[Part],
    *,
    subject: str,
    machine: Machine | None = None,
    compare: bool = False,
    words: Words = "flags",
    only_runs: bool = False,
    own_bytes: int | None = None,
    steps: int | None = None,
    calibrate: bool = False,
) -> MemoryReport:
    """What is said of the parts of a run, or of one job.

    Args:
        parts: in the order in which they are done; memory that one leaves is free for the next.
        subject: what is predicted, in words.
        machine: on which it is to fit; None where that is not asked.
        compare: whether full training, LoRA and QLoRA are compared.
        words: how changes that would make it fit are told.
        only_runs: take only those that `entrenar-distill run` can do.
        own_bytes: what the process takes beside models; as the constants of the device say, if not given. It is 0 for
            a process that is there already.
        steps: how many optimiser steps the run has, where that is known.
        calibrate: take some real steps, which says how long they take, and how far off the prediction is.

    Raises:
        EntrenarError: of the kind that fits; a model cannot be made, or a loss does not fit.
    """
    device = parts[0].job.device
    constants = constants_of(device)
    estimates = [(part, predict(part.job, constants.rounding.size_bytes)) for part in parts]
    told = tuple(_part(part, estimate) for part, estimate in estimates)
    adapts = any(isinstance(part.job, TrainingJob) and part.job.adapters is not None for part in parts)
    of_process = constants.beside_bytes + constants.adapters_bytes * adapts
    beside = of_process if own_bytes is None else own_bytes
    last = parts[-1].job
    devices = 1 if isinstance(last, ReadingJob) else last.sharding.devices
    asked = Fitting(machine, beside, constants, devices if device == "cpu" else 1)
    asked.known += [(part.job, estimate) for part, estimate in estimates]
    largest = max(told, key=lambda part: part.peak_bytes)
    jobs = tuple(part.job for part in parts)
    fits = asked.fits(jobs)
    timed = _timed(last, told[-1], machine, fits=fits, calibrate=calibrate)
    changes, together = asked.advice(jobs, words, only_runs=only_runs) if fits is False else ([], ())
    alternatives = tuple(asked.alternatives(jobs)) if compare and isinstance(last, TrainingJob) else ()
    return MemoryReport(
        subject=subject,
        device=device,
        devices=devices,
        parts=told,
        peak_bytes=largest.peak_bytes,
        process_bytes=beside,
        needed_bytes=asked.needed(largest.peak_bytes),
        at_most_bytes=asked.needed(largest.peak_bytes + round(largest.peak_bytes * constants.kept_share)),
        machine=None if machine is None else machine.name,
        available_bytes=None if machine is None else machine.available_bytes,
        fits=fits,
        batch=_batch(last),
        alternatives=alternatives,
        changes=tuple(changes),
        enough=together,
        step_time=timed.step,
        run_time=None if timed.step is None or steps is None else timed.step.times(steps),
        tried=timed.tried,
        assumptions=(
            *assumptions_of(jobs, [one for _, one in estimates], constants),
            *asked.left_out,
            *_of(machine, told),
        ),
    )


def _of(machine: Machine | None, parts: Sequence[PartMemory]) -> Iterator[str]:
    """What cannot be known of a machine of which only the memory is said."""
    host_bytes = max(part.host_bytes for part in parts)
    if machine is not None and machine.named and host_bytes:
        yield f"its main memory holds the {size(host_bytes)} that are beside the device"


@dataclass(frozen=True, slots=True)
class _Timed:
    step: StepTime | None = None
    tried: Tried | None = None


def _timed(job: Job, part: PartMemory, machine: Machine | None, *, fits: bool | None, calibrate: bool) -> _Timed:
    """The time of a step: of real ones, or from its operations and what this machine was measured to do.

    Raises:
        UsageError: real steps are asked for, and cannot be taken here.
    """
    here = machine if machine is not None and not machine.named else None
    seconds: tuple[float, ...] = ()
    tried = None
    if calibrate:
        job = _that_can_be_taken(job, here, fits=fits)
        from entrenar_core.memory.real_steps import measure

        found = measure(job)
        seconds = found.steps_s
        of_steps = max(phase.peak_bytes for phase in part.phases if phase.phase != "evaluation")
        error = None if found.peak_bytes is None else of_steps / max(found.peak_bytes, 1) - 1
        tried = Tried(len(seconds), found.peak_bytes, error)
    if here is None or not isinstance(job, TrainingJob):
        return _Timed(None, tried)
    kept = kept_calibration(job.device)
    step = time_of(
        part.flops * job.gradient_accumulation,
        precision_of(job),
        here,
        None if kept is None else kept.calibration,
        seconds,
        trained_parameters=part.trainable_parameters,
    )
    return _Timed(step, tried)


def _that_can_be_taken(job: Job, here: Machine | None, *, fits: bool | None) -> TrainingJob:
    if here is None:
        raise UsageError("--calibrate takes real steps on this machine", "leave out --available")
    if not isinstance(job, TrainingJob) or job.sharding != Sharding():
        raise UsageError(
            "--calibrate takes real steps of a training on one device", "leave out --inference, --devices and --offload"
        )
    if any(one.spreading is not None for one in job.teachers):
        raise UsageError("--calibrate takes real steps on one device", "leave `teacher.device_map` out")
    if not fits:
        raise UsageError("--calibrate takes real steps, and they do not fit", "see what would, without --calibrate")
    return job


def _batch(job: Job) -> str:
    if isinstance(job, InferenceJob):
        return f"{_rows(job.batch_size)} of {job.context:,} tokens"
    return f"{_rows(job.batch_size)} of at most {job.length:,} tokens"


def _rows(number: int) -> str:
    return f"{number:,} row{'s' * (number != 1)}"


def _part(part: Part, estimate: Estimate) -> PartMemory:
    peak = estimate.trace.peak
    phases = (
        PhasePeak(phase, moment.total_bytes, moment.layer, moment.components)
        for phase, moment in estimate.trace.phases.items()
    )
    return PartMemory(
        name=part.name,
        peak_bytes=peak.total_bytes,
        phase=peak.phase,
        layer=peak.layer,
        components=peak.components,
        dtypes=peak.dtypes,
        phases=tuple(phases),
        parameters=estimate.trace.parameters,
        trainable_parameters=estimate.trace.trainable_parameters,
        teacher_parameters=estimate.trace.teacher_parameters,
        flops=estimate.trace.flops,
        method=estimate.method,
        host_bytes=estimate.host_bytes,
        behind=peak.layer is not None and peak.layer >= _layers(part.job, peak.model),
    )


def _layers(job: Job, model: int) -> int:
    """How many a model has, as its configuration says."""
    held = (job.student, *(one.model for one in job.teachers))[model] if isinstance(job, TrainingJob) else job.model
    return int(getattr(held.config.get_text_config(), "num_hidden_layers", None) or 1 << 30)
