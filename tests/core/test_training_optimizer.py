"""Schedules against their closed forms, AdamW by hand, and scores against numpy."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import IGNORED, Collator
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.evaluation import evaluate
from entrenar_core.training.optimizer import learning_rate, make_optimizer

TOTAL, WARMUP, PEAK = 20, 4, 0.5


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", lambda _done: 1.0),
        ("linear", lambda done: 1.0 - done),
        ("cosine", lambda done: math.cos(math.pi * done / 2) ** 2),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_then_follows_its_schedule(schedule: Any, after: Any) -> None:
    training = TrainingConfig(schedule=schedule, warmup_steps=WARMUP, learning_rate=PEAK)
    rates = [learning_rate(step, TOTAL, training) for step in range(TOTAL)]
    assert rates[:WARMUP] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK])
    assert rates[WARMUP:] == pytest.approx([PEAK * after(i / (TOTAL - WARMUP)) for i in range(TOTAL - WARMUP)])
    assert min(rates) > 0, "no step is spent on nothing"


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert learning_rate(0, 10, TrainingConfig(learning_rate=PEAK)) == PEAK


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    training = TrainingConfig(warmup_steps=10, learning_rate=PEAK)
    assert [learning_rate(step, 3, training) for step in range(3)] == pytest.approx([0.05, 0.1, 0.15])


def test_norms_and_biases_are_not_decayed_and_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Embedding(4, 3), nn.Linear(3, 1))
    model[3].weight.requires_grad_(False)
    decay = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, TrainingConfig(weight_decay=0.3)).param_groups
        for parameter in group["params"]
    }
    found = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert found == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.3, "3.weight": None, "3.bias": 0.0
    }  # fmt: skip


def test_its_steps_are_those_of_adamw_by_hand() -> None:
    training = TrainingConfig(learning_rate=0.1, weight_decay=0.2)
    model = nn.Linear(2, 2).double()
    optimizer = make_optimizer(model, training)
    weight, bias = (parameter.detach().numpy().copy() for parameter in (model.weight, model.bias))
    moments = {name: [0.0, 0.0] for name in ("weight", "bias")}
    for step in range(1, 4):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.3 * step) * (-1) ** index
        optimizer.step()
        for name, value, sign, decay in (("weight", weight, 1, 0.2), ("bias", bias, -1, 0.0)):
            gradient, (first, second) = 0.3 * step * sign, moments[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[name] = [first, second]
            value *= 1 - 0.1 * decay
            value -= 0.1 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert model.weight.detach().numpy() == pytest.approx(weight, rel=1e-12)
    assert model.bias.detach().numpy() == pytest.approx(bias, rel=1e-12)


class Lookup(nn.Module):
    """A model without context: logits (B, T, V), or of the first token (B, V)."""

    def __init__(self, seed: int, causal: bool) -> None:
        super().__init__()
        self.table_VV = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed)) * 2
        self.causal = causal

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits_BTV = self.table_VV[input_ids]
        return SimpleNamespace(logits=logits_BTV if self.causal else logits_BTV[:, 0])


def rows(causal: bool) -> Dataset:
    chance = np.random.default_rng(3)
    made: list[dict[str, Any]] = []
    for index, length in enumerate([4, 9, 1, 6, 2, 3, 8]):
        ids = chance.integers(0, 7, length).tolist()
        tokens = [IGNORED, *ids[1:]] if index % 2 else ids
        labels = tokens if causal else IGNORED if index == 3 else index % 7
        made.append({"input_ids": ids, "labels": labels, "row": index, "length": length})
    return Dataset.from_list(made)


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_scores_are_those_of_numpy_whatever_the_batch_size(causal: bool, batch_size: int) -> None:
    student, teacher = Lookup(1, causal), Lookup(2, causal)
    places = [
        (row["input_ids"][t], label)
        for row in rows(causal)
        for t, label in (enumerate(row["labels"][1:]) if causal else [(0, row["labels"])])
    ]
    losses, divergences, correct, agree = [], [], [], []
    for token, label in places:
        if causal and label == IGNORED:
            continue
        p, q = (log_softmax(model.table_VV[token].double().numpy()) for model in (teacher, student))
        divergences.append(float((np.exp(p) * (p - q)).sum()))
        agree.append(p.argmax() == q.argmax())
        if label != IGNORED:
            losses.append(-q[label])
            correct.append(q.argmax() == label)

    counting = Counting(shifted=causal)
    student.train()
    scores = evaluate(
        student, rows(causal), collator=Collator(0), batch_size=batch_size, counting=counting,
        accelerator=Accelerator(cpu=True), teacher=lambda batch: read_rows(teacher, batch, counting),
    )  # fmt: skip
    assert student.training, "it is left in the mode that it was in"
    assert (scores.examples, scores.targets) == (7, len(losses))
    assert scores.cross_entropy == pytest.approx(np.mean(losses), rel=1e-6)
    assert scores.accuracy == pytest.approx(np.mean(correct))
    assert scores.kl == pytest.approx(np.mean(divergences), rel=1e-5)
    assert scores.agreement == pytest.approx(np.mean(agree))
    assert scores.perplexity == (pytest.approx(math.exp(np.mean(losses)), rel=1e-6) if causal else None)


def taken(first: int = 0, rank: int = 0, world_size: int = 1, **settings: Any) -> list[list[list[int]]]:
    """The rows of each micro-batch of each step that count."""
    training = TrainingConfig(**{"epochs": 2, "batch_size": 3, "gradient_accumulation": 2, **settings})
    steps = StoredBatches(rows(False), Collator(0), training, rank, world_size).steps(first)
    return [[batch.rows_B.tolist() if batch.num_soft else [] for batch in step] for step in steps]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_takes_every_row_once_and_a_resumed_one_goes_on(grouped: bool) -> None:
    whole = taken(group_by_length=grouped)
    assert [sum(map(len, step)) for step in whole] == [6, 1, 6, 1]
    for epoch in (whole[:2], whole[2:]):
        assert sorted(row for step in epoch for batch in step for row in batch) == list(range(7))
    assert whole[:2] != whole[2:], "every epoch has its own order"
    for first in range(5):
        assert taken(first, group_by_length=grouped) == whole[first:]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    parts = [taken(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, step_parts in zip(taken(), zip(*parts, strict=True), strict=True):
        joined = [[row for part in batch_parts for row in part] for batch_parts in zip(*step_parts, strict=True)]
        assert joined == step


def test_worker_processes_give_the_same_batches_and_draw_nothing_from_the_runs_chance() -> None:
    state = torch.get_rng_state()
    assert taken(dataloader_workers=2) == taken()
    assert torch.equal(torch.get_rng_state(), state)


def test_max_steps_goes_on_beyond_the_epochs_and_stops_before_their_end() -> None:
    assert len(taken(max_steps=3)) == 3
    assert len(taken(max_steps=9)) == 9
