"""Tiny distillations whose teachers are cached, and a look at whether the teacher is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BertModel, LlamaModel

from entrenar_core import parse_config
from entrenar_core.teachers.cache.making import build_cache
from entrenar_core.teachers.cache.manifest import Manifest
from entrenar_core.teachers.cache.settings import CacheSettings
from tiny_jobs import Models, language, write_rows
from tiny_models import tiny_llama

Job = dict[str, Any]
FP32 = CacheSettings(precision="float32")


def sure_models(folder: Path) -> Models:
    """Models as elsewhere, but the language model is sure of something."""
    llama = tiny_llama(folder / "llama", initializer_range=0.4)
    small = tiny_llama(folder / "small", num_hidden_layers=1, seed=1)
    return Models(folder, folder, folder, llama, small)


def varied_rows(folder: Path, count: int = 60) -> Path:
    """Every row has tokens of its own."""
    return write_rows(
        folder / "rows.jsonl", [{"text": f"{index} the fox {'jumps ' * (index % 7)}"} for index in range(count)]
    )


def job(models: Models, folder: Path, **changes: Any) -> Job:
    """Two epochs of a language model on these rows."""
    varied_rows(folder)
    return language(models, folder, **{"training": {"epochs": 2}, **changes})


def built(job: Job, folder: Path, settings: CacheSettings = FP32, **more: Any) -> Manifest:
    """A cache for a job."""
    return build_cache(parse_config(job), folder, settings, **more)


def using(job: Job, folder: Path, **settings: Any) -> Job:
    """The job with its teacher from a cache."""
    cache = {"dir": str(folder), **settings} if settings else str(folder)
    return job | {"teacher": job["teacher"] | {"cache": cache}}


@contextmanager
def forward_passes_of_layers(layers: int) -> Iterator[list[int]]:
    """How many rows bodies of so many layers read while open."""
    seen: list[int] = []

    def look(module: nn.Module, args: Any, named: dict[str, Any], _output: Any) -> None:
        if isinstance(module, LlamaModel | BertModel) and module.config.num_hidden_layers == layers:
            seen.append(len(named.get("input_ids", args[0] if args else ())))

    handle = nn.modules.module.register_module_forward_hook(look, with_kwargs=True)  # type: ignore[call-arg]
    try:
        yield seen
    finally:
        handle.remove()
