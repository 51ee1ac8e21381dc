"""Eleven mistakes that distillation libraries have made, each with a test that would find it here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from entrenar_core import distill, parse_config
from entrenar_core.data.collating import IGNORED, Collator
from entrenar_core.losses import (
    DIVERGENCES,
    HardTerm,
    Head,
    HeadRows,
    SoftTerm,
    forward_kl,
    head_loss,
    jsd,
    of_logits,
    reverse_kl,
    soften,
    sum_over,
)
from entrenar_core.models.calling import logits_of
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.step import DistillationStep
from tiny_jobs import build_models, classification

KL = DIVERGENCES["forward_kl"].make()


def drawn(*shape: int, seed: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


class Lookup(nn.Module):
    """A language model that predicts from one token, with logits at hand, of which those above 8 are padding."""

    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        self.table_VV = nn.Parameter(torch.cat([drawn(8, 8, seed=seed), drawn(8, width - 8, seed=9)], -1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table_VV[input_ids]


ROWS = [
    {"input_ids": ids, "labels": ids, "row": row} for row, ids in enumerate([[1, 2, 3, 4, 5], [6, 7], [2], [5, 1, 6]])
]


def gradient(cut: int, side: Any = "right", student_width: int = 8, teacher_width: int = 8) -> Tensor:
    """Of a step over all rows, in micro-batches of `cut`."""
    student, teacher = Lookup(0, student_width), Lookup(1, teacher_width)
    counting = Counting(shifted=True, vocabulary=8)
    objective = Objective(counting, (RowTerm("kl", 0.5, KL, 2.0), RowTerm("labels", 0.5)))
    collator = Collator(0, side)
    batches = [collator(ROWS[start : start + cut]) for start in range(0, len(ROWS), cut)]
    now = objective.at(0, 1, objective.counts(batches))
    for batch in batches:
        with torch.no_grad():
            said = read_rows(teacher, batch, counting)
        DistillationStep(student, objective)._of_rows(batch, said, now)[0].loss.backward()
    assert student.table_VV.grad is not None
    return student.table_VV.grad


def test_mistake_1_gradients_that_grow_with_accumulation() -> None:
    torch.testing.assert_close(gradient(1), gradient(4))
    torch.testing.assert_close(gradient(2), gradient(4))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_mistake_2_a_temperature_that_reaches_the_value_and_not_the_gradient(name: str) -> None:
    """T² (1/T) is what the gradient in logits grows by; the numeric one is of the value."""
    student, teacher = drawn(3, 9, seed=0).requires_grad_(), drawn(3, 9, seed=1)
    loss = soften(lambda s, t: of_logits(DIVERGENCES[name].make(), s, t), 3.0)
    value = loss(student, teacher).sum()
    value.backward()
    assert student.grad is not None
    assert value != of_logits(DIVERGENCES[name].make(), student, teacher).sum(), "the temperature reaches the value"
    direction, step = drawn(3, 9, seed=2), 1e-6
    with torch.no_grad():
        there, back = (loss(student + sign * step * direction, teacher).sum() for sign in (1, -1))
    assert (there - back) / (2 * step) == pytest.approx(float((student.grad * direction).sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("length", [1, 9, 12, 100, 129, 300])
def test_mistake_3_labels_that_are_cut_otherwise_than_hidden_states(length: int) -> None:
    hidden, weight, labels = drawn(length, 6, seed=0), drawn(40, 6, seed=1), torch.arange(length) % 40
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    for tile_bytes in (1, 40 * 4 * 2 * 7, 10**9):
        found = head_loss(hidden, Head(weight), labels_N=labels, hard=HardTerm(1.0), tile_bytes=tile_bytes)
        torch.testing.assert_close(found.total, expected)


def test_mistake_4_positions_that_predict_themselves_and_pads_that_are_learnt() -> None:
    batch = Collator(0)(ROWS)
    counting = Counting(shifted=True)
    ids_BT1 = batch.input_ids_BT.unsqueeze(-1)
    assert counting.rows(ids_BT1, batch).flatten().tolist() == [1, 2, 3, 4, 6, 5, 1]
    assert counting.labels(batch).tolist() == [2, 3, 4, 5, 7, 1, 6]
    assert batch.num_soft == batch.num_hard == 7, "none of the pads, and no row's first token"


@pytest.mark.parametrize(("student_width", "teacher_width"), [(8, 11), (11, 8)])
def test_mistake_5_a_padded_head_that_is_filled_with_zeros_or_crashes(student_width: int, teacher_width: int) -> None:
    found = gradient(4, "right", student_width, teacher_width)
    torch.testing.assert_close(found[:, :8], gradient(4))
    assert found[:, 8:].abs().sum() == 0


def test_mistake_6_a_forward_kl_that_is_a_cross_entropy() -> None:
    logits = drawn(4, 9, seed=0)
    assert forward_kl(logits, logits.clone()).abs().max() < 1e-12
    assert (forward_kl(logits, drawn(4, 9, seed=1)) > 0).all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("forward_kl", {}),
        ("jsd", {}),
        ("jsd", {"beta": 0.0, "normalised": True}),
        ("skew_forward_kl", {}),
        ("skew_reverse_kl", {}),
        ("bild", {}),
        ("total_variation", {}),
        ("cross_entropy_hard", {}),
    ],
)
def test_mistake_7_tokens_that_the_teacher_rules_out(name: str, settings: dict[str, Any]) -> None:
    student, teacher = drawn(3, 9, seed=0).requires_grad_(), drawn(3, 9, seed=1)
    teacher[:, 4:] = -torch.inf
    value = of_logits(DIVERGENCES[name].make(**settings), student, teacher).sum()
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_mistake_7_what_is_infinite_is_said_to_be_and_never_no_number() -> None:
    teacher = drawn(3, 9, seed=1)
    teacher[:, 4:] = -torch.inf
    assert reverse_kl(drawn(3, 9, seed=0), teacher).isposinf().all()


def test_mistake_8_means_over_rows_or_over_the_vocabulary() -> None:
    student, teacher = drawn(2, 5, 9, seed=0), drawn(2, 5, 9, seed=1)
    found = sum_over(forward_kl, student.flatten(0, 1), teacher.flatten(0, 1))
    by_hand = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum()
    assert found.count == 10
    torch.testing.assert_close(found.total, by_hand)


def test_mistake_9_a_beta_of_which_nobody_says_whose_it_is() -> None:
    """The teacher's weight in the mixture; in its normalised form the limits are the two KLs."""
    student, teacher = drawn(4, 9, seed=0, scale=0.7), drawn(4, 9, seed=1, scale=0.7)
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = 0.1 * p + 0.9 * q
    expected = 0.1 * (p * (p / m).log()).sum(-1) + 0.9 * (q * (q / m).log()).sum(-1)
    torch.testing.assert_close(jsd(student, teacher, beta=0.1), expected)
    assert jsd(student, teacher, beta=1e-6).max() < 1e-5 * forward_kl(student, teacher).max()
    torch.testing.assert_close(jsd(student, teacher, beta=1e-6, normalised=True), forward_kl(student, teacher),
                               rtol=1e-4, atol=0)  # fmt: skip
    torch.testing.assert_close(jsd(student, teacher, beta=1 - 1e-6, normalised=True), reverse_kl(student, teacher),
                               rtol=1e-4, atol=0)  # fmt: skip


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl"])
def test_mistake_10_a_softmax_in_half_precision(name: str) -> None:
    """Of nearly equal distributions over a large vocabulary; the exact value is that of the rounded logits."""
    teacher = drawn(4, 32_000, seed=0, dtype=torch.bfloat16)
    student = (teacher.double() + drawn(4, 32_000, seed=1, scale=0.1)).to(torch.bfloat16).requires_grad_()
    exact = student.detach().double().requires_grad_()
    core = DIVERGENCES[name].make()
    found, expected = of_logits(core, student, teacher), of_logits(core, exact, teacher.double())
    found.sum().backward()
    expected.sum().backward()
    assert found.detach().double().tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert student.grad is not None
    assert exact.grad is not None
    angle = torch.nn.functional.cosine_similarity(student.grad.double().flatten(), exact.grad.flatten(), dim=0)
    assert angle > 0.9999


def test_mistake_11_a_batch_without_anything_to_learn() -> None:
    student = Lookup(0)
    counting = Counting(shifted=True)
    objective = Objective(counting, (RowTerm("kl", 0.5, KL), RowTerm("labels", 0.5)))
    batch = Collator(0)(ROWS).blanked()
    said = read_rows(Lookup(1), batch, counting)
    found = DistillationStep(student, objective)._of_rows(batch, said, objective.at(0, 1, [0, 0]))[0]
    assert found.loss == 0
    found.loss.backward()
    assert student.table_VV.grad is not None
    assert student.table_VV.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "settings", [{"softcap": 3.0}, {"scale": 0.25}, {"bias_V": drawn(40, seed=5)}, {"softcap": 2.0, "scale": 4.0}]
)
def test_mistake_11_capped_scaled_and_biased_logits(settings: dict[str, Any]) -> None:
    hidden, weight = drawn(20, 6, seed=0).requires_grad_(), drawn(40, 6, seed=1).requires_grad_()
    teacher, teacher_weight = drawn(20, 7, seed=2), drawn(40, 7, seed=3)
    head = Head(weight, **settings)
    found = head_loss(hidden, head, teacher=HeadRows(teacher, Head(teacher_weight)), soft=[SoftTerm(KL, 2.0, 1.0)])
    logits = hidden @ weight.T + (0 if head.bias_V is None else head.bias_V)
    logits = logits * head.scale
    logits = logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()
    expected = soften(forward_kl, 2.0)(logits, teacher @ teacher_weight.T).sum()
    torch.testing.assert_close(found.total, expected)
    ours, theirs = (torch.autograd.grad(value, (hidden, weight)) for value in (found.total, expected))
    torch.testing.assert_close(ours, theirs)


def test_mistake_11_padding_on_the_left() -> None:
    torch.testing.assert_close(gradient(4, "left"), gradient(4, "right"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    job = classification(build_models(folder / "models"), folder, training={"max_steps": 2})
    distill(parse_config(job))
    return folder


@pytest.mark.slow
def test_mistake_11_teacher_weights_in_checkpoints(trained: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from entrenar_core.models.facts import parameter_count

    student = AutoModelForSequenceClassification.from_pretrained(trained / "out")
    newest = sorted((trained / "out" / "checkpoints").glob("step-*"))[-1]
    saved = load_file(newest / "model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == parameter_count(student)
    assert not (newest / "beside.safetensors").exists()
    assert json.loads((trained / "out" / "run.json").read_text())["status"] == "complete"


@pytest.mark.slow
def test_mistake_11_a_teacher_that_drops_out(trained: Path) -> None:
    from accelerate import Accelerator
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(trained / "out", hidden_dropout_prob=0.5).train()
    teacher = LiveTeacher(model, Accelerator(cpu=True), Counting(shifted=False))
    batch = Collator(0)([{"input_ids": [5, 6, 7], "labels": IGNORED, "row": 0}])
    first, second = (teacher.rows(batch).of(slice(None)) for _ in range(2))
    assert torch.equal(first, second)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert logits_of(model, batch.input_ids_BT, batch.attention_mask_BT).shape == (1, 2)
