"""What several examples in one row (`dataset.packing`) cannot go with; without torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entrenar_core.config.broken import Broken
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.wording import dotted
from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import Problem
from entrenar_core.losses.table import LOSSES

_WHOLE = ("sequence-classification", "embedding")
"""Tasks whose models say one thing of a row, whatever is in it."""
_SECTIONS = ("progressive", "relations")
_HINT = "remove it, or remove `dataset.packing`"


def packing_rules(distillation: Mapping[str, Any], task: object) -> Iterator[Broken]:
    """All rules that the settings beside a packing break; as rules.py, on plain values."""
    if task in _WHOLE:
        yield Broken(("dataset", "packing"), *_one_vector(str(task)))
    for path, name in _losses(distillation):
        if name in LOSSES and LOSSES[name].scope == "group":
            message = f"`{dotted(path)}`: {name} compares the rows of a group, and packed rows hold several examples"
            yield Broken(path, message, _HINT)


def check_packing(config: DistillationConfig, task: str | None) -> list[Problem]:
    """The same of a task that was found from the models."""
    if not config.dataset.packing or task not in _WHOLE:
        return []
    return [Problem(*_one_vector(task), "dataset.packing")]


def _one_vector(task: str) -> tuple[str, str]:
    message = f"`dataset.packing` puts several examples into a row, and models of the task {task} read a row as one"
    return message, "remove it; `training.group_by_length` pads less, too"


def _losses(distillation: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Where losses are named, in the list or in short."""
    entries = distillation.get("losses")
    for index, entry in enumerate(entries if isinstance(entries, Sequence) and not isinstance(entries, str) else ()):
        if isinstance(entry, Mapping):
            yield ("distillation", "losses", index), str(entry.get("name"))
    for section in _SECTIONS:
        settings = distillation.get(section)
        if isinstance(settings, Mapping) and settings.get("enabled") is not False:
            yield ("distillation", section, "loss"), str(settings.get("loss"))
