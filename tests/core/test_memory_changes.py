"""What is proposed so that a training fits: it does, it can be asked for, and it changes something."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar_core import parse_config
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.memory.changing import CHANGES, applicable, enough
from entrenar_core.memory.jobs import Adapters, CachedSignals, Sharding, Teaching, TrainingJob
from entrenar_core.memory.machine import named_machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.reporting import report
from entrenar_core.memory.runs import Part
from memory_twins import held

TERMS = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
ALONE = TrainingJob(held("llama", hidden_size=64, intermediate_size=128), 16, 32)
TAUGHT = replace(ALONE, teachers=(Teaching(held("llama", hidden_size=128)),), terms=TERMS)


def words(job: TrainingJob, kind: Any, *, only_runs: bool = False) -> list[str]:
    return [told for _, _, told in applicable(job, kind, only_runs=only_runs)]


def test_every_change_changes_the_job_and_can_be_predicted() -> None:
    for _, made, told in applicable(TAUGHT, "settings"):
        assert made != TAUGHT, told
        found = predict(made)
        assert found.method in ("traced", "extrapolated"), told


def test_smaller_batches_are_the_same_step() -> None:
    for change, made, told in applicable(ALONE, "settings"):
        if change.batch:
            assert made.batch_size * made.gradient_accumulation == ALONE.batch_size, told


@pytest.mark.parametrize(
    ("job", "absent"),
    [
        (replace(TAUGHT, gradient_checkpointing=True), "gradient_checkpointing"),
        (replace(TAUGHT, mixed_precision="bf16"), "mixed_precision"),
        (replace(TAUGHT, batch_size=1), "batch_size"),
        (replace(TAUGHT, teachers=(Teaching(TAUGHT.teachers[0].model, cached=CachedSignals("hidden")),)), "teacher"),
        (ALONE, "teacher"),
        (replace(TAUGHT, optimizer="sgd"), "optimizer"),
        (replace(TAUGHT, sharding=Sharding(2, "fsdp")), "--devices"),
        (replace(TAUGHT, batch_size=4), "--devices"),
    ],
)
def test_nothing_is_proposed_that_is_so_already(job: TrainingJob, absent: str) -> None:
    assert not [one for kind in ("settings", "flags") for one in words(job, kind) if absent in one]


def test_adapters_are_proposed_once() -> None:
    adapted = replace(ALONE, adapters=Adapters(4))
    assert not [one for one in words(adapted, "flags") if "--method lora" in one]


def test_a_batch_is_not_cut_where_rows_are_compared() -> None:
    section = DistillationSection.model_validate({"losses": [{"name": "cka", "group_size": 8}]})
    assert not [one for one in words(replace(TAUGHT, terms=terms_of(section)), "settings") if "batch_size" in one]


def test_a_run_is_told_only_what_it_can_do() -> None:
    told = words(TAUGHT, "settings", only_runs=True)
    assert told
    assert not [one for one in told if one.startswith("--")]


def _nested(setting: str) -> dict[str, Any]:
    """`a.b: 1, a.c: true` as sections."""
    sections: dict[str, Any] = {}
    for one in setting.split(", "):
        name, _, text = one.partition(": ")
        section, _, key = name.partition(".")
        value: Any = int(text) if text.isdigit() else {"true": True}.get(text, text)
        sections.setdefault(section, {})[key] = value
    return sections


def test_settings_are_settings() -> None:
    given: dict[str, Any] = {
        "task": "causal-lm",
        "teacher": {"model_id": "./teacher"},
        "student": {"model_id": "./student"},
        "dataset": {"path": "rows.jsonl"},
        "output": {"dir": "out"},
    }
    for told in words(TAUGHT, "settings", only_runs=True):
        sections = _nested(
            told.replace("teacher.cache, made by `entrenar-distill cache build`", "teacher.cache: ./cache")
        )
        config = parse_config({**given, **{name: {**given.get(name, {}), **one} for name, one in sections.items()}})
        for name, section in sections.items():
            for key, value in section.items():
                found = getattr(getattr(config, name), key)
                assert found == value or key == "cache", told


def test_flags_are_flags_of_the_command() -> None:
    from entrenar_inspect.commands import app

    command: Any = typer.main.get_command(app).commands["memory"]  # type: ignore[attr-defined]
    plain = command.make_context("memory", ["org/name"]).params
    for told in words(TAUGHT, "flags"):
        assert command.make_context("memory", ["org/name", *shlex.split(told)]).params != plain, told


def _limit(most: int) -> Callable[[TrainingJob], bool]:
    return lambda job: predict(job).peak_bytes <= most


@settings(max_examples=2)
@given(share=st.floats(0.15, 0.99))
def test_what_is_enough_is_enough(share: float) -> None:
    most = int(predict(TAUGHT).peak_bytes * share)
    told = enough(TAUGHT, _limit(most), "settings", only_runs=True)
    if not told:
        every = TAUGHT
        for change in [*(one for one in CHANGES if one.runs and not one.batch), CHANGES[2]]:
            every = change.made(every) or every
        assert predict(every).peak_bytes > most
        return
    changed = TAUGHT
    for text in told:
        (made,) = [
            made for one in CHANGES if (made := one.made(changed)) is not None and one.told(made, "settings") == text
        ]
        changed = made
    assert predict(changed).peak_bytes <= most


def test_what_never_fits_has_no_way() -> None:
    assert enough(TAUGHT, lambda _: False, "settings", only_runs=True) == ()


def test_the_report_names_savings_that_are_there() -> None:
    needed = predict(TAUGHT).peak_bytes
    machine = named_machine(f"{needed * 9 // 10}B")
    found = report([Part("training", TAUGHT)], subject="it", machine=machine, words="settings", own_bytes=0)
    assert found.fits is False
    assert found.exit_status == 1
    assert found.enough
    savings = [one.saving_bytes for one in found.changes]
    assert savings == sorted(savings, reverse=True)
    assert all(one.saving_bytes == found.largest.peak_bytes - one.peak_bytes > 0 for one in found.changes)
    for one in found.changes:
        assert one.fits == (one.peak_bytes <= machine.available_bytes)
