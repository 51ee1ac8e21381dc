"""Mistakes in losses between layers, found from the sizes of both models before anything is loaded."""

from typing import Any

import pytest

from entrenar_core.architectures import Architecture
from entrenar_core.config import parse_config
from entrenar_core.models.layer_rules import check_layers, chosen_pairs, planned_student
from entrenar_core.models.layer_sizes import layer_sizes, relation_heads

TEACHER = Architecture("llama", "llama", (), 12, 64, 8, 4, 128, 1000, 512, None)
STUDENT = Architecture("llama", "llama", (), 4, 32, 4, 4, 64, 1000, 512, None)


def section(**distillation: Any) -> Any:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    return parse_config(values | {"distillation": distillation}).distillation


def student(**settings: Any) -> Any:
    return parse_config({"teacher": {"model_id": "t"}, "student": settings, "dataset": {"name": "d"}}).student


@pytest.mark.parametrize(
    ("distillation", "where", "message"),
    [
        ({"progressive": {"layer_mapping": [[4, 3]]}}, "distillation.progressive.layer_mapping", "4"),
        ({"progressive": {"layer_mapping": [[0, 12]]}}, "distillation.progressive.layer_mapping", "12"),
        ({"attention": {"layer_mapping": [[0, 99]]}}, "distillation.attention.layer_mapping", "99"),
        ({"relations": {"layer_mapping": [[9, 0]]}}, "distillation.relations.layer_mapping", "9"),
        ({"losses": [{"name": "forward_kl"}, {"name": "cka", "layers": [[0, 12]]}]},
         "distillation.losses[1].layers", "12"),
        ({"progressive": {"projection": "none"}}, "distillation.progressive.projection",
         "the student has 32, the teacher 64"),
        ({"losses": [{"name": "patient", "projection": "none"}]}, "distillation.losses[0].projection", "64"),
        ({"losses": [{"name": "attention_kl", "heads": [[0, 99]]}]}, "distillation.losses[0].heads", "0 to 7"),
        ({"attention": {"head_mapping": [[4, 0]]}}, "distillation.attention.head_mapping", "0 to 3"),
        ({"losses": [{"name": "minilm", "relation_heads": 7}]}, "distillation.losses[0].relation_heads",
         "7 relation heads do not divide"),
        ({"losses": [{"name": "minilm", "relation_heads": 8}]}, "distillation.losses[0].relation_heads",
         "rotated by position: take 1 or 2 or 4"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_setting(distillation: dict[str, Any], where: str, message: str) -> None:
    (problem,) = check_layers(section(**distillation), TEACHER, STUDENT)
    assert problem.where == where
    assert f"`{where}" in problem.message
    assert message in problem.message
    assert problem.hint


@pytest.mark.parametrize(
    ("relations", "student", "teacher", "expected"),
    [
        (["query", "key", "value"], ("bert", 128, 2, 2, None), ("bert", 384, 12, 12, None), 8),
        (["value"], ("llama", 576, 9, 3, None), ("llama", 576, 9, 3, None), 8),
        (["query"], ("llama", 576, 9, 3, None), ("llama", 576, 9, 3, None), 3),
        (["value"], ("gemma2", 48, 8, 4, 6), ("gemma2", 96, 8, 4, 6), 8),
        (["query", "key"], ("bert", 32, 4, 4, None), ("llama", 64, 8, 4, None), 4),
    ],
)
def test_relations_are_split_into_the_most_heads_that_suit_both_models(
    relations: list[str], student: tuple[Any, ...], teacher: tuple[Any, ...], expected: int
) -> None:
    sizes = []
    for family, hidden, heads, kv_heads, head_dim in (student, teacher):
        found = layer_sizes(Architecture(family, family, (), 2, hidden, heads, kv_heads, head_dim=head_dim))
        assert found is not None
        sizes.append(found)
    chosen = relation_heads(None, relations, *sizes)
    assert chosen == expected
    assert relation_heads(chosen, relations, *sizes) == chosen
    assert all(size.width(name) % chosen == 0 for size in sizes for name in relations)


@pytest.mark.parametrize("layers", ["uniform", "first", "last", "final", "cka", [[0, 0], [3, 11]]])
def test_what_fits_is_no_mistake(layers: Any) -> None:
    assert check_layers(section(progressive={"layer_mapping": layers}), TEACHER, STUDENT) == []


def test_a_student_deeper_than_its_teacher_has_no_first_layers_of_it() -> None:
    (problem,) = check_layers(section(progressive={"layer_mapping": "first"}), STUDENT, TEACHER)
    assert problem.where == "distillation.progressive.layer_mapping"
    assert check_layers(section(progressive={"layer_mapping": "uniform"}), STUDENT, TEACHER) == []


def test_the_final_layers_are_the_last_ones() -> None:
    assert chosen_pairs("final", 4, 12) == ((3, 11),)
    assert chosen_pairs("last", 4, 12) == ((0, 8), (1, 9), (2, 10), (3, 11))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"hidden_size": 48, "num_layers": 3, "num_heads": 6}, (3, 48, 6)),
        ({"init_from": {"teacher_layers": 5}}, (5, 64, 8)),
        ({"init_from": {"teacher_layers": [0, 3]}}, (2, 64, 8)),
        ({"init_from": {"teacher_layers": 5, "hidden_size": 32, "num_heads": 4}}, (5, 32, 4)),
        ({"init_from": {"num_heads": 4}}, (12, 64, 4)),
        ({"init_from": {"teacher_layers": 40}}, (None, 64, 8)),
    ],
)
def test_the_sizes_of_a_student_are_known_before_it_is_built(settings: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    planned = planned_student(student(**settings), TEACHER)
    assert (planned.num_layers, planned.hidden_size, planned.num_heads) == sizes
