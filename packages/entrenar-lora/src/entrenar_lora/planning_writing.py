"""The configuration that a plan comes to, as YAML that `entrenar-lora train` runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from entrenar_core.errors import UsageError
from entrenar_core.units import count, size
from entrenar_lora.advising.gradients import dataset_section
from entrenar_lora.planning_jobs import BITS
from entrenar_lora.planning_search import FULL
from entrenar_lora.reports.plan import PlanReport, Setting
from entrenar_lora.resolving import Subject

FILL_IN = "FILL-IN"
"""What stands where a person has to say something."""
_FULL_RATE = 2e-5
_ADAPTER_RATES = ((20e9, 2e-4), (float("inf"), 1e-4))
"""Of adapters, up to so many parameters: QLoRA has the one for 7B and 13B, the other for 33B and 65B. Source: Dettmers
et al. 2023, arXiv:2305.14314.
"""


def write(report: PlanReport, subject: Subject, path: Path, dataset: str | None, *, force: bool) -> PlanReport:
    """Writes the chosen plan in one step, and says where, and which places are to be filled in.

    Raises:
        UsageError: there is something of this name already.
        OutputError: it cannot be written.
    """
    from entrenar_core.training.files import write_text

    assert report.chosen is not None, "a plan that fits"
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "name another file, or add --force")
    values = configuration(report.chosen, subject, dataset, report.sequence_length)
    places = tuple(_places(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _text(report, values, places))
    return replace(report, written=str(path), places=places)


def configuration(setting: Setting, subject: Subject, dataset: str | None, length: int) -> dict[str, Any]:
    """The sections, which the schema was asked about.

    Raises:
        ConfigError: they are no configuration of a fine-tuning.
    """
    from entrenar_core.config.loading import parse_finetuning

    known = subject.known
    model: dict[str, Any] = {"model_id": subject.reference if known is None else f"{known.hub or FILL_IN}"}
    if subject.revision is not None:
        model["revision"] = subject.revision
    if setting.method != "full":
        model["dtype"] = setting.weights
    if setting.quantisation is not None:
        bits = next(number for kind, number in BITS.items() if kind == setting.quantisation)
        model["quantization"] = {"bits": bits, "double_quantization": bits == 4}
        if bits == 4:
            model["quantization"]["type"] = setting.quantisation
    values: dict[str, Any] = {"task": subject.task, "model": model}
    if setting.method != "full":
        values["adapter"] = _adapter(setting)
    values["dataset"] = {**_dataset(dataset), "max_length": length}
    values["training"] = {
        "batch_size": setting.micro_batch,
        "gradient_accumulation": setting.accumulation,
        "gradient_checkpointing": setting.checkpointing,
        "mixed_precision": setting.precision,
        "optimizer": setting.optimizer,
        "learning_rate": _rate(setting),
    }
    parse_finetuning(values)
    return values


def _rate(setting: Setting) -> float:
    """What is usual: no plan knows the data."""
    if setting.method == FULL:
        return _FULL_RATE
    return next(rate for most, rate in _ADAPTER_RATES if setting.parameters <= most)


def _adapter(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": "lora",
        "rank": setting.rank,
        "alpha": setting.alpha,
        "target_modules": setting.group or list(setting.modules),
    }
    return {**found, "dora": True} if setting.method == "dora" else found


def _dataset(dataset: str | None) -> dict[str, Any]:
    if dataset is None:
        return {"path": f"{FILL_IN}.jsonl"}
    section = dataset_section(dataset)
    return {"path": section.path} if section.path is not None else {"name": section.name}


def _places(values: dict[str, Any]) -> Iterator[str]:
    for name, section in values.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            if isinstance(value, str) and value.startswith(FILL_IN):
                yield f"{name}.{key}"


def _text(report: PlanReport, values: dict[str, Any], places: tuple[str, ...]) -> str:
    import yaml

    chosen = report.chosen
    assert chosen is not None, "a plan that fits"
    said = [
        f"Planned for {size(report.limit_bytes)} on {report.device}, quality {report.quality}: predicted peak "
        f"{size(chosen.needed_bytes)}, {count(chosen.trainable_parameters)} parameters train.",
        *([report.note] if report.note else []),
        *(f"TO FILL IN: {place}" for place in places),
        "entrenar-lora train THIS-FILE",
    ]
    lines = [f"# {line}" for line in said]
    made = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).splitlines()
    lines += [f"{line}  # <- to fill in" if FILL_IN in line else line for line in made]
    return "\n".join(lines) + "\n"
