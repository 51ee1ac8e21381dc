"""How good the teacher of a cache is on the evaluation rows, from what was kept of it."""

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from entrenar_core.data.labels import IGNORED
from entrenar_core.models.heads import TAGGING
from entrenar_core.reports import Scores
from entrenar_core.teachers.cache.kinds import Hidden, Values
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.training.evaluation import OnBatch, evaluate_rows, length_sorted_batches, score_labels

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


def score_cached(prepared: "Preparation", cached: CachedTeacher, accelerator: Accelerator, on_batch: OnBatch) -> Scores:
    """As a live teacher is scored: of hidden states and logits from the logits, of tokens from what was kept of the
    labels.
    """
    batch_size, counting = prepared.config.training.evaluation_batch_size, prepared.counting
    if isinstance(cached.kind, Hidden | Values):
        return evaluate_rows(
            cached.dense,
            prepared.eval_tokens,
            collator=prepared.collator,
            batch_size=batch_size,
            counting=counting,
            accelerator=accelerator,
            tags=prepared.label_names if prepared.task == TAGGING else None,
            on_batch=on_batch,
        )
    log_p, correct = [], []
    for batch in length_sorted_batches(prepared.eval_tokens, prepared.collator, batch_size):
        labels_N = counting.labels(batch)
        there_N = labels_N != IGNORED
        log_p.append(cached.of_labels(batch)[there_N])
        tiles = cached.rows(batch).tiles(prepared.vocabulary or 0)
        tiles.load(slice(0, len(labels_N)))
        correct.append((tiles.preferred() == labels_N)[there_N])
    return score_labels(torch.cat(log_p), torch.cat(correct), len(prepared.eval_tokens), predicts=counting.shifted)
