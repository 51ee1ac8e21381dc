"""Deep models from traces of a few of their layers: the same, to the byte, as from traces of all of them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.memory.depth import kinds_of, plan
from entrenar_core.memory.estimate import Trace
from entrenar_core.memory.fakes import empty_model, stacks_of
from entrenar_core.memory.jobs import HeldModel, ReadingJob, Teaching, TrainingJob
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.steps import trace_reading, trace_training
from memory_twins import SIZES, held

DEEPSEEK = {
    **SIZES, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip


def deep(kind: str, layers: int, **settings: Any) -> HeldModel:
    if kind == "deepseek_v3":
        config = AutoConfig.for_model(kind, **{**DEEPSEEK, "num_hidden_layers": layers, **settings})
        return HeldModel(kind, config, "causal-lm")
    return held(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": layers, **settings})


def assert_same(told: Trace, whole: Trace) -> None:
    """What the largest moment of every phase holds; of equal ones any may be told."""
    assert {phase: moment.held for phase, moment in told.phases.items()} == {
        phase: moment.held for phase, moment in whole.phases.items()
    }
    assert told.peak.total_bytes == whole.peak.total_bytes
    assert told.flops == whole.flops
    assert told.parameters == whole.parameters
    assert told.trainable_parameters == whole.trainable_parameters
    assert told.teacher_parameters == whole.teacher_parameters


def assert_told(job: TrainingJob) -> None:
    found = predict(job)
    assert found.method == "extrapolated"
    assert_same(found.trace, trace_training(job, [None] * (1 + len(job.teachers))))


DEPTHS = {"llama": 9, "bert": 9, "gpt2": 9, "opt": 9, "gemma2": 11, "gemma3_text": 20, "deepseek_v3": 8}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("llama", "gemma3_text", "deepseek_v3") else pytest.param(kind, marks=pytest.mark.nightly)
        for kind in DEPTHS
    ],
)
def test_a_deep_model_is_told_from_a_few_layers(kind: str) -> None:
    assert_told(TrainingJob(deep(kind, DEPTHS[kind]), 2, 12, evaluation_rows=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": LoraAdapter(rank=2)},
        {"gradient_checkpointing": True},
        pytest.param({"gradient_accumulation": 2}, marks=pytest.mark.nightly),
        pytest.param({"mixed_precision": "bf16"}, marks=pytest.mark.nightly),
        pytest.param({"optimizer": "sgd"}, marks=pytest.mark.nightly),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_so_is_every_way_of_training_it(changes: dict[str, Any]) -> None:
    assert_told(replace(TrainingJob(deep("llama", 9), 2, 12), **changes))


@pytest.mark.nightly
@pytest.mark.parametrize("layers", [5, 8, 15])
@pytest.mark.parametrize("kind", DEPTHS)
def test_every_depth_is_told(kind: str, layers: int) -> None:
    model = replace(deep(kind, layers), attention="eager")
    targets: Any = ("o_proj",) if kind == "deepseek_v3" else "attention"
    for checkpointing, adapters in ((False, None), (True, LoraAdapter(rank=1, target_modules=targets))):
        job = TrainingJob(model, 2, 12, gradient_checkpointing=checkpointing, adapters=adapters)
        assert_same(predict(job).trace, trace_training(job, [None]))


def test_a_teacher_of_another_depth_is_told_beside_its_student() -> None:
    terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
    job = TrainingJob(deep("llama", 5), 2, 12, (Teaching(deep("llama", 7)),), terms, evaluation_rows=2)
    assert_told(job)
    assert sorted(predict(job).traced_layers) == [0, 1]


@pytest.mark.nightly
def test_so_are_two_teachers() -> None:
    terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
    teachers = (Teaching(deep("llama", 13)), Teaching(deep("llama", 7)))
    assert_told(TrainingJob(deep("llama", 8), 2, 12, teachers, terms, evaluation_rows=2))


def test_a_teacher_that_reads_is_told() -> None:
    job = ReadingJob(deep("bert", 12), 4, 12)
    found = predict(job)
    assert found.method == "extrapolated"
    assert_same(found.trace, trace_reading(job, None))


def test_losses_between_layers_look_at_all_of_them() -> None:
    terms = terms_of(DistillationSection.model_validate({"progressive": {"enabled": True}}))
    job = TrainingJob(deep("llama", 6), 2, 12, (Teaching(deep("llama", 8)),), terms)
    found = predict(job)
    assert found.method == "traced"
    assert not found.traced_layers


def test_encoder_and_decoder_are_traced_whole() -> None:
    assert predict(TrainingJob(held("t5", num_layers=5, num_decoder_layers=5), 2, 12)).method == "traced"


@pytest.mark.parametrize(
    ("kind", "layers", "period", "most"),
    [("llama", 32, 1, 4), ("gemma2", 26, 2, 6), ("gemma3_text", 26, 6, 14), ("deepseek_v3", 61, 1, 4)],
)
def test_few_layers_tell_of_a_family(kind: str, layers: int, period: int, most: int) -> None:
    (stack,) = stacks_of(empty_model(deep(kind, layers)))
    found = plan(kinds_of(stack))
    assert found is not None
    assert (found.period, found.total) == (period, layers)
    assert found.short + found.period <= most


KINDS = st.sampled_from("abc")


@given(
    before=st.lists(KINDS, max_size=4),
    period=st.lists(KINDS, min_size=1, max_size=5),
    repeats=st.integers(1, 8),
    cut=st.integers(0, 4),
)
def test_periods_give_back_every_kind_of_layer(before: list[str], period: list[str], repeats: int, cut: int) -> None:
    kinds = [*before, *period * repeats, *period[: cut % len(period)]]
    found = plan(kinds)
    if found is None:
        assert len(kinds) < len(before) + 3 * len(period) + 2, "few layers need no plan"
        return
    assert found.total == len(kinds)
    assert (found.total - found.short) % found.period == 0
    assert 1 < found.short < found.short + found.period < found.total
    short, longer = Counter(kinds[: found.short]), Counter(kinds[: found.short + found.period])
    more = longer - short
    assert short + Counter({kind: count * found.periods for kind, count in more.items()}) == Counter(kinds)
    # what is counted from the last layer is of the same kind there
    for layer in range(found.short):
        if not found.is_early(layer):
            assert kinds[layer] == kinds[layer + found.periods * found.period]


@given(st.lists(KINDS, max_size=12))
def test_layers_without_a_period_are_all_looked_at(kinds: list[str]) -> None:
    found = plan(kinds)
    if found is not None:
        late = range(found.short - found.period, len(kinds) - found.period)
        assert all(kinds[layer] == kinds[layer + found.period] for layer in late)
