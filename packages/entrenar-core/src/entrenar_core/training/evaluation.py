"""How good a model is on the evaluation rows, alone and beside its teacher.

Batches are fixed by the rows, sorted by length, so a score does not depend on how training went or on how many
processes share the work.

Shapes: V classes or vocabulary, N rows or positions that count.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.labels import IGNORED
from entrenar_core.data.ordering import share
from entrenar_core.losses import cross_entropy, forward_kl
from entrenar_core.models.calling import logits_of
from entrenar_core.reports import Scores
from entrenar_core.training.step import counted

TeacherLogits = Callable[[Batch], Tensor]
OnBatch = Callable[[int, int], None]
"""Is told, before each batch, how many are done, and of how many."""
_ROWS = 256
"""Rows of logits at a time: with a vocabulary of 150,000 tokens and three copies in fp32, under half a gigabyte."""


def watched_by_nobody(_done: int, _total: int) -> None:
    pass


def length_sorted_batches(
    rows: Any, collator: Collator, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """This rank's part of every batch; a part without rows is left out."""
    order = sorted(range(len(rows)), key=list(rows["length"]).__getitem__)
    for start in range(0, len(order), batch_size):
        if mine := share(order[start : start + batch_size], rank, world_size):
            yield collator([rows[index] for index in mine])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Any,
    *,
    collator: Collator,
    batch_size: int,
    causal: bool,
    accelerator: Accelerator,
    teacher_logits: TeacherLogits | None = None,
    vocabulary: int | None = None,
    on_batch: OnBatch = watched_by_nobody,
) -> Scores:
    """Scores `model` on all `rows`, in evaluation mode, and leaves it in the mode that it was in.

    Args:
        model: maps `input_ids` and `attention_mask` to an object with `logits`.
        rows: tokens of the evaluation rows.
        collator: makes batches of them.
        batch_size: rows in a batch, over all processes.
        causal: whether it predicts tokens.
        accelerator: where and with whom.
        teacher_logits: what KL and agreement compare with.
        vocabulary: tokens of the tokenizer; what a head has beyond them is padding.
        on_batch: is told how many batches are done, and of how many.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(6, dtype=torch.float64)
    batches = math.ceil(len(rows) / batch_size)
    for done, cpu_batch in enumerate(
        length_sorted_batches(rows, collator, batch_size, accelerator.process_index, accelerator.num_processes)
    ):
        on_batch(done, batches)
        batch = cpu_batch.to(accelerator.device)
        with accelerator.autocast():
            logits = logits_of(model, batch.input_ids_BT, batch.attention_mask_BT)
        student_NV, labels_N = counted(logits, batch, causal, vocabulary)
        teacher_NV = None if teacher_logits is None else counted(teacher_logits(batch), batch, causal, vocabulary)[0]
        sums += _sums(student_NV, labels_N, teacher_NV)
    model.train(training)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device)).cpu()
    return _scores(sums, len(rows), causal, teacher_logits is not None)


def _sums(student_NV: Tensor, labels_N: Tensor, teacher_NV: Tensor | None) -> Tensor:
    """Targets, cross-entropy, correct; and compared rows, KL, agreeing. In 64 bits, so on the CPU: not every device
    has them.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    for start in range(0, len(student_NV), _ROWS):
        student, labels = student_NV[start : start + _ROWS], labels_N[start : start + _ROWS]
        of_rows = [labels != IGNORED, cross_entropy(student, labels), student.argmax(-1) == labels]
        if teacher_NV is not None:
            teacher = teacher_NV[start : start + _ROWS]
            agree = student.argmax(-1) == teacher.argmax(-1)
            of_rows += [torch.ones_like(agree), forward_kl(student, teacher), agree]
        sums[: len(of_rows)] += torch.stack([values.float() for values in of_rows]).cpu().double().sum(1)
    return sums


def _scores(sums: Tensor, examples: int, causal: bool, compared: bool) -> Scores:
    targets, loss, correct, rows, kl, agreeing = sums.tolist()
    mean = loss / max(targets, 1)
    return Scores(
        examples=examples,
        targets=int(targets),
        cross_entropy=mean,
        accuracy=correct / max(targets, 1),
        perplexity=math.exp(min(mean, 700.0)) if causal else None,
        kl=kl / max(rows, 1) if compared else None,
        agreement=agreeing / max(rows, 1) if compared else None,
    )


def score_logits(logits_NC: Tensor, labels_N: Tensor) -> Scores:
    """Scores of a classifier whose logits are at hand."""
    return _scores(_sums(logits_NC, labels_N, None), len(labels_N), causal=False, compared=False)
