"""What a step counts: the real vocabulary, whatever heads are padded to."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Collator
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.teachers.source import Said
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.step import DistillationStep

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
    counting = Counting(shifted=True, vocabulary=WORDS)
    terms = (RowTerm("forward_kl", 0.5, forward_kl_core, 2.0), RowTerm("cross_entropy", 0.5))
    objective = Objective(counting, terms)
    student, teacher = Table(student_width, 0), Table(teacher_width, 1)
    plain, plain_teacher = Table(WORDS, 0), Table(WORDS, 1)
    with torch.no_grad():
        plain.table_VV.copy_(student.table_VV[:, :WORDS])
        plain_teacher.table_VV.copy_(teacher.table_VV[:, :WORDS])
    rows = batch()
    losses = []
    for model, source in ((student, teacher), (plain, plain_teacher)):
        with torch.no_grad():
            said = read_rows(source, rows, counting)
        loss = DistillationStep(model, objective)(rows, Said(said), objective.at(0, 1, objective.counts([rows]))).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert student.table_VV.grad is not None
    assert plain.table_VV.grad is not None
    torch.testing.assert_close(student.table_VV.grad[:, :WORDS], plain.table_VV.grad)
    assert (student.table_VV.grad[:, WORDS:] == 0).all()


def test_without_a_vocabulary_the_whole_head_counts() -> None:
    rows, model = batch(), Table(9, 0)
    assert read_rows(model, rows, Counting(shifted=True)).of(slice(None)).shape == (4, 9)
    assert read_rows(model, rows, Counting(shifted=True, vocabulary=WORDS)).of(slice(None)).shape == (4, WORDS)
