"""What could be done so that a training fits: each change by itself, and the fewest that are enough.

Every change is predicted like the job itself. They are tried in the order of what they cost: first those that change
no result, then those that change little, and sharing over devices last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from entrenar_core.config.adapters import USUAL_RANK, LoraAdapter
from entrenar_core.memory.jobs import (
    CachedSignals,
    Job,
    LoadIn,
    ReadingJob,
    Sharding,
    TrainingJob,
)
from entrenar_core.models.heads import LANGUAGE
from entrenar_core.models.teacher_rules import has_bitsandbytes

Jobs = Sequence[Job]
"""What a run does one after the other, the training last."""
Words = Literal["settings", "flags"]
"""How changes are told: as settings of a configuration, or as flags of a command."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a job: `made` gives the changed one, None where it does not apply; `reading` changes what a teacher
    reads before the training, where it is of that too.

    `setting` and `flag` tell how to ask for it, with the changed job at hand, where that can be done. `runs` says
    whether a run of `entrenar-distill` can do it now. Of the changes of the `batch` one can be made.
    """

    made: Callable[[TrainingJob], TrainingJob | None]
    setting: Callable[[TrainingJob], str] | None
    flag: Callable[[TrainingJob], str] | None
    runs: bool = True
    batch: bool = False
    reading: Callable[[ReadingJob], ReadingJob] | None = None

    def on(self, jobs: Jobs) -> Jobs | None:
        """All jobs of a run, of which the last trains; None where nothing changes."""
        *before, last = jobs
        assert isinstance(last, TrainingJob), "what a run ends with"
        changed = tuple(self._read(job) if isinstance(job, ReadingJob) else job for job in before)
        made = self.made(last)
        if self.reading is not None and not _live(last) and changed == tuple(before):
            return None  # of a teacher that is not there
        found = (*changed, last if made is None else made)
        return None if found == tuple(jobs) else found

    def _read(self, job: ReadingJob) -> ReadingJob:
        return job if self.reading is None else self.reading(job)

    def told(self, made: TrainingJob, words: Words) -> str | None:
        """What to do; None where these words have nothing for it."""
        tell = self.setting if words == "settings" else self.flag
        return None if tell is None else tell(made)


def _checkpointed(job: TrainingJob) -> TrainingJob | None:
    return None if job.gradient_checkpointing else replace(job, gradient_checkpointing=True)


def _smaller_batch(divisor: int) -> Callable[[TrainingJob], TrainingJob | None]:
    def made(job: TrainingJob) -> TrainingJob | None:
        rows = job.batch_size // divisor
        if rows < job.sharding.devices or job.batch_size % divisor or _looks_at_groups(job):
            return None
        counted = None if job.counted is None else -(-job.counted // divisor)
        return replace(job, batch_size=rows, gradient_accumulation=job.gradient_accumulation * divisor, counted=counted)

    return made


def _looks_at_groups(job: TrainingJob) -> bool:
    return any(getattr(term.entry, "group_size", 1) > 1 for term in job.terms or ())


def _live(job: TrainingJob) -> bool:
    return any(one.cached is None for one in job.teachers)


def _teacher_as(load_in: LoadIn) -> Callable[[TrainingJob], TrainingJob | None]:
    def made(job: TrainingJob) -> TrainingJob | None:
        if not has_bitsandbytes() or not _live(job) or any(one.model.load_in is not None for one in job.teachers):
            return None
        teachers = (replace(one, model=replace(one.model, load_in=load_in)) for one in job.teachers)
        return replace(job, teachers=tuple(teachers))

    return made


def _read_as(load_in: LoadIn) -> Callable[[ReadingJob], ReadingJob]:
    def made(job: ReadingJob) -> ReadingJob:
        if not has_bitsandbytes() or job.model.load_in is not None:
            return job
        return replace(job, model=replace(job.model, load_in=load_in))

    return made


def _teacher_rows(job: TrainingJob) -> TrainingJob | None:
    if not job.teachers or _rows_of(job) == 1:
        return None
    rows = max(1, _rows_of(job) // 4)
    return replace(job, teachers=tuple(replace(one, batch_size=rows) for one in job.teachers))


def _rows_of(job: TrainingJob) -> int:
    """That a teacher reads at once."""
    return job.teachers[0].batch_size or job.evaluation_rows or job.batch_size


def _read_rows(job: ReadingJob) -> ReadingJob:
    return replace(job, batch_size=max(1, job.batch_size // 4))


def _evaluation_rows(job: TrainingJob) -> TrainingJob | None:
    rows = job.evaluation_rows or 1
    return None if rows <= job.batch_size or rows == 1 else replace(job, evaluation_rows=max(1, rows // 4))


def _teacher_at_16_bits(job: TrainingJob) -> TrainingJob | None:
    if not _live(job) or all(one.model.dtype != "float32" for one in job.teachers):
        return None
    teachers = (replace(one, model=replace(one.model, dtype="bfloat16")) for one in job.teachers)
    return replace(job, teachers=tuple(teachers))


def _read_at_16_bits(job: ReadingJob) -> ReadingJob:
    return replace(job, model=replace(job.model, dtype="bfloat16")) if job.model.dtype == "float32" else job


def _teacher_cached(job: TrainingJob) -> TrainingJob | None:
    if not _live(job) or len(job.teachers) > 1:
        return None
    kind = CachedSignals("hidden") if job.student.task in LANGUAGE else CachedSignals("logits")
    return replace(job, teachers=tuple(replace(one, cached=kind) for one in job.teachers))


def _mixed(job: TrainingJob) -> TrainingJob | None:
    if job.mixed_precision != "no" or job.student.dtype != "float32":
        return None
    return replace(job, mixed_precision="bf16")


def _adapted(job: TrainingJob, load_in: LoadIn | None = None) -> TrainingJob | None:
    if load_in is not None and not has_bitsandbytes():
        return None
    if job.adapters is not None and (load_in is None or job.student.load_in is not None):
        return None
    student = job.student if load_in is None else replace(job.student, load_in=load_in, double_quantized=True)
    return replace(job, adapters=job.adapters or LoraAdapter(), student=student)


def _optimizer_of_8_bits(job: TrainingJob) -> TrainingJob | None:
    return replace(job, optimizer="adamw-8bit") if job.optimizer == "adamw" and has_bitsandbytes() else None


def _frozen_at_16_bits(job: TrainingJob) -> TrainingJob | None:
    """Of a student whose weights do not train."""
    if job.adapters is None or job.student.dtype != "float32":
        return None
    return replace(job, student=replace(job.student, dtype="bfloat16"))


def _shared(devices: int) -> Callable[[TrainingJob], TrainingJob | None]:
    def made(job: TrainingJob) -> TrainingJob | None:
        if job.sharding.devices > 1 or job.batch_size < devices:
            return None
        counted = None if job.counted is None else -(-job.counted // devices)
        return replace(job, sharding=Sharding(devices, "fsdp"), counted=counted)

    return made


def _always(text: str) -> Callable[[TrainingJob], str]:
    return lambda _: text


def _estimated(flags: str) -> tuple[Callable[[TrainingJob], str], Callable[[TrainingJob], str]]:
    """What a run cannot do yet."""
    return _always(f"{flags} (not in `run`)"), _always(flags)


def _batch(divisor: int) -> Change:
    return Change(
        _smaller_batch(divisor),
        lambda job: (
            f"training.batch_size: {job.batch_size}, training.gradient_accumulation: {job.gradient_accumulation}"
        ),
        lambda job: f"--batch-size {job.batch_size} --gradient-accumulation {job.gradient_accumulation}",
        batch=True,
    )


CHANGES: Sequence[Change] = (
    _batch(2),
    _batch(4),
    _batch(16),
    Change(_checkpointed, _always("training.gradient_checkpointing: true"), _always("--gradient-checkpointing")),
    Change(_teacher_rows, lambda job: f"teacher.batch_size: {job.teachers[0].batch_size}", None, reading=_read_rows),
    Change(_evaluation_rows, lambda job: f"training.eval_batch_size: {job.evaluation_rows}", None),
    Change(_teacher_cached, _always("teacher.cache, made by `entrenar-distill cache build`"), None),
    Change(_teacher_at_16_bits, _always("teacher.dtype: bfloat16"), None, reading=_read_at_16_bits),
    Change(_mixed, _always("training.mixed_precision: bf16"), _always("--precision bf16")),
    Change(_teacher_as("nf4"), _always("teacher.load_in: nf4"), None, reading=_read_as("nf4")),
    Change(_optimizer_of_8_bits, _always("training.optimizer: adamw-8bit"), _always("--optimizer adamw-8bit")),
    Change(_frozen_at_16_bits, None, _always("--weights bf16")),
    Change(_adapted, *_estimated(f"--method lora --rank {USUAL_RANK}"), runs=False),
    Change(lambda job: _adapted(job, "nf4"), *_estimated(f"--method qlora --rank {USUAL_RANK}"), runs=False),
    Change(_shared(8), *_estimated("--devices 8 --strategy fsdp"), runs=False),
)
"""What changes no result comes first."""


def applicable(jobs: Jobs, words: Words, *, only_runs: bool = False) -> Iterator[tuple[Change, Jobs, str]]:
    """The changes that change a run, each with its changed jobs and how to ask for it."""
    for change in CHANGES:
        made = change.on(jobs) if change.runs or not only_runs else None
        told = None if made is None else change.told(_last(made), words)
        if made is not None and told is not None:
            yield change, made, told


def enough(jobs: Jobs, fits: Callable[[Jobs], bool], words: Words, *, only_runs: bool) -> tuple[str, ...]:
    """How to ask for the first change that makes a run fit by itself; else for the fewest of the first ones that do so
    together; nothing where all of them do not.
    """
    found = list(applicable(jobs, words, only_runs=only_runs))
    for _, made, told in found:
        if fits(made):
            return (told,)
    batches = [change for change, *_ in found if change.batch]
    others = [change for change, *_ in found if not change.batch]
    if not others or not fits(_with(jobs, [*others, *batches[-1:]])):
        return ()
    for count in range(1, len(others) + 1):
        for batch in ([], *([one] for one in batches)):
            taken = [*others[:count], *batch]
            if fits(_with(jobs, taken)):
                return _told(jobs, _needed(jobs, taken, fits), words)
    return ()


def _needed(jobs: Jobs, taken: Sequence[Change], fits: Callable[[Jobs], bool]) -> list[Change]:
    """Without those that it fits without."""
    needed = list(taken)
    for change in taken[:-1]:
        if fits(_with(jobs, fewer := [one for one in needed if one is not change])):
            needed = fewer
    return needed


def _last(jobs: Jobs) -> TrainingJob:
    last = jobs[-1]
    assert isinstance(last, TrainingJob), "what a run ends with"
    return last


def _with(jobs: Jobs, changes: Sequence[Change]) -> Jobs:
    for change in changes:
        jobs = change.on(jobs) or jobs
    return jobs


def _told(jobs: Jobs, changes: Sequence[Change], words: Words) -> tuple[str, ...]:
    found = []
    for change in changes:
        if (made := change.on(jobs)) is not None:
            jobs = made
            found.append(change.told(_last(made), words) or "")
    return tuple(found)
