"""How good a teacher behind an endpoint is, from what it tells of the labels of the evaluation rows."""

import math
from typing import Any

import torch

from entrenar_core.data.collating import Collator
from entrenar_core.data.labels import IGNORED
from entrenar_core.errors import ModelError
from entrenar_core.reports import Scores
from entrenar_core.teachers.endpoint.source import EndpointTeacher
from entrenar_core.training.evaluation import OnBatch, length_sorted_batches, score_labels


def score_endpoint(
    teacher: EndpointTeacher, tokens: Any, *, collator: Collator, batch_size: int, on_batch: OnBatch = lambda *_: None
) -> Scores:
    """As `evaluate` scores a model here, of the same rows.

    Args:
        teacher: whom to ask.
        tokens: the tokenised evaluation rows.
        collator: makes batches of them.
        batch_size: how many rows a batch has.
        on_batch: is told how many batches are done, and of how many.

    Raises:
        ModelError: it does not tell the log-probability of every label.
        EntrenarError: as `EndpointTeacher.rows`.
    """
    log_p, correct = [], []
    total = math.ceil(len(tokens) / batch_size)
    for done, batch in enumerate(length_sorted_batches(tokens, collator, batch_size)):
        on_batch(done, total)
        told, labels_N = teacher.told(batch), teacher.counting.labels(batch)
        there_N = labels_N != IGNORED
        log_p.append(told.label_N[there_N])
        correct.append((told.rows.tokens_NK[:, 0] == labels_N)[there_N])
    on_batch(total, total)
    log_p_N = torch.cat(log_p)
    if log_p_N.isnan().any():
        raise ModelError(
            f"{teacher.endpoint}: it does not tell the log-probability of every label, so it cannot be scored",
            "take a newer server: llama.cpp's and vLLM's tell it",
        )
    return score_labels(log_p_N, torch.cat(correct), len(tokens), predicts=True)
