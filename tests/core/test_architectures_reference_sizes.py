"""Known sizes: their counts are those of the models, and a student of the name has the sizes of the name."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from entrenar_core.architectures import architecture_of, families
from entrenar_core.architectures.reference_sizes import reference_sizes
from entrenar_core.artifact import inspect_folder
from entrenar_core.config import parse_config
from entrenar_core.config.schema import StudentConfig
from entrenar_core.errors import ConfigError
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.student import build_student
from entrenar_core.models.student_rules import check_student, with_known_sizes
from tiny_models import tiny_bert, tiny_llama

SIZES = ("num_layers", "hidden_size", "num_kv_heads", "num_heads", "intermediate_size", "vocab_size", "max_positions")
JOB = {"teacher": {"model_id": "t"}, "dataset": {"name": "d"}}


@pytest.mark.parametrize("name", reference_sizes())
def test_the_parameters_are_those_of_the_model(name: str) -> None:
    known = reference_sizes()[name]
    family = families()[known.family]
    given = {family.keys[size][0]: getattr(known, size) for size in SIZES}
    config = AutoConfig.for_model(family.model_types[0], **given, tie_word_embeddings=known.tied, pad_token_id=0)
    auto = AutoModelForCausalLM if family.kind == "decoder" else AutoModel
    with torch.device("meta"):
        assert parameter_count(auto.from_config(config)) == known.parameters
    found = architecture_of(config.to_dict())
    assert {size: getattr(found, size) for size in SIZES} == {size: getattr(known, size) for size in SIZES}


def test_the_sizes_are_those_of_the_name() -> None:
    sizes = reference_sizes()
    assert sizes["tinyllama-1.1b"].parameters == 1_100_048_384
    assert sizes["distilbert"].parameters == 66_362_880
    config = with_known_sizes(StudentConfig(architecture="tiny-500m"))
    assert (config.architecture, config.hidden_size, config.num_layers, config.num_kv_heads) == ("llama", 1024, 24, 4)
    given = StudentConfig(architecture="distilbert", hidden_size=32, num_layers=2, num_heads=4)
    assert with_known_sizes(given) is given


@pytest.mark.parametrize("name", reference_sizes())
def test_a_name_says_all_and_bears_no_other_size(name: str) -> None:
    parsed = parse_config(JOB | {"student": {"architecture": name}})
    assert parsed.student.architecture == name
    with pytest.raises(ConfigError) as raised:
        parse_config(JOB | {"student": {"architecture": name, "intermediate_size": 99}})
    assert "and 99 is given" in raised.value.problems[0].message
    same = {"architecture": name, "intermediate_size": reference_sizes()[name].intermediate_size}
    assert parse_config(JOB | {"student": same})


def test_the_name_of_a_family_with_sizes_is_the_family() -> None:
    with pytest.raises(ConfigError, match=r"student\.num_layers"):
        parse_config(JOB | {"student": {"architecture": "distilbert", "hidden_size": 32, "num_heads": 4}})
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2}
    assert parse_config(JOB | {"student": {"architecture": "distilbert", **sizes}}).student.hidden_size == 32


def test_a_student_of_a_name_has_its_sizes_and_the_teachers_vocabulary(tmp_path: Path) -> None:
    artifact = inspect_folder(tiny_bert(tmp_path / "bert"))
    student = build_student(
        StudentConfig(architecture="distilbert"),
        teacher_artifact=artifact,
        teacher_model=None,
        student_artifact=None,
        task="sequence-classification",
        label_names=["a", "b"],
        seed=0,
        vocab_size=256,
    )
    config = student.config
    assert (config.model_type, config.n_layers, config.dim, config.n_heads, config.hidden_dim) == (
        "distilbert",
        6,
        768,
        12,
        3072,
    )
    assert config.vocab_size == 256
    assert config.max_position_embeddings == 128


def test_a_known_name_is_suggested_and_judged_by_its_family(tmp_path: Path) -> None:
    teacher = inspect_folder(tiny_llama(tmp_path)).architecture
    (problem,) = check_student(StudentConfig(architecture="tinyllama-1.1"), teacher)
    assert problem.hint == "did you mean `tinyllama-1.1b`?"
    (problem,) = check_student(StudentConfig(architecture="distilbert"), teacher, task="causal-lm")
    assert "both sides" in problem.message
    assert check_student(StudentConfig(architecture="small-1b"), teacher, task="causal-lm") == []
