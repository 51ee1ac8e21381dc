"""Whether a run fits a machine, and what else would: each change, and each other way to train, predicted like it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from entrenar_core.config.adapters import LoraAdapter, LoraSettings
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.memory.changing import Jobs, Words, applicable, enough
from entrenar_core.memory.changing_generations import changed_generations
from entrenar_core.memory.constants import DeviceConstants
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.jobs import InferenceJob, Job, TrainingJob
from entrenar_core.memory.machine import Machine, this_machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.report import Alternative
from entrenar_core.models.teacher_rules import has_bitsandbytes


class Fitting:
    """Whether a run fits a machine, and what else would. On a processor `together` processes share its memory."""

    def __init__(self, machine: Machine | None, beside: int, constants: DeviceConstants, together: int) -> None:
        self.machine, self.beside, self.constants, self.together = machine, beside, constants, together
        self.known: list[tuple[Job, Estimate]] = []
        self.left_out: list[str] = []

    def needed(self, peak_bytes: int) -> int:
        """With the processes."""
        return (peak_bytes + self.beside) * self.together

    def fits(self, jobs: Jobs) -> bool | None:
        """None where no machine is asked about."""
        if self.machine is None:
            return None
        host_bytes = max(self.predicted(job).host_bytes for job in jobs)
        if host_bytes and not self.machine.named and host_bytes > this_machine("cpu").available_bytes:
            return False
        return self.needed(self.peak(jobs)) <= self.machine.available_bytes

    def peak(self, jobs: Jobs) -> int:
        """Of the largest part."""
        return max(self.predicted(job).peak_bytes for job in jobs)

    def predicted(self, job: Job) -> Estimate:
        """Of each job once."""
        for other, estimate in self.known:
            if other == job:
                return estimate
        self.known.append((job, predict(job, self.constants.rounding.size_bytes)))
        return self.known[-1][1]

    def advice(self, jobs: Jobs, words: Words, *, only_runs: bool) -> tuple[list[Alternative], tuple[str, ...]]:
        """Of a run that does not fit: single changes, and those that are enough."""
        last = jobs[-1]
        if isinstance(last, InferenceJob):
            changes = self.of_generation(last)
            return changes, next(((one.name,) for one in changes if one.fits), ())
        if not isinstance(last, TrainingJob):
            return [], ()
        of_runs = only_runs or words == "settings"
        together = enough(jobs, self.would_fit, words, only_runs=of_runs)
        if not together and not only_runs:
            together = enough(jobs, self.would_fit, words, only_runs=False)
        return self.changes(jobs, words, only_runs=only_runs), together

    def would_fit(self, jobs: Jobs) -> bool:
        """Whether it can be, and fits."""
        try:
            return self.fits(jobs) is True
        except ModelError:
            return False

    def alternative(self, name: str, jobs: Jobs, than: int) -> Alternative | None:
        """None where a model does not take it; then it is said."""
        try:
            peak = self.peak(jobs)
        except (ModelError, UsageError) as error:
            self.left_out.append(f"{name} is left out: {error.message}")
            return None
        trained = self.predicted(jobs[-1]).trace.trainable_parameters
        return Alternative(name, peak, than - peak, trained, self.fits(jobs))

    def alternatives(self, jobs: Jobs) -> Iterator[Alternative]:
        """Full training, LoRA and QLoRA of the same student."""
        *before, job = jobs
        assert isinstance(job, TrainingJob), "what a run ends with"
        adapters = job.adapters if isinstance(job.adapters, LoraSettings) else LoraAdapter()
        quantised = replace(job.student, load_in="nf4", double_quantized=True)
        full = replace(job, adapters=None, student=replace(job.student, load_in=None))
        ways = {"full": full, f"LoRA, rank {adapters.rank}": replace(full, adapters=adapters)}
        if has_bitsandbytes():
            ways[f"QLoRA, rank {adapters.rank}"] = replace(full, adapters=adapters, student=quantised)
        base = self.peak((*before, full))
        for name, made in ways.items():
            if (found := self.alternative(name, (*before, made), base)) is not None:
                yield found

    def of_generation(self, job: InferenceJob) -> list[Alternative]:
        """Single changes, those that save most first."""
        than = self.peak((job,))
        found = [self.alternative(name, (made,), than) for name, made in changed_generations(job)]
        return _by_saving(found)

    def changes(self, jobs: Jobs, words: Words, *, only_runs: bool) -> list[Alternative]:
        """Single changes, those that save most first."""
        than = self.peak(jobs)
        found = [self.alternative(told, made, than) for _, made, told in applicable(jobs, words, only_runs=only_runs)]
        return _by_saving(found)


def _by_saving(found: Sequence[Alternative | None]) -> list[Alternative]:
    savings = [one for one in found if one is not None and one.saving_bytes > 0]
    return sorted(savings, key=lambda one: -one.saving_bytes)
