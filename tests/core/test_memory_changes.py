"""What is proposed so that a training fits: it does, it can be asked for, and it changes something."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from entrenar_core import parse_config
from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.memory.changing import CHANGES, Jobs, applicable, enough
from entrenar_core.memory.jobs import CachedSignals, HeldModel, ReadingJob, Sharding, Teaching, TrainingJob
from entrenar_core.memory.machine import named_machine
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.reporting import report
from entrenar_core.memory.runs import Part
from memory_twins import held

TERMS = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
ALONE = TrainingJob(held("llama", hidden_size=64, intermediate_size=128), 16, 32)
TAUGHT = replace(ALONE, teachers=(Teaching(held("llama", hidden_size=128)),), terms=TERMS)


def words(job: TrainingJob, kind: Any, *, only_runs: bool = False) -> list[str]:
    return [told for _, _, told in applicable((job,), kind, only_runs=only_runs)]


def test_every_change_changes_the_job_and_can_be_predicted() -> None:
    for _, (made,), told in applicable((TAUGHT,), "settings"):
        assert made != TAUGHT, told
        found = predict(made)
        assert found.method in ("traced", "extrapolated"), told


def test_smaller_batches_are_the_same_step() -> None:
    for change, (made,), told in applicable((ALONE,), "settings"):
        if change.batch:
            assert isinstance(made, TrainingJob)
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
    adapted = replace(ALONE, adapters=LoraAdapter(rank=4))
    assert not [one for one in words(adapted, "flags") if "--method lora" in one]


def test_a_batch_is_not_cut_where_rows_are_compared() -> None:
    section = DistillationSection.model_validate({"losses": [{"name": "cka", "group_size": 8}]})
    assert not [one for one in words(replace(TAUGHT, terms=terms_of(section)), "settings") if "training.batch" in one]


def test_a_run_is_told_only_what_it_can_do() -> None:
    told = words(TAUGHT, "settings", only_runs=True)
    assert told
    assert not [one for one in told if one.startswith("--") or "not in `run`" in one]


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


def _limit(most: int) -> Callable[[Jobs], bool]:
    return lambda jobs: max(predict(job).peak_bytes for job in jobs) <= most


@pytest.mark.nightly
@settings(max_examples=20)
@given(share=st.floats(0.15, 0.99))
def test_what_is_enough_is_enough(share: float) -> None:
    most = int(predict(TAUGHT).peak_bytes * share)
    fits = _limit(most)
    told = enough((TAUGHT,), fits, "settings", only_runs=True)
    every: Jobs = (TAUGHT,)
    if not told:
        for change in [*(one for one in CHANGES if one.runs and not one.batch), CHANGES[2]]:
            every = change.on(every) or every
        assert not fits(every)
        return
    for text in told:
        (every,) = [made for _, made, said in applicable(every, "settings", only_runs=True) if said == text]
    assert fits(every)


def test_what_fits_without_a_change_is_not_told_to_need_it() -> None:
    """An optimiser of 8 bits, the first that saves, is of no use beside what is needed in the end."""
    most = predict(replace(TAUGHT, gradient_checkpointing=True, mixed_precision="bf16", batch_size=1)).peak_bytes
    told = enough((TAUGHT,), _limit(most), "settings", only_runs=True)
    assert len(told) > 1
    for left_out in told:
        jobs: Jobs = (TAUGHT,)
        for text in told:
            if text != left_out:
                jobs = next((made for _, made, said in applicable(jobs, "settings") if said == text), jobs)
        assert not _limit(most)(jobs), left_out


def test_what_helps_the_training_alone_is_no_help_where_a_teacher_that_reads_takes_most() -> None:
    """Cached in training, and read before by as many rows as an evaluation has."""
    teacher = held("llama", hidden_size=256, intermediate_size=512)
    read = ReadingJob(teacher, 64, 32, padded=True)
    learned = replace(ALONE, batch_size=2, teachers=(Teaching(teacher, cached=CachedSignals("hidden")),), terms=TERMS)
    parts = [Part("the teacher reads all rows", read), Part("training", replace(learned, evaluation_rows=64))]
    whole, alone = (predict(part.job).peak_bytes for part in parts)
    assert whole > alone
    machine = named_machine(f"{(whole + alone) // 2}B")
    found = report(parts, subject="it", machine=machine, words="settings", own_bytes=0, compare=True)
    assert found.fits is False
    assert found.enough == ("teacher.batch_size: 16",)
    assert {one.name for one in found.changes} <= {
        "teacher.batch_size: 16", "teacher.dtype: bfloat16", "teacher.load_in: nf4",
    }  # fmt: skip
    assert all(one.peak_bytes == whole for one in found.alternatives)


def test_ways_that_a_model_does_not_take_are_left_out_and_said() -> None:
    """A head of keys that has fewer rows than the usual rank; a family of which peft knows no layers has them all."""
    narrow = held("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=1, head_dim=8)
    found = report([Part("training", TrainingJob(narrow, 1, 8))], subject="it", compare=True)
    assert [one.name for one in found.alternatives] == ["full"]
    assert [one for one in found.assumptions if one.startswith("LoRA, rank 16 is left out: a rank of 16 is more than")]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model("olmo2", **sizes, num_hidden_layers=2, vocab_size=96)
    job = TrainingJob(HeldModel("an OLMo", config, "causal-lm"), 1, 8)
    other = report([Part("training", job)], subject="it", compare=True)
    assert "LoRA, rank 16" in [one.name for one in other.alternatives]


def test_processes_share_the_memory_of_a_machine() -> None:
    job = replace(ALONE, sharding=Sharding(4))
    alone, shared = (report([Part("training", one)], subject="it", own_bytes=0) for one in (ALONE, job))
    assert shared.needed_bytes == 4 * shared.peak_bytes
    assert alone.needed_bytes == alone.peak_bytes


def test_what_never_fits_has_no_way() -> None:
    assert enough((TAUGHT,), lambda _: False, "settings", only_runs=True) == ()


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
