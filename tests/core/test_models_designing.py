"""Proposed students: their counts are those of the students that are then built, and they can be built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from entrenar_core.architectures import architecture_of, families
from entrenar_core.artifact import inspect_folder
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.models.designing import Keep, propose
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.student import build_student
from entrenar_core.models.student_rules import check_student
from tiny_models import tiny_llama


def config_of(name: str = "llama", **given: Any) -> PreTrainedConfig:
    family = families()[name]
    sizes = {"num_layers": 12, "hidden_size": 192, "num_heads": 12, "intermediate_size": 512, "vocab_size": 300}
    named = {family.keys[size][0]: value for size, value in sizes.items()}
    return AutoConfig.for_model(family.model_types[0], **named | {"pad_token_id": 0} | given)


@pytest.mark.parametrize("keep", ["depth", "width", "balanced"])
def test_a_proposal_is_built_with_the_parameters_that_it_names(keep: Keep, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 6, "hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    artifact = inspect_folder(tiny_llama(tmp_path, intermediate_size=256, **sizes))
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path)
    found = propose(teacher.config, ratio=2.5, keep=keep)
    assert found.teacher_parameters == parameter_count(teacher)
    assert found.goal == round(parameter_count(teacher) / 2.5)
    misses = [abs(one.parameters - found.goal) for one in found.proposals]
    assert misses == sorted(misses)
    assert misses[0] < found.goal / 4
    for one in found.proposals:
        config = StudentConfig(init_from=InitFrom(**one.init_from, **narrower(one.init_from)))
        student = build_student(
            config,
            teacher_artifact=artifact,
            teacher_model=teacher,
            student_artifact=None,
            task="causal-lm",
            label_names=None,
            seed=0,
            vocab_size=320,
        )
        assert parameter_count(student) == one.parameters
        built = architecture_of(student.config.to_dict())
        assert (built.num_layers, built.hidden_size, built.num_heads) == (
            one.num_layers,
            one.hidden_size,
            one.num_heads,
        )
        assert (built.num_kv_heads, built.intermediate_size) == (one.num_kv_heads, one.intermediate_size)
        assert one.embedding_parameters == student.get_input_embeddings().weight.numel()
        assert student(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
        assert keep != "depth" or one.num_layers == 6
        assert keep != "width" or (one.hidden_size, one.num_heads) == (96, 8)


def narrower(init: dict[str, int]) -> dict[str, Any]:
    return {"width": "truncate"} if set(init) - {"teacher_layers"} else {}


@pytest.mark.parametrize("name", [name for name, family in families().items() if family.flows])
def test_proposals_of_every_family_pass_the_rules(name: str) -> None:
    config = config_of(name, **({"num_key_value_heads": 4} if name not in ("gpt2", "distilbert") else {}))
    teacher = architecture_of(config.to_dict())
    for keep in ("depth", "width", "balanced"):
        found = propose(config, ratio=3, keep=keep, number=3)
        assert found.proposals[0].parameters == pytest.approx(found.teacher_parameters / 3, rel=0.25)
        assert found.counts_head is (families()[name].kind == "decoder")
        for one in found.proposals:
            student = StudentConfig(init_from=InitFrom(**one.init_from))
            assert check_student(student, teacher) == []
            assert one.hidden_size % one.num_heads == 0
            assert one.num_heads % one.num_kv_heads == 0


@settings(max_examples=15)
@given(
    layers=st.integers(1, 9),
    groups=st.integers(1, 5),
    group=st.integers(1, 4),
    ratio=st.floats(1.05, 30),
    keep=st.sampled_from(["depth", "width", "balanced"]),
)
def test_any_llama_gets_sound_proposals_or_a_reason(
    layers: int, groups: int, group: int, ratio: float, keep: Keep
) -> None:
    heads = groups * group
    config = config_of(
        num_hidden_layers=layers,
        hidden_size=heads * 8,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=heads * 22,
    )
    try:
        found = propose(config, ratio=ratio, keep=keep)
    except UsageError:  # as test_the_smallest_size_of_an_error_can_be_had
        return
    assert found.proposals
    for one in found.proposals:
        assert (
            check_student(StudentConfig(init_from=InitFrom(**one.init_from)), architecture_of(config.to_dict())) == []
        )
        assert one.num_layers <= layers
        assert one.intermediate_size <= heads * 22


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "one of --ratio and --params"),
        ({"ratio": 2.0, "parameters": 5}, "one of --ratio and --params"),
        ({"ratio": 1.0}, "not fewer than the teacher's"),
        ({"parameters": 10**9}, "not fewer than the teacher's"),
        ({"parameters": 1000}, "of them embeddings"),
        ({"parameters": 60_000, "keep": "width"}, "of them embeddings"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        propose(config_of(), **asked)


def test_the_smallest_size_of_an_error_can_be_had() -> None:
    with pytest.raises(UsageError) as refused:
        propose(config_of(), parameters=60_000, keep="width")
    smallest = int(refused.value.message.split("has ")[1].split(" ")[0].replace(",", ""))
    assert propose(config_of(), parameters=smallest, keep="width").proposals[0].parameters == smallest


def test_a_family_that_cannot_be_narrowed_loses_only_layers() -> None:
    with pytest.raises(ModelError, match="electra"):
        propose(config_of("electra"), ratio=2)
    for one in propose(config_of("electra"), ratio=2, keep="width").proposals:
        assert set(one.init_from) <= {"teacher_layers"}
    with pytest.raises(ModelError, match="t5"):
        propose(AutoConfig.for_model("t5"), ratio=2)


def test_tied_embeddings_count_once() -> None:
    tied, untied = (propose(config_of(tie_word_embeddings=tie), ratio=2) for tie in (True, False))
    assert untied.teacher_parameters - tied.teacher_parameters == 300 * 192
