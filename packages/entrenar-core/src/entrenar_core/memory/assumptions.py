"""All that a prediction takes for granted, a sentence each."""

from collections.abc import Iterator, Sequence

from entrenar_core.memory.adapting import said_of
from entrenar_core.memory.constants import DeviceConstants
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Job, ReadingJob, Teaching, TrainingJob


def assumptions_of(jobs: Sequence[Job], estimates: Sequence[Estimate], constants: DeviceConstants) -> Iterator[str]:
    """Of the jobs of a run, of how they were predicted, and of the device."""
    for job in jobs:
        yield from _of_job(job)
    for estimate in estimates:
        yield from estimate.assumptions
        for number, (short, long) in estimate.traced_layers.items():
            whose = "the student" if number == 0 else "a teacher"
            yield f"{whose}: {short} and {long} layers were traced, and the others follow from these"
    if constants.device != "cpu":
        yield "operations are those of a CPU, but for what is known to differ: rounding, tiles, attention with dropout"
    yield from constants.assumptions


def _of_job(job: Job) -> Iterator[str]:
    if isinstance(job, TrainingJob):
        yield from _of_training(job)
    elif isinstance(job, ReadingJob):
        yield f"batches of {job.batch_size:,} rows of {job.length:,} tokens are read"
        yield from _of_model(job.model)
    elif isinstance(job, InferenceJob):
        yield f"{job.batch_size:,} rows of {job.context:,} tokens"
        yield from _of_model(job.model)


def _of_training(job: TrainingJob) -> Iterator[str]:
    rows = -(-job.batch_size // job.sharding.devices)
    yield f"batches of {rows:,} rows of {job.length:,} tokens" + (", some of them padded" if job.padded else "")
    if job.counted is not None:
        yield f"losses count {job.counted:,} positions of a batch"
    if job.gradient_accumulation > 1:
        yield f"{job.gradient_accumulation} passes in a step: gradients are there from one to the next"
    if job.evaluation_rows is not None:
        yield f"evaluations of {job.evaluation_rows:,} rows of {job.length:,} tokens, with the optimiser's state there"
    yield f"task: {job.student.task}; attention: {job.student.attention}; mixed precision: {job.mixed_precision}"
    yield f"optimizer: {job.optimizer}" + (_EIGHT_BITS if job.optimizer == "adamw-8bit" and job.device != "cpu" else "")
    yield "activations are computed anew in the backward pass" if job.gradient_checkpointing else "activations are kept"
    yield "logits are all there at once" if job.all_logits else "logits are made in tiles, as entrenar trains"
    yield from _of_model(job.student)
    if job.adapters is not None:
        yield f"{said_of(job.adapters, job.student)}, at 32 bits; what is frozen keeps its dtype"
    for one in job.teachers:
        yield from _of_teacher(one)


_KEPT: dict[str, str] = {"logits": "answers", "hidden": "hidden states", "topk": "likeliest tokens", "sampled": "draws"}
_EIGHT_BITS = "; its step takes no memory of its own"


def _of_teacher(one: Teaching) -> Iterator[str]:
    if one.cached is None:
        yield from _of_model(one.model)
        return
    yield f"{one.model.name} is not there in training: its {_KEPT[one.cached.kind]} are read from what was kept of it"


def _of_model(held: HeldModel) -> Iterator[str]:
    how = f", linear layers in {held.load_in}" if held.load_in else ""
    if held.load_in and held.compute_dtype:
        how += f", which compute in {held.compute_dtype}"
    yield f"weights of {held.name}: {held.dtype}{how}"
    if (kept := getattr(held.config, "quantization_config", None)) and held.load_in is None:
        kind = kept.get("quant_method") if isinstance(kept, dict) else getattr(kept, "quant_method", None)
        yield f"{held.name} is stored as {getattr(kind, 'value', kind)} has it, and counted at {held.dtype}"
