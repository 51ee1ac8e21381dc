"""Losses between vectors of sentences as parts of an objective: what an entry's settings do, and what counts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from entrenar_core.config import parse_config
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.sentences import for_task
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.losses import embedding_cosine, embedding_mse, in_batch_similarity
from entrenar_core.training.vector_terms import VectorTerm, make_vector_term


def term(widths: tuple[int, int] = (4, 4), **entry: Any) -> VectorTerm:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    config = for_task(parse_config(values | {"distillation": {"losses": [entry]}}), "embedding")
    torch.manual_seed(0)
    return make_vector_term(terms_of(config.distillation)[0], *widths)


def batch(rows: int) -> Batch:
    return Collator(0)([{"input_ids": [5] * (row + 1), "labels": -100, "row": row} for row in range(rows)])


def vectors(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_vectors_of_one_width_are_compared_as_they_are() -> None:
    student, teacher = vectors(5, 4, 0), vectors(5, 4, 1)
    for name, loss in (("embedding_cosine", embedding_cosine), ("embedding_mse", embedding_mse)):
        made = term(name=name)
        assert not list(made.parameters())
        assert torch.equal(made(student, teacher, batch(5)), loss(student, teacher).total)
        assert made.count(batch(5)) == 5


def test_widths_that_differ_get_a_projection_that_trains() -> None:
    student, teacher = vectors(5, 3, 0).float(), vectors(5, 4, 1).float()
    made = term((3, 4), name="embedding_mse")
    assert isinstance(made.projection, nn.Linear)
    expected = embedding_mse(made.projection(student), teacher).total
    assert torch.equal(made(student, teacher, batch(5)), expected)
    assert isinstance(term((3, 4), name="embedding_mse", projection="mlp").projection, nn.Sequential)
    assert isinstance(term((4, 4), name="embedding_mse", projection="linear").projection, nn.Linear)
    with pytest.raises(ValueError, match="need a projection: linear or mlp"):
        term((3, 4), name="embedding_mse", projection="none")


def test_relations_are_those_of_vectors_in_groups_of_rows() -> None:
    student, teacher = vectors(11, 3, 0), vectors(11, 4, 1)
    made = term((3, 4), name="in_batch_similarity", group_size=4)
    one = torch.ones(11, 1, dtype=torch.bool)
    expected = in_batch_similarity(student.unsqueeze(1), teacher.unsqueeze(1), one, group_size=4, pool="first")
    assert torch.equal(made(student, teacher, batch(11)), expected.total)
    assert made.count(batch(11)) == expected.count == 3
    assert term(name="rkd_distance", group_size=8).count(batch(9)) == 1, "of a single row there is no distance"


def test_the_temperature_of_similarities_is_that_of_the_entry() -> None:
    student, teacher = vectors(8, 4, 0), vectors(8, 4, 1)
    cold, usual, warm = (
        term(name="in_batch_similarity", **settings)(student, teacher, batch(8)).item()
        for settings in ({"temperature": 0.01}, {}, {"temperature": 2.0})
    )
    assert cold > usual > warm > 0
    assert term(name="in_batch_similarity", temperature=0.05)(student, teacher, batch(8)).item() == usual


def test_a_batch_that_does_not_count_gives_zero_with_a_graph() -> None:
    teacher = vectors(5, 4, 1).float()
    for name in ("embedding_cosine", "embedding_mse", "in_batch_similarity"):
        student = vectors(5, 4, 0).float().requires_grad_()
        made = term((4, 4), name=name)
        total = made(student, teacher, batch(5).blanked())
        total.backward()
        assert (total.item(), made.count(batch(5).blanked())) == (0.0, 0)
        assert student.grad is not None
        assert not student.grad.any()
