"""A teacher behind an endpoint, which is asked for the rows of every batch, and remembers nothing.

Shapes: B rows, T positions, N of them that count, K of the likeliest tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.losses.sparse import TopKRows
from entrenar_core.models.rows import Counting
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.kinds import TopK, token_dtype
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.endpoint.answers import Answer, Question
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.promises import of_endpoint
from entrenar_core.teachers.signals import Signals
from entrenar_core.teachers.source import Said, TeacherSays

BETAS = (1.0,)
"""A server tells what the other tokens have together at temperature 1, and from that nothing follows for others."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of the rows of a batch. `label_N` is the log-probability of each label, NaN where not told."""

    rows: TopKRows
    label_N: Tensor


class EndpointTeacher:
    """A causal language model behind an endpoint, which reads the student's tokens."""

    def __init__(self, endpoint: Endpoint, counting: Counting) -> None:
        assert counting.shifted, "checked: servers tell the next token"
        self.endpoint, self.counting = endpoint, counting

    @property
    def signals(self) -> Signals:
        """What it can say."""
        return of_endpoint(self.endpoint.k)

    def rows(self, batch: Batch) -> TopKRows:
        """What it says of the positions that count, on the device of the batch.

        Raises:
            EntrenarError: of the kind that fits, as `Endpoint.answers`.
        """
        return self.told(batch).rows

    def told(self, batch: Batch) -> Told:
        """The same, with the log-probabilities of the labels."""
        answers = [answer for _, answer in self.endpoint.answers(questions_of(batch))]
        device = batch.input_ids_BT.device

        def of(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(answer, name) for answer in answers])).to(device)

        rest_NJ = of("log_rest_N").unsqueeze(-1)
        rows = TopKRows(of("tokens_NK"), of("log_p_NK"), rest_NJ, BETAS, self.endpoint.vocabulary)
        return Told(rows, of("label_N"))

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training, where nothing can be wanted of its layers."""
        assert not wants.anything, "it has none"
        return lambda batch: Said(self.rows(batch))


def questions_of(batch: Batch) -> Iterator[Question]:
    """What to ask for the rows of a batch of a language model, in their order; nothing where nothing counts."""
    if batch.packed is not None:
        batch = batch.of(range(len(batch.rows_B)))
    ids_BT, real_BT = batch.input_ids_BT.cpu().numpy(), batch.attention_mask_BT.cpu().numpy().astype(bool)
    counts_BT, rows_B = batch.targets.cpu().numpy(), batch.rows_B.tolist()
    for row, number in enumerate(rows_B):
        real_T = real_BT[row]
        places = np.flatnonzero(counts_BT[row][real_T]) - 1  # a token that counts is predicted by the one before it
        yield Question(tuple(ids_BT[row][real_T].tolist()), tuple(places.tolist()), f"row {number}")


def kind_of(endpoint: Endpoint) -> TopK:
    """How a cache keeps what a server says: for temperature 1 alone."""
    return TopK(endpoint.k, lowest=1.0, highest=1.0, vocabulary=endpoint.vocabulary)


def arrays_of(answer: Answer, vocabulary: int) -> Arrays:
    """What a server says of a row, as `TopK.kept` gives what a model here says.

    `label` is exact where the server tells it, which `prompt_logprobs`, `echo` and llama.cpp do; else that of one of
    the likeliest, else NaN.
    """
    return {
        "tokens": answer.tokens_NK.astype(token_dtype(vocabulary)),
        "log_p": np.maximum(answer.log_p_NK, np.finfo(np.float16).min).astype(np.float16),
        "rest": answer.log_rest_N[:, None].astype(np.float32),
        "label": answer.label_N.astype(np.float32),
    }
