"""`train`: from a file and flags to one configuration, and the library's job with a progress display."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from entrenar_common.config import parse_overrides
from entrenar_common.output import warning
from entrenar_common.progress import Progress
from entrenar_common.run_display import Display
from entrenar_core.config.adapters import GROUPS
from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.config.loading import Override, load_finetuning
from entrenar_core.errors import UsageError
from entrenar_core.reports import TunePlan, TuneReport

_DATA = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".txt")
_QUANTIZED = ("qlora", "qdora")
_LOW_RANK = ("lora", "qlora", "dora", "qdora")
_OF_THE_MODEL = ("revision", "format", "files", "allow_pickle", "trust_remote_code")


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says besides `--set`; None is what it does not."""

    model: str | None = None
    dataset: str | None = None
    method: str | None = None
    task: str | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None
    bits: int | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    output: Path | None = None


def assemble(file: Path | None, settings: Sequence[str], flags: Flags) -> FineTuneConfig:
    """The configuration that the command line means: flags over file over defaults.

    Raises:
        ConfigError, UsageError: all mistakes in it, the file is not there, or nothing was given.
    """
    if file is None and flags.model is None and not settings:
        raise UsageError("nothing says what to train", "give a YAML file such as lora.yaml, or --model and --dataset")
    overrides = [*_of_the_data(flags), *_of_the_adapter(file, flags), *parse_overrides(settings), *_plain(flags)]
    return load_finetuning(file, overrides)


def _plain(flags: Flags) -> Iterator[Override]:
    """Flags that are one setting each."""
    if flags.model is not None:
        yield from ((("model", name), None, "--model") for name in _OF_THE_MODEL[:3])
        yield from ((("model", name), False, "--model") for name in _OF_THE_MODEL[3:])
        yield ("model", "model_id"), flags.model, "--model"
    named = {
        ("task",): (flags.task, "--task"),
        ("training", "epochs"): (flags.epochs, "--epochs"),
        ("training", "max_steps"): (flags.max_steps, "--max-steps"),
        ("training", "batch_size"): (flags.batch_size, "--batch-size"),
        ("training", "learning_rate"): (flags.learning_rate, "--learning-rate"),
        ("training", "seed"): (flags.seed, "--seed"),
        ("output", "dir"): (None if flags.output is None else str(flags.output), "--output"),
    }
    yield from ((path, value, flag) for path, (value, flag) in named.items() if value is not None)


def _of_the_data(flags: Flags) -> Iterator[Override]:
    """A file, a folder or a pattern is a path; all else is a name."""
    if flags.dataset is None:
        return
    text, flag = flags.dataset, "--dataset"
    is_path = Path(text).suffix in _DATA or "*" in text or text.startswith((".", "/", "~")) or Path(text).is_dir()
    for name in ("name", "subset", "revision", "path", "source"):
        yield ("dataset", name), None, flag
    yield ("dataset", "path" if is_path else "name"), text, flag


def _of_the_adapter(file: Path | None, flags: Flags) -> Iterator[Override]:
    """What a method means in the configuration; without a file, LoRA."""
    method = flags.method or ("lora" if file is None else None)
    _require_low_rank(method, flags)
    if method == "full":
        yield from _all_weights(flags)
        return
    if method in _LOW_RANK:
        yield ("adapter", "method"), "lora", "--method"
        if flags.method is not None:  # else a file says
            yield ("adapter", "dora"), "dora" in method, "--method"
            yield ("model", "quantization"), None, "--method"
    elif method is not None:
        yield ("adapter",), {"method": method}, "--method"
    bits = flags.bits or (4 if method in _QUANTIZED else None)
    if bits is not None:
        yield ("model", "quantization"), {"bits": bits}, "--method" if flags.bits is None else "--bits"
    yield from _of_low_rank(flags)


def _require_low_rank(method: str | None, flags: Flags) -> None:
    low_rank = {"--rank": flags.rank, "--alpha": flags.alpha, "--targets": flags.targets}
    given = [flag for flag, value in low_rank.items() if value is not None]
    if method is not None and method not in _LOW_RANK and given:
        raise UsageError(f"{given[0]} is of low-rank matrices, and --method {method} has none", "take --method lora")


def _all_weights(flags: Flags) -> Iterator[Override]:
    if flags.bits is not None:
        raise UsageError("--bits holds weights that do not train, and --method full trains all", "leave one out")
    yield ("adapter",), None, "--method"
    yield ("model", "quantization"), None, "--method"
    yield ("model", "dtype"), "float32", "--method"


def _of_low_rank(flags: Flags) -> Iterator[Override]:
    for name, value in (("rank", flags.rank), ("alpha", flags.alpha)):
        if value is not None:
            yield ("adapter", name), value, f"--{name}"
    if flags.targets is not None:
        names = [name.strip() for name in flags.targets.split(",") if name.strip()]
        yield ("adapter", "target_modules"), flags.targets if flags.targets in GROUPS else names, "--targets"


def run_training(config: FineTuneConfig, resume: bool, force: bool) -> TuneReport:
    """Fine-tunes with its progress on stderr; raises as `FineTuneTrainer.train`."""
    _require_usable(config, resume=resume, force=force)
    with ExitStack() as stack:
        display = Display(stack.enter_context(Progress()))
        display.on_phase("loading libraries")
        from entrenar_core.training.finetuning import FineTuneTrainer

        display.on_phase("reading the model and data")
        trainer = FineTuneTrainer(config, callbacks=[display], download_progress=display.on_transfer)
        report = trainer.train(resume=resume, force=force)
        display.end()
    for text in report.warnings:
        warning(text)
    return report


def plan_training(config: FineTuneConfig, *, resume: bool, force: bool) -> TunePlan:
    """The plan of a fine-tuning; raises as `FineTuneTrainer.plan`."""
    _require_usable(config, resume=resume, force=force)
    with Progress() as progress:
        task = progress.task("reading the model and data")
        from entrenar_core.training.finetuning import FineTuneTrainer

        found = FineTuneTrainer(config).plan(resume=resume, force=force)
        task.end()
    return found


def _require_usable(config: FineTuneConfig, *, resume: bool, force: bool) -> None:
    """What stands in the way is told before torch is loaded."""
    from entrenar_core.training.run_folder import check_usable, is_complete

    if not resume or not is_complete(config.output.dir, config.model_dump(mode="json")):
        check_usable(config.output.dir, resume=resume, force=force)
