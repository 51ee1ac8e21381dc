"""How good a model is on the evaluation rows, alone and beside its teacher.

Batches are fixed by the rows, sorted by length, so a score does not depend on how training went or on how many
processes share the work.

Shapes: V classes or vocabulary, N rows or positions that count.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.labels import IGNORED
from entrenar_core.data.ordering import share
from entrenar_core.losses import cross_entropy
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.losses.targets import Dense, Logits, Targets, TargetTiles, log_softmax
from entrenar_core.losses.tiles import tiles_of
from entrenar_core.models.output_layer import OutputLayer
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.reports import Scores
from entrenar_core.training.entities import EntityCounts, are_entity_tags, count_entities, entity_f1

TeacherRows = Callable[[Batch], Targets]
"""What a teacher says of the rows of a batch that count."""
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
    counting: Counting,
    accelerator: Accelerator,
    output: OutputLayer | None = None,
    teacher: TeacherRows | None = None,
    tags: Sequence[str] | None = None,
    on_batch: OnBatch = watched_by_nobody,
) -> Scores:
    """Scores `model` on all `rows`, in evaluation mode, and leaves it in the mode that it was in.

    Args:
        model: maps `input_ids` and `attention_mask` to an object with `logits`.
        rows: tokens of the evaluation rows.
        collator: makes batches of them.
        batch_size: rows in a batch, over all processes.
        counting: what of a batch counts.
        accelerator: where and with whom.
        output: the output layer of a language model, if its logits can be made in tiles.
        teacher: what KL and agreement compare with.
        tags: the names of words' tags, which may tell entities.
        on_batch: is told how many batches are done, and of how many.
    """
    training = model.training
    model.eval()
    scores = evaluate_rows(
        lambda batch: read_rows(model, batch, counting, output),
        rows,
        collator=collator,
        batch_size=batch_size,
        counting=counting,
        accelerator=accelerator,
        teacher=teacher,
        tags=tags,
        on_batch=on_batch,
    )
    model.train(training)
    return scores


@torch.no_grad()
def evaluate_rows(
    said: Callable[[Batch], Dense],
    rows: Any,
    *,
    collator: Collator,
    batch_size: int,
    counting: Counting,
    accelerator: Accelerator,
    teacher: TeacherRows | None = None,
    tags: Sequence[str] | None = None,
    on_batch: OnBatch = watched_by_nobody,
) -> Scores:
    """Scores what is `said` of each batch, by a model or by whatever kept it; the arguments are those of `evaluate`."""
    entities = tags is not None and are_entity_tags(tags)
    sums = torch.zeros(9, dtype=torch.float64)
    batches = math.ceil(len(rows) / batch_size)
    for done, cpu_batch in enumerate(
        length_sorted_batches(rows, collator, batch_size, accelerator.process_index, accelerator.num_processes)
    ):
        on_batch(done, batches)
        batch = cpu_batch.to(accelerator.device)
        with accelerator.autocast():
            student = said(batch)
            sums[:6] += sums_of(student, counting.labels(batch), None if teacher is None else teacher(batch))
            if entities:
                sums[6:] += _entities(student, counting.labels(batch), batch, tags or ())
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device)).cpu()
    scores = _scores(sums[:6], len(rows), counting.shifted, teacher is not None)
    return dataclasses.replace(scores, entity_f1=entity_f1(*sums[6:].tolist())) if entities else scores


def sums_of(student: Dense, labels_N: Tensor, teacher: Targets | None) -> Tensor:
    """Targets, cross-entropy, correct; and compared rows, KL, agreeing. In 64 bits, so on the CPU: not every device
    has them.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    tiles, whole = (None, False) if teacher is None else (teacher.tiles(student.width), teacher.whole)
    for start in tiles_of(range(0, len(student), _ROWS)):
        tile = slice(start, min(start + _ROWS, len(student)))
        student_NV, labels = student.of(tile), labels_N[tile]
        of_rows = [labels != IGNORED, cross_entropy(student_NV, labels), student_NV.argmax(-1) == labels]
        if tiles is not None:
            tiles.load(tile)
            agree = student_NV.argmax(-1) == tiles.preferred()
            of_rows += [torch.ones_like(agree), _distances(student_NV, tiles, whole=whole), agree]
        sums[: len(of_rows)] += torch.stack([values.float() for values in of_rows]).cpu().double().sum(1)
    return sums


def _distances(student_NV: Tensor, teacher: TargetTiles, *, whole: bool) -> Tensor:
    """The KL of each row of a tile, NaN where too little is known of the teacher."""
    if not whole:
        return student_NV.new_full(student_NV.shape[:1], torch.nan)
    log_q_NV = log_softmax(student_NV, 1.0)
    return teacher.local(forward_kl_core, log_q_NV, slice(None), 1.0).values_N


def _entities(student: Dense, labels_N: Tensor, batch: Batch, tags: Sequence[str]) -> Tensor:
    """Entities that are right, that are predicted, and that there are."""
    words = batch.targets.sum(1).tolist()
    chosen_N = student.of(slice(None)).argmax(-1)
    rows = zip(torch.split(chosen_N.cpu(), words), torch.split(labels_N.cpu(), words), strict=True)
    counts = (count_entities(predicted.tolist(), labels.tolist(), tags) for predicted, labels in rows)
    total = sum(counts, EntityCounts())
    return torch.tensor([total.correct, total.predicted, total.labelled], dtype=torch.float64)


def score_labels(log_p_N: Tensor, correct_N: Tensor, examples: int, *, predicts: bool) -> Scores:
    """Scores of a teacher of whom the log-probability of each label is known, and whether it prefers it."""
    told = [float(len(log_p_N)), -float(log_p_N.double().sum()), float(correct_N.sum()), 0.0, 0.0, 0.0]
    return _scores(torch.tensor(told, dtype=torch.float64), examples, predicts, compared=False)


def _scores(sums: Tensor, examples: int, predicts: bool, compared: bool) -> Scores:
    targets, loss, correct, rows, kl, agreeing = sums.tolist()
    mean = loss / max(targets, 1)
    return Scores(
        examples=examples,
        targets=int(targets),
        cross_entropy=mean,
        accuracy=correct / max(targets, 1),
        perplexity=math.exp(min(mean, 700.0)) if predicts else None,
        kl=kl / max(rows, 1) if compared and not math.isnan(kl) else None,
        agreement=agreeing / max(rows, 1) if compared else None,
    )


def score_logits(logits_NC: Tensor, labels_N: Tensor) -> Scores:
    """Scores of a classifier whose logits are at hand."""
    return _scores(sums_of(Logits(logits_NC), labels_N, None), len(labels_N), predicts=False, compared=False)
