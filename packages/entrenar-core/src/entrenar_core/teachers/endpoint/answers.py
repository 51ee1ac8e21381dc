"""What is asked of a row, and what came back, once it is known to be log-probabilities.

Shapes: N positions of a row that count, K of the likeliest tokens.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from entrenar_core.errors import ModelError

_SUM_SLACK = 1e-3
"""What probabilities may have above 1, of servers that round."""
_LOG_SLACK = 1e-2
"""By how much two statements of one log-probability may differ, in nats."""
NO_LABEL = math.nan


@dataclass(frozen=True, slots=True)
class Question:
    """A row to be asked for.

    `ids` are its tokens, without padding. `places` are the positions that count, ascending: at place t the row is read
    up to `ids[t]`, and what is told is how likely each token is to be `ids[t + 1]`. `name` is for messages.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    name: str

    @property
    def needed(self) -> tuple[int, ...]:
        """The tokens up to the last that is predicted."""
        return self.ids[: self.places[-1] + 2] if self.places else ()

    def about(self, place: int) -> str:
        """A position, for messages."""
        return f"{self.name}, after {place + 1} tokens"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of a row at temperature 1: the likeliest tokens of each position, the likeliest first.

    `log_rest_N` is the logarithm of the probability that all other tokens have together, −inf where they have none
    that can be told from rounding. `label_N` is the log-probability of the token that really follows: as the server
    says it, or of one of the likeliest, else NaN.
    """

    tokens_NK: np.ndarray
    log_p_NK: np.ndarray
    log_rest_N: np.ndarray
    label_N: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NK)


@dataclass(frozen=True, slots=True)
class Said:
    """What a server says at one place: tokens with log-probabilities, in any order, and that of the label, if told."""

    entries: Sequence[tuple[Any, Any]]
    label: Any = None


def nothing(k: int) -> Answer:
    """Of a row of which nothing counts."""
    return Answer(np.empty((0, k), "i8"), np.empty((0, k), "f4"), np.empty(0, "f4"), np.empty(0, "f4"))


def answer_of(question: Question, said: Iterable[Said], k: int, vocabulary: int, url: str) -> Answer:
    """Takes the likeliest `k` of what a server says at every place.

    Raises:
        ModelError: it says too little, or what no log-probabilities of tokens of this vocabulary can be.
    """
    tokens, log_p, labels = [], [], []
    for place, one in zip(question.places, said, strict=True):
        entries = sorted(one.entries, key=lambda entry: -_number(entry[1], question, place, url))[:k]
        if len(entries) < k:
            _fail(question, place, url, f"it tells {len(entries)} of the {k} likeliest tokens", "lower `top_logprobs`")
        tokens.append([entry[0] for entry in entries])
        log_p.append([float(entry[1]) for entry in entries])
        labels.append(NO_LABEL if one.label is None else _number(one.label, question, place, url))
    tokens_NK = _ids(tokens, k, vocabulary, question, url)
    log_p_NK = np.asarray(log_p, dtype=np.float64).reshape(len(tokens), k)
    label_N = np.asarray(labels, dtype=np.float64)
    total_N = _totals(log_p_NK, question, url)
    following_N = np.asarray([question.ids[place + 1] for place in question.places], dtype=np.int64)
    label_N = _labels(following_N, label_N, tokens_NK, log_p_NK, question, url)
    with np.errstate(divide="ignore"):
        log_rest_N = np.log1p(-np.minimum(total_N, 1.0))
    return Answer(
        tokens_NK, np.minimum(log_p_NK, 0.0).astype(np.float32), log_rest_N.astype(np.float32), label_N.astype("f4")
    )


def _number(value: Any, question: Question, place: int, url: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number > _LOG_SLACK:
        _fail(question, place, url, f"{str(value)[:40]!r} is no log-probability")
    return number


def _ids(tokens: list[list[Any]], k: int, vocabulary: int, question: Question, url: str) -> np.ndarray:
    for place, ids in zip(question.places, tokens, strict=True):
        for id_ in ids:
            if isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < vocabulary:
                message = f"{str(id_)[:40]!r} is no id of a token: the vocabulary has {vocabulary:,}"
                _fail(question, place, url, message, "serve the model that the student's tokenizer is of")
        if len(set(ids)) < len(ids):
            _fail(question, place, url, "it tells one token twice")
    return np.asarray(tokens, dtype=np.int64).reshape(len(tokens), k)


def _totals(log_p_NK: np.ndarray, question: Question, url: str) -> np.ndarray:
    total_N: np.ndarray = np.exp(log_p_NK).sum(-1)
    if (over := total_N > 1 + _SUM_SLACK).any():
        worst = int(over.argmax())
        _fail(question, question.places[worst], url, f"the probabilities add up to {total_N[worst]:.4f}")
    return total_N


def _labels(
    following_N: np.ndarray,
    label_N: np.ndarray,
    tokens_NK: np.ndarray,
    log_p_NK: np.ndarray,
    question: Question,
    url: str,
) -> np.ndarray:
    """Of the labels, as they are told, and as they are told among the likeliest."""
    same_NK = tokens_NK == following_N[:, None]
    among_N = np.where(same_NK.any(-1), np.where(same_NK, log_p_NK, -np.inf).max(-1, initial=-np.inf), np.nan)
    least_N = log_p_NK.min(-1, initial=0.0)
    differ_N = np.abs(label_N - among_N) > _LOG_SLACK  # false where one is not known
    hidden_N = np.isnan(among_N) & (label_N > least_N + _LOG_SLACK)
    if (wrong_N := differ_N | hidden_N).any():
        first = int(wrong_N.argmax())
        message = f"token {following_N[first]} has log-probability {label_N[first]:.4f}, and among the likeliest it "
        told = "is missing" if hidden_N[first] else f"has {among_N[first]:.4f}"
        _fail(question, question.places[first], url, message + told)
    return np.where(np.isnan(label_N), among_N, label_N)


def _fail(question: Question, place: int, url: str, message: str, hint: str | None = None) -> NoReturn:
    raise ModelError(f"{url}: {question.about(place)}: {message}", hint or "check the server, and what it serves")
