"""The model that a GGUF was made of, as transformers runs it: predictions, vectors, and what noise does to it.

Shapes: P positions, V vocabulary, N rows, H width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from entrenar_core.artifact import ModelArtifact
from entrenar_core.losses.pooling import Pool
from entrenar_core.models.calling import hidden_of, logits_of
from entrenar_core.models.quiet import explaining
from entrenar_core.models.sentences import vectors_of
from entrenar_core.verification.asking import Told
from entrenar_core.verification.comparing import Cells, cells_of, joined
from entrenar_core.verification.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AT_ONCE = 16
"""Positions of which the whole distribution is in memory, in 64 bits."""


@contextmanager
def running(artifact: ModelArtifact) -> Iterator[None]:
    """A model that could be loaded may have settings that it does not run with.

    Raises:
        ModelError: it does not, and why.
    """
    with explaining("model", artifact.reference, "correct its config.json", "run"), torch.no_grad():
        yield


def cells(model: PreTrainedModel, rows: Sequence[Row], told: Sequence[Told]) -> Cells:
    """What the model predicts at all places of the rows, in the cells that are told of them."""
    return joined([part for row, said in zip(rows, told, strict=True) for part in _of_row(model, row, said)])


def _of_row(model: PreTrainedModel, row: Row, told: Told) -> Iterator[Cells]:
    import numpy as np

    ids_BT = torch.tensor([row.ids])
    logits_PV = logits_of(model, ids_BT, torch.ones_like(ids_BT))[0, list(row.places)]
    labels_P = np.array([row.ids[place + 1] for place in row.places])
    for start in range(0, len(row.places), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        log_p_PV = logits_PV[some].double().log_softmax(-1).numpy()
        said = Told(told.tokens_PK[some], told.log_p_PK[some], told.label_P[some], told.is_whole)
        yield cells_of(log_p_PV, said, labels_P[some])


def vectors(model: PreTrainedModel, rows: Sequence[Row], pool: Pool | None) -> "list[NDArray[np.float64]]":
    """Of each row the vector, (1, H), or without pooling those of its tokens."""
    found = []
    for row in rows:
        ids_BT = torch.tensor([row.ids])
        mask_BT = torch.ones_like(ids_BT)
        made = hidden_of(model, ids_BT, mask_BT)[0] if pool is None else vectors_of(model, ids_BT, mask_BT, pool)
        found.append(made.double().numpy())
    return found


def class_logits(model: PreTrainedModel, rows: Sequence[Row]) -> "list[NDArray[np.float64]]":
    """Of each row the logits of its classes, (1, C)."""
    inputs = (torch.tensor([row.ids]) for row in rows)
    return [logits_of(model, ids_BT, torch.ones_like(ids_BT)).double().numpy() for ids_BT in inputs]


@torch.no_grad()
def add_noise(model: PreTrainedModel, share: float, *, seed: int = 0) -> None:
    """Adds Gaussian noise to every matrix, as large as this share of the root mean square of each of its rows: what
    quantising it does, but for how its errors lie.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim >= 2:
            size_O1 = weight.float().square().mean(-1, keepdim=True).sqrt()
            weight += share * size_O1 * torch.randn(weight.shape, generator=generator)
