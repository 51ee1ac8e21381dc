"""How far two distributions over the next token are apart, of which one is only told in part.

A distribution is kept in cells: the tokens that llama.cpp tells, the one that really follows, and all others together.
So what is kept of a position does not grow with the vocabulary, and two models are compared on the same cells. Joining
tokens never makes KL larger (the log-sum inequality), so it is a lower bound, and exact where every token is told.

Shapes: P positions, V vocabulary, K tokens that are told, C = K + 2 cells.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entrenar_core.verification.asking import Told

    Floats = NDArray[np.float64]

TOP = 10
"""How many of the original's likeliest tokens are looked at one by one."""
_LEAST = 1e-6
"""Probabilities of 32 bits that should add up to one miss it by about so much, which is no probability of the rest."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Log-probabilities of the cells of every position. `label_P` is that of the token that really follows, `top_P` the
    likeliest of all tokens.
    """

    log_p_PC: "Floats"
    label_P: "Floats"
    top_P: "NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Distances:
    """How far a model's predictions are from those of its original, over some positions, in nats.

    `kl_mean` and `kl_max` are of KL(original ‖ model). `agreement` is the share of positions where both prefer the same
    token. `difference_max` and `difference_mean` are of |Δ log p| over the tokens that really follow and, at each
    position, the `TOP` likeliest of the original among those that are told. `loss` is by how much the mean
    log-probability of the tokens that follow is lower, the logarithm of the ratio of perplexities; `loss_error` its
    standard error, as if positions did not depend on each other.
    """

    kl_mean: float
    kl_max: float
    agreement: float
    difference_mean: float
    difference_max: float
    loss: float
    loss_error: float


def told_cells(told: "Told", labels_P: "NDArray[np.int64]") -> Cells:
    """The cells of what llama.cpp says; the likeliest is the first that it tells."""
    import numpy as np

    among_P = (told.tokens_PK == labels_P[:, None]).any(-1)
    label_P = np.where(among_P, -np.inf, told.label_P)
    known_P = np.exp(told.log_p_PK).sum(-1) + np.exp(label_P)
    if told.is_whole:  # what they miss of one is rounding
        rest_P, log_all_P = np.full(len(labels_P), -np.inf), np.log(known_P)
    else:
        rest_P, log_all_P = np.log(np.maximum(1 - known_P, _LEAST)), np.zeros(len(labels_P))
    cells_PC = np.concatenate([told.log_p_PK, label_P[:, None], rest_P[:, None]], -1) - log_all_P[:, None]
    return Cells(cells_PC, told.label_P - log_all_P, told.tokens_PK[:, 0])


def cells_of(log_p_PV: "Floats", told: "Told", labels_P: "NDArray[np.int64]") -> Cells:
    """The same cells of a distribution that is wholly known; tokens that it lacks have no probability."""
    import numpy as np

    rows_P = np.arange(len(labels_P))
    vocabulary = max(log_p_PV.shape[1], int(told.tokens_PK.max()) + 1)
    padded_PV = np.full((len(log_p_PV), vocabulary), -np.inf)
    padded_PV[:, : log_p_PV.shape[1]] = log_p_PV
    label_P = padded_PV[rows_P, labels_P]
    cells_PK = np.take_along_axis(padded_PV, told.tokens_PK, -1)
    among_P = (told.tokens_PK == labels_P[:, None]).any(-1)
    np.put_along_axis(padded_PV, told.tokens_PK, -np.inf, -1)
    padded_PV[rows_P, labels_P] = -np.inf
    with np.errstate(divide="ignore"):
        rest_P = np.log(np.exp(padded_PV).sum(-1))
    cells_PC = np.concatenate([cells_PK, np.where(among_P, -np.inf, label_P)[:, None], rest_P[:, None]], -1)
    return Cells(cells_PC, label_P, log_p_PV.argmax(-1))


def joined(parts: "list[Cells]") -> Cells:
    """The positions of several, one after another."""
    import numpy as np

    return Cells(
        np.concatenate([part.log_p_PC for part in parts]),
        np.concatenate([part.label_P for part in parts]),
        np.concatenate([part.top_P for part in parts]),
    )


def distances(original: Cells, model: Cells) -> Distances:
    """How far a model is from its original, on the same cells of the same positions."""
    import numpy as np

    kl_P = kl(original.log_p_PC, model.log_p_PC)
    drop_P = original.label_P - model.label_P
    places_PT = np.argsort(-original.log_p_PC[:, :-1], -1, kind="stable")[:, :TOP]
    top_PT, other_PT = (np.take_along_axis(x.log_p_PC, places_PT, -1) for x in (original, model))
    there_PT = np.isfinite(top_PT) & np.isfinite(other_PT)
    differences = np.abs(np.concatenate([top_PT[there_PT] - other_PT[there_PT], drop_P]))
    return Distances(
        float(kl_P.mean()),
        float(kl_P.max()),
        float((original.top_P == model.top_P).mean()),
        float(differences.mean()),
        float(differences.max()),
        float(drop_P.mean()),
        float(drop_P.std(ddof=1) / np.sqrt(len(drop_P))) if len(drop_P) > 1 else 0.0,
    )


def kl(original_PC: "Floats", model_PC: "Floats") -> "Floats":
    """KL(original ‖ model) of each position, in nats: Σ_c p_c (log p_c − log q_c) over the cells that have any p_c.

    What only the model rules out counts with `_LEAST`, so the sum stays finite; what is below zero is rounding.
    """
    import numpy as np

    safe_PC = np.where(np.isneginf(model_PC), np.log(_LEAST), model_PC)
    with np.errstate(invalid="ignore"):
        terms_PC = np.where(np.isneginf(original_PC), 0.0, np.exp(original_PC) * (original_PC - safe_PC))
    found: Floats = np.maximum(terms_PC.sum(-1), 0.0)
    return found


def cosines(original_NH: "Floats", model_NH: "Floats") -> "Floats":
    """Between the vectors of two models, row by row; zero where one is zero."""
    import numpy as np

    norms_N = np.linalg.norm(original_NH, axis=-1) * np.linalg.norm(model_NH, axis=-1)
    found: Floats = (original_NH * model_NH).sum(-1) / np.where(norms_N == 0, 1.0, norms_N)
    return found


def log_softmax(logits_NC: "Floats") -> "Floats":
    """Log-probabilities of classes, row by row."""
    import numpy as np

    shifted_NC = logits_NC - logits_NC.max(-1, keepdims=True)
    found: Floats = shifted_NC - np.log(np.exp(shifted_NC).sum(-1, keepdims=True))
    return found
