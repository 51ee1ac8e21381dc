"""From jobs to what is said of them: predicted, held against a machine, beside what else could be done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from entrenar_core.memory.calibration import kept_calibration
from entrenar_core.memory.changing import Words, applicable, enough
from entrenar_core.memory.constants import DeviceConstants, constants_of
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.jobs import Adapters, DeviceType, InferenceJob, Job, ReadingJob, TrainingJob
from entrenar_core.memory.machine import Machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.report import Alternative, MemoryReport, PartMemory, PhasePeak, Tried
from entrenar_core.memory.runs import Part
from entrenar_core.memory.timing import StepTime, precision_of, time_of
from entrenar_core.models.teacher_rules import has_bitsandbytes

_RANK = 16


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
    device = _device(parts[0].job)
    constants = constants_of(device)
    estimates = [(part, predict(part.job, constants.rounding.size_bytes)) for part in parts]
    told = tuple(_part(part.name, estimate) for part, estimate in estimates)
    beside = constants.beside_bytes if own_bytes is None else own_bytes
    asked = _Asked(machine, beside, constants)
    asked.known += [(part.job, estimate) for part, estimate in estimates]
    largest = max(told, key=lambda part: part.peak_bytes)
    last = parts[-1].job
    fits = asked.fits(largest.peak_bytes)
    timed = _timed(last, told[-1], machine, calibrate=calibrate) if isinstance(last, TrainingJob) else _Timed()
    changes: tuple[Alternative, ...] = ()
    together: tuple[str, ...] = ()
    if fits is False and isinstance(last, TrainingJob):
        changes = tuple(asked.changes(last, told[-1], words, only_runs=only_runs))
        together = enough(last, asked.would_fit, words, only_runs=only_runs)
    return MemoryReport(
        subject=subject,
        device=device,
        devices=1 if isinstance(last, ReadingJob) else last.sharding.devices,
        parts=told,
        peak_bytes=largest.peak_bytes,
        process_bytes=beside,
        needed_bytes=largest.peak_bytes + beside,
        at_most_bytes=largest.peak_bytes + beside + round(largest.peak_bytes * constants.kept_share),
        machine=None if machine is None else machine.name,
        available_bytes=None if machine is None else machine.available_bytes,
        fits=fits,
        alternatives=tuple(asked.alternatives(last)) if compare and isinstance(last, TrainingJob) else (),
        changes=changes,
        enough=together,
        step_time=timed.step,
        run_time=None if timed.step is None or steps is None else timed.step.times(steps),
        tried=timed.tried,
        assumptions=tuple(_assumptions([job.job for job in parts], [one for _, one in estimates], constants)),
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    step: StepTime | None = None
    tried: Tried | None = None


def _timed(job: TrainingJob, part: PartMemory, machine: Machine | None, *, calibrate: bool) -> _Timed:
    """The time of a step: of real ones, or from its operations and what this machine was measured to do."""
    here = machine if machine is not None and not machine.named else None
    passes = job.gradient_accumulation
    kept = None if here is None else kept_calibration(job.device)
    seconds: tuple[float, ...] = ()
    tried = None
    if calibrate:
        from entrenar_core.memory.real_steps import measure

        found = measure(job)
        seconds = found.steps_s
        error = None if found.peak_bytes is None else part.peak_bytes / max(found.peak_bytes, 1) - 1
        tried = Tried(len(seconds), found.peak_bytes, error)
    if here is None:
        return _Timed(None, tried)
    step = time_of(
        part.flops * passes,
        precision_of(job),
        here,
        None if kept is None else kept.calibration,
        seconds,
        trained_parameters=part.trainable_parameters,
    )
    return _Timed(step, tried)


class _Asked:
    """Whether something fits a machine, and what else would."""

    def __init__(self, machine: Machine | None, beside: int, constants: DeviceConstants) -> None:
        self.machine, self.beside, self.constants = machine, beside, constants
        self.known: list[tuple[Job, Estimate]] = []

    def fits(self, peak_bytes: int) -> bool | None:
        """None where no machine is asked about."""
        return None if self.machine is None else peak_bytes + self.beside <= self.machine.available_bytes

    def predicted(self, job: TrainingJob) -> Estimate:
        """Of each job once."""
        for other, estimate in self.known:
            if other == job:
                return estimate
        self.known.append((job, predict(job, self.constants.rounding.size_bytes)))
        return self.known[-1][1]

    def would_fit(self, job: TrainingJob) -> bool:
        return self.fits(self.predicted(job).peak_bytes) is True

    def alternative(self, name: str, job: TrainingJob, than: int) -> Alternative:
        found = self.predicted(job)
        peak = found.peak_bytes
        return Alternative(name, peak, than - peak, found.trace.trainable_parameters, self.fits(peak))

    def alternatives(self, job: TrainingJob) -> Iterator[Alternative]:
        """Full training, LoRA and QLoRA of the same student."""
        full = replace(job, adapters=None, student=replace(job.student, load_in=None))
        adapters = job.adapters or Adapters(_RANK)
        rank = adapters.rank
        quantised = replace(job.student, load_in="nf4", double_quantized=True)
        base = self.predicted(full).peak_bytes
        yield self.alternative("full", full, base)
        yield self.alternative(f"LoRA, rank {rank}", replace(full, adapters=adapters), base)
        if has_bitsandbytes():
            yield self.alternative(f"QLoRA, rank {rank}", replace(full, adapters=adapters, student=quantised), base)

    def changes(self, job: TrainingJob, part: PartMemory, words: Words, *, only_runs: bool) -> list[Alternative]:
        """Single changes, those that save most first."""
        found = [
            self.alternative(told, made, part.peak_bytes)
            for _, made, told in applicable(job, words, only_runs=only_runs)
        ]
        return sorted((one for one in found if one.saving_bytes > 0), key=lambda one: -one.saving_bytes)


def _device(job: Job) -> DeviceType:
    return job.device


def _part(name: str, estimate: Estimate) -> PartMemory:
    peak = estimate.trace.peak
    phases = (
        PhasePeak(phase, moment.total_bytes, moment.layer, moment.components)
        for phase, moment in estimate.trace.phases.items()
    )
    return PartMemory(
        name=name,
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
    )


def _assumptions(jobs: Sequence[Job], estimates: Sequence[Estimate], constants: DeviceConstants) -> Iterator[str]:
    """All that was taken for granted."""
    for job in jobs:
        if isinstance(job, TrainingJob):
            yield from _of_training(job)
        elif isinstance(job, InferenceJob):
            yield f"{job.batch_size:,} rows of {job.context:,} tokens"
    for estimate in estimates:
        yield from estimate.assumptions
        for number, (short, long) in estimate.traced_layers.items():
            whose = "the student" if number == 0 else "a teacher"
            yield f"{whose}: {short} and {long} layers were traced, and the others follow from these"
    if constants.device != "cpu":
        yield "operations are those of a CPU, but for what is known to differ: rounding, tiles, attention with dropout"
    yield from constants.assumptions


def _of_training(job: TrainingJob) -> Iterator[str]:
    rows = -(-job.batch_size // job.sharding.devices)
    yield f"batches of {rows:,} rows of {job.length:,} tokens" + (", some of them padded" if job.padded else "")
    if job.counted is not None:
        yield f"losses count {job.counted:,} positions of a batch"
    yield f"attention: {job.student.attention}; optimizer: {job.optimizer}; mixed precision: {job.mixed_precision}"
    yield "logits are all there at once" if job.all_logits else "logits are made in tiles, as entrenar trains"
