"""Losses between layers of real models: what they record, what they count, what trains with them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from entrenar_core.config import parse_config
from entrenar_core.config.desugaring import terms_of
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.losses import LOSSES
from entrenar_core.models.loading import seeded
from entrenar_core.models.recording import Record, recording
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.training.layer_terms import LayerTerm, Sizes, make_layer_term
from entrenar_core.training.losses import sizes_of
from tiny_models import tiny_bert, tiny_llama

LAYERED = [name for name, row in LOSSES.items() if row.family not in ("labels", "logits", "vectors")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A student of 2 layers of 32 and a teacher of 3 layers of 48, with twice the heads."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("models")
    sizes = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 8, "intermediate_size": 96}
    teacher = tiny_bert(folder / "teacher", seed=1, initializer_range=0.3, **sizes)
    student = tiny_bert(folder / "student", seed=2, initializer_range=0.3, num_attention_heads=4)
    return tuple(AutoModel.from_pretrained(path).eval() for path in (student, teacher))  # type: ignore[return-value]


def batch(rows: int = 8) -> Batch:
    chance = torch.Generator().manual_seed(3)
    lengths = [5, 9, 2, 7, 3, 8, 6, 4][:rows]
    ids = [torch.randint(5, 100, (length,), generator=chance).tolist() for length in lengths]
    return Collator(0)([{"input_ids": row, "labels": 0, "row": index} for index, row in enumerate(ids)])


def term_of(name: str, models: tuple[Any, Any], **settings: Any) -> LayerTerm:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    losses = [{"name": name, **settings}]
    (term,) = terms_of(parse_config(values | {"distillation": {"losses": losses}}).distillation)
    layers = term.entry.layers  # type: ignore[union-attr]
    with seeded(0):
        pairs = layers if isinstance(layers, tuple) else ((0, 0), (1, 2))
        return make_layer_term(term, pairs, *map(sizes_of, models))


def records(term: LayerTerm, models: tuple[Any, Any], rows: Batch) -> tuple[Record, Record]:
    found = []
    for side, model in enumerate(models):
        with recording(model, **term.wants(side).arguments()) as record, torch.set_grad_enabled(side == 0):
            model(input_ids=rows.input_ids_BT, attention_mask=rows.attention_mask_BT)
        found.append(record)
    return found[0], found[1]


def total(term: LayerTerm, models: tuple[Any, Any], rows: Batch | None = None) -> Tensor:
    rows = batch() if rows is None else rows
    value: Tensor = term(*records(term, models, rows), rows)
    return value


@pytest.mark.parametrize("name", LAYERED)
def test_a_loss_is_the_mean_of_its_pairs(models: tuple[Any, Any], name: str) -> None:
    both = term_of(name, models, layers=[[0, 0], [1, 2]])
    first, second = (term_of(name, models, layers=[pair]) for pair in ([0, 0], [1, 2]))
    if getattr(both, "projections", None) is not None:
        first.projections, second.projections = both.projections[:1], both.projections[1:]  # type: ignore[assignment,index]
    expected = (total(first, models) + total(second, models)) / 2
    torch.testing.assert_close(total(both, models), expected)


@pytest.mark.parametrize("name", LAYERED)
def test_its_count_is_known_from_the_batch_alone(models: tuple[Any, Any], name: str) -> None:
    """It is what the functions of the library count, which see the hidden states."""
    term, rows = term_of(name, models), batch()
    student, teacher = records(term, models, rows)
    assert term.count(rows) == term._pair(0, student, teacher, rows).count > 0
    assert term.count(rows.blanked()) == 0


@pytest.mark.parametrize("name", LAYERED)
def test_nothing_that_counts_gives_zero_with_a_graph(models: tuple[Any, Any], name: str) -> None:
    value = total(term_of(name, models), models, batch().blanked())
    assert value == 0
    value.backward()


@pytest.mark.parametrize("name", LAYERED)
def test_the_student_gets_a_gradient_and_the_teacher_none(models: tuple[Any, Any], name: str) -> None:
    student, teacher = models
    student.zero_grad()
    settings = {"power": 3.0} if name == "attention_maps" else {}
    total(term_of(name, models, **settings), models).backward()
    assert student.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hidden_mse", {"layers": [[0, 1]]}),
        ("hidden_mse", {"embeddings": True}),
        ("hidden_mse", {"projection": "mlp"}),
        ("patient", {"pool": "mean"}),
        ("cka", {"group_size": 4}),
        ("cka", {"pool": "tokens"}),
        ("attention_maps", {"power": 4.0}),
        ("attention_kl", {"heads": [[0, 7], [1, 2]]}),
        ("attention_kl", {"head_weights": "entropy"}),
        ("attention_kl", {"head_weights": "variance"}),
        ("attention_mse", {"heads": [[0, 0]]}),
        ("minilm", {"relations": ["value"]}),
        ("minilm", {"relation_heads": 2}),
        ("rkd_angle", {"pool": "first"}),
        ("rkd_distance", {"group_size": 4}),
    ],
)
def test_each_setting_of_an_entry_changes_what_is_compared(
    models: tuple[Any, Any], name: str, settings: dict[str, Any]
) -> None:
    assert not torch.allclose(total(term_of(name, models), models), total(term_of(name, models, **settings), models))


def test_learnt_weights_and_projections_are_parameters(models: tuple[Any, Any]) -> None:
    learnt = term_of("attention_kl", models, head_weights="learned")
    total(learnt, models).backward()
    assert [parameter.shape for parameter in learnt.parameters()] == [(4,), (4,)]
    assert all(parameter.grad is not None for parameter in learnt.parameters())
    assert sum(parameter.numel() for parameter in term_of("hidden_mse", models).parameters()) == 2 * (32 * 48 + 48)
    assert not list(term_of("cka", models).parameters())


def test_what_is_recorded_is_what_the_losses_need(models: tuple[Any, Any]) -> None:
    hidden = term_of("hidden_mse", models, embeddings=True, layers=[[1, 2]])
    assert hidden.wants(1) == Wants(hidden=frozenset({EMBEDDINGS, 2}))
    attention = term_of("minilm", models, layers=[[1, 2]])
    both = hidden.wants(0) | attention.wants(0)
    assert both.arguments() == {"hidden_layers": [1], "attention_layers": [1], "embeddings": True}
    assert not Wants().anything


def test_unequal_widths_need_a_projection(models: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="48"):
        term_of("hidden_mse", models, projection="none")


def test_rotated_heads_are_not_cut(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "llama"))
    sizes = sizes_of(llama)
    assert sizes.rotates
    whole = math.gcd(sizes.num_heads, sizes.num_kv_heads)
    with pytest.raises(ValueError, match="would cut heads that are rotated by position"):
        term_of("minilm", (llama, llama), relation_heads=2 * sizes.num_heads, layers=[[0, 0]])
    term_of("minilm", (llama, llama), relation_heads=whole, layers=[[0, 0]])
    term_of("minilm", (llama, llama), relations=["value"], layers=[[0, 0]], relation_heads=2 * whole)


def test_sizes_are_those_of_the_model_inside(models: tuple[Any, Any]) -> None:
    assert sizes_of(models[0]) == Sizes(2, 32, 4, 4, 8, rotates=False)
