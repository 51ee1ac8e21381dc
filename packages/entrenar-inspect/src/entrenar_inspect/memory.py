"""`memory`: what a model takes to be trained, or to generate, from its configuration alone."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from entrenar_common.progress import Progress
from entrenar_core.architectures.reference_sizes import reference_sizes
from entrenar_core.config.adapters import USUAL_RANK, LoraAdapter
from entrenar_core.config.schema import OptimizerName
from entrenar_core.errors import UsageError
from entrenar_core.hub import fetch_config
from entrenar_core.memory.jobs import (
    SEQ2SEQ,
    Attention,
    DeviceType,
    HeldModel,
    InferenceJob,
    Job,
    ReadingJob,
    Sharding,
    Spreading,
    Strategy,
    TrainingJob,
)
from entrenar_core.memory.report import MemoryReport
from entrenar_core.models.heads import CAUSAL_LM, task_named
from entrenar_core.references import parse_reference

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from entrenar_core.memory.machine import Machine

_LENGTH = 2048
Precision = Literal["fp32", "bf16", "fp16"]
Weights = Literal["fp32", "bf16", "fp16", "nf4", "int8"]
_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a model; the flags of the command say what each of them means."""

    batch_size: int = 1
    sequence_length: int | None = None
    optimizer: OptimizerName = "adamw"
    precision: Precision = "fp32"
    weights: Weights | None = None
    attention: Attention = "sdpa"
    checkpointing: bool = False
    accumulation: int = 1
    all_logits: bool = False
    method: Literal["full", "lora", "qlora"] = "full"
    rank: int | None = None
    inference: bool = False
    context: int | None = None
    cache_dtype: str | None = None
    devices: int = 1
    strategy: Strategy = "ddp"
    offload: bool = False
    device_map: bool = False
    device: DeviceType | None = None
    available: str | None = None
    by_layer: bool = False
    calibrate: bool = False


def memory(reference: str, wanted: Wanted, revision: str | None = None) -> MemoryReport:
    """What a model takes. Of a model on the Hub, nothing but its configuration is fetched.

    Raises:
        EntrenarError: of the kind that fits.
    """
    _require_sense(wanted)
    from entrenar_core.memory.machine import asked_machine, named_machine

    if wanted.available is not None:
        named_machine(wanted.available)  # a mistake in it is told before torch is loaded
    with Progress() as progress:
        task = progress.task("loading libraries")
        from entrenar_core.memory.reporting import report
        from entrenar_core.memory.runs import Part

        machine = asked_machine(wanted.available, wanted.device)
        task.end()
        task = progress.task("tracing a step")
        _require_place(wanted, machine)
        held = _held(reference, revision, wanted)
        job = _job(held, wanted, machine)
        name = "generation" if wanted.inference else "training"
        found = report(
            [Part(name, job)],
            subject=f"{name} of {reference}",
            machine=machine,
            compare=not wanted.inference,
            calibrate=wanted.calibrate,
        )
        if wanted.by_layer:
            from entrenar_core.memory.by_layer import layers_of

            assert not isinstance(job, ReadingJob), "it trains or generates"
            found = replace(found, layers=layers_of(job))
        task.end()
    return found


_OF_TRAININGS: dict[str, str] = {
    "sequence_length": "--sequence-length",
    "method": "--method",
    "rank": "--rank",
    "optimizer": "--optimizer",
    "precision": "--precision",
    "checkpointing": "--gradient-checkpointing",
    "accumulation": "--gradient-accumulation",
    "all_logits": "--full-logits",
    "calibrate": "--calibrate",
}
_OF_GENERATIONS = {"context": "--context", "cache_dtype": "--cache-dtype", "device_map": "--device-map"}
_INSTEAD = {
    "sequence_length": "say --context, the tokens that are read and written",
    "precision": "say --weights, in which a generation computes",
}


def _require_sense(wanted: Wanted) -> None:
    """Every option that is given means something.

    Raises:
        UsageError: one does not.
    """
    given = {one.name for one in fields(wanted) if getattr(wanted, one.name) != one.default}
    for name, flag in (_OF_TRAININGS if wanted.inference else _OF_GENERATIONS).items():
        if name in given:
            what = "of a training" if wanted.inference else "of a model that generates"
            raise UsageError(f"{flag} is {what}", _INSTEAD.get(name, f"{_other(wanted)}, or leave {flag} out"))
    _require_together(wanted)


def _require_together(wanted: Wanted) -> None:
    """Options that exclude each other, or need one another."""
    if wanted.weights in ("nf4", "int8") and not wanted.inference:
        raise UsageError(
            f"--weights {wanted.weights} is of a model that generates", "add --inference, or --method qlora"
        )
    if wanted.rank is not None and wanted.method == "full":
        raise UsageError("--rank is of adapters, and --method full trains all weights", "add --method lora")
    if wanted.by_layer and wanted.devices > 1:
        raise UsageError("--by-layer tells the layers of one device", "leave out --devices")
    if wanted.device_map and wanted.offload:
        raise UsageError("--device-map puts what fits no device into main memory", "leave out --offload")


def _other(wanted: Wanted) -> str:
    return "leave out --inference" if wanted.inference else "add --inference"


def _require_place(wanted: Wanted, machine: "Machine") -> None:
    """Main memory has no other place beside it."""
    for asked, flag in ((wanted.device_map, "--device-map"), (wanted.offload, "--offload")):
        if asked and machine.device == "cpu":
            raise UsageError(f"{flag} puts parts of a model beside a GPU, and cpu is asked about", "add --device cuda")


def _held(reference: str, revision: str | None, wanted: Wanted) -> HeldModel:
    from entrenar_core.memory.stored import quantized_as_stored

    config, gguf = _config(reference, revision)
    named = task_named(getattr(config, "architectures", None) or ())
    task = SEQ2SEQ if config.is_encoder_decoder else named or _by_kind(config)
    dtype = DTYPES.get(wanted.weights or "fp32", "float32")
    if wanted.inference and wanted.weights not in DTYPES:
        stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
        dtype = stored if stored in DTYPES.values() else "float32"
    held = HeldModel(reference, config, task, dtype=dtype, attention=wanted.attention)
    if gguf is not None and wanted.inference:
        if wanted.weights is not None:
            raise UsageError(f"{reference} is held as it is stored", "leave out --weights")
        from entrenar_core.memory.stored import stored_weight_bytes

        return replace(held, stored_bytes=stored_weight_bytes(str(gguf))[0])
    if wanted.weights in ("nf4", "int8"):
        return replace(held, load_in=wanted.weights, double_quantized=wanted.weights == "nf4")
    return quantized_as_stored(held)


def _by_kind(config: "PreTrainedConfig") -> str:
    """Of a configuration that names no class: encoders tell masked tokens, all else the next one."""
    from entrenar_core.architectures import named_family
    from entrenar_core.models.heads import MASKED_LM

    family = named_family(config.to_dict())
    return MASKED_LM if family is not None and family.kind == "encoder" else CAUSAL_LM


def _config(reference: str, revision: str | None) -> "tuple[PreTrainedConfig, Path | None]":
    """Of a known architecture, else of a model; with the file, where that is a GGUF."""
    if known := reference_sizes().get(reference):
        if revision is not None:
            raise UsageError(f"{reference} is a known architecture, which has no revisions", "leave --revision out")
        from entrenar_core.models.student_settings import known_config

        return known_config(known), None
    folder = fetch_config(parse_reference(reference, revision=revision))
    from entrenar_core.models.loading import read_config

    return read_config(folder, name=reference), folder if folder.is_file() else None


def _job(held: HeldModel, wanted: Wanted, machine: "Machine") -> Job:
    from entrenar_core.memory.asking import sharding_of
    from entrenar_core.memory.positions import positions_of, require_positions

    device = machine.device
    sharding = Sharding()
    if not wanted.device_map:
        sharding = sharding_of(wanted.devices, wanted.strategy, wanted.batch_size, offload=wanted.offload)
    most = positions_of(held.config.to_dict())
    length = (wanted.context if wanted.inference else wanted.sequence_length) or min(_LENGTH, most or _LENGTH)
    require_positions(held.config, length, held.name)
    if wanted.inference:
        if wanted.device_map:
            spreading = Spreading("auto", max(wanted.devices, machine.devices), machine.available_bytes)
            return InferenceJob(held, wanted.batch_size, length, wanted.cache_dtype, device, spreading=spreading)
        return InferenceJob(held, wanted.batch_size, length, wanted.cache_dtype, device, sharding)
    adapters = None if wanted.method == "full" else LoraAdapter(rank=wanted.rank or USUAL_RANK)
    student = replace(held, load_in="nf4", double_quantized=True) if wanted.method == "qlora" else held
    return TrainingJob(
        student,
        batch_size=wanted.batch_size,
        length=length,
        adapters=adapters,
        padded=wanted.batch_size > 1,
        optimizer=wanted.optimizer,
        mixed_precision=_MIXED[wanted.precision],  # type: ignore[arg-type]
        gradient_accumulation=wanted.accumulation,
        gradient_checkpointing=wanted.checkpointing,
        all_logits=wanted.all_logits,
        device=device,
        sharding=sharding,
    )
