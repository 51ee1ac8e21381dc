"""What a step counts: the real vocabulary, whatever heads are padded to."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Collator
from entrenar_core.training.step import Counts, DistillationStep, Objective, counted

WORDS = 7


class Table(nn.Module):
    """A language model whose logits are a row of a table, with a head padded to `width`."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.table_VV = nn.Parameter(torch.randn(WORDS, width, generator=torch.Generator().manual_seed(seed)) * 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.table_VV[input_ids])


def batch() -> Any:
    ids = [[1, 2, 3, 4], [5, 6]]
    return Collator(0)([{"input_ids": row, "labels": row, "row": index} for index, row in enumerate(ids)])


@pytest.mark.parametrize(("student_width", "teacher_width"), [(7, 9), (9, 7), (12, 9), (9, 9)])
def test_padding_of_either_head_changes_neither_loss_nor_gradient(student_width: int, teacher_width: int) -> None:
    objective = Objective(causal=True, alpha=0.5, temperature=2.0, vocabulary=WORDS)
    student, teacher = Table(student_width, 0), Table(teacher_width, 1)
    plain, plain_teacher = Table(WORDS, 0), Table(WORDS, 1)
    with torch.no_grad():
        plain.table_VV.copy_(student.table_VV[:, :WORDS])
        plain_teacher.table_VV.copy_(teacher.table_VV[:, :WORDS])
    rows = batch()
    losses = []
    for model, source in ((student, teacher), (plain, plain_teacher)):
        with torch.no_grad():
            logits = source(rows.input_ids_BT, rows.attention_mask_BT).logits
        loss = DistillationStep(model, objective)(rows, logits, Counts(rows.num_soft, rows.num_hard)).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert student.table_VV.grad is not None
    assert plain.table_VV.grad is not None
    torch.testing.assert_close(student.table_VV.grad[:, :WORDS], plain.table_VV.grad)
    assert (student.table_VV.grad[:, WORDS:] == 0).all()


def test_without_a_vocabulary_the_whole_head_counts() -> None:
    rows = batch()
    logits = torch.randn(2, 4, 9)
    assert counted(logits, rows, causal=True)[0].shape == (4, 9)
    assert counted(logits, rows, causal=True, vocabulary=WORDS)[0].shape == (4, WORDS)
