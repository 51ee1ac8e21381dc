"""What llama.cpp's server says of texts and tokens: ids, log-probabilities of the next token, vectors.

Its log-probabilities are those of the model before any sampler: the softmax of all logits in 32 bits, and its
logarithm, written with all its digits. It tells the likeliest tokens, and that of the token that it takes; a bias,
which comes after them, has it take the one that really follows. Where that ends amid a character, it keeps back what it
says: then it is made to take one that is text by itself, and asked for more of the likeliest until that is among them.

Source: https://github.com/ggml-org/llama.cpp, tools/server: README.md for the requests, server-context.cpp
(`populate_token_probs`) and server-common.cpp (`get_token_probabilities`) for what is told.

Shapes: P positions, K of the likeliest tokens, R vectors, H width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entrenar_core.verification.rows import Row
    from entrenar_core.verification.server import LlamaServer

TOLD = 2048
"""How many of the likeliest tokens are asked for: all of a small vocabulary. All of SmolLM2's 49,152 take 0.35 s a
position on two cores, most of it JSON; so many take 0.08 s, and the others have 2 % of the probability."""
_ALL = 2**30
_BIAS = 1000.0
_LEAST_LOG_P = -104.0
"""Below the logarithm of the smallest 32-bit number: what is told of a probability that is rounded to zero."""
_SETTINGS: Mapping[str, Any] = {
    "n_predict": 1,
    "cache_prompt": True,
    "id_slot": 0,
    "samplers": ["temperature"],
    "temperature": 1.0,
    "seed": 0,
    "response_fields": ["completion_probabilities", "tokens_evaluated"],
}


@dataclass(frozen=True, slots=True)
class Told:
    """What llama.cpp says of the next token after some prefixes: the likeliest tokens, the likeliest first, with their
    log-probabilities, and that of the token that really follows. `is_whole`: those are all tokens.
    """

    tokens_PK: "NDArray[np.int64]"
    log_p_PK: "NDArray[np.float64]"
    label_P: "NDArray[np.float64]"
    is_whole: bool


def token_ids(server: "LlamaServer", text: str, *, special: bool) -> tuple[int, ...]:
    """The ids of a text; `special`: with those that a text begins and ends with."""
    body = {"content": text, "add_special": special, "parse_special": True}
    return tuple(server.post("/tokenize", body)["tokens"])


def predictions(server: "LlamaServer", row: "Row", on_position: Callable[[], None] = lambda: None) -> Told:
    """What it says at all places of a row.

    Raises:
        ModelError: the server fails, or what it computes are no numbers.
    """
    import numpy as np

    tokens, log_p, labels, count = [], [], [], 0
    for place in row.places:
        entries, label = _said(server, row.ids, place)
        if label is None or any(entry["logprob"] is None for entry in entries):
            raise _no_numbers(server, f"after {place + 1} tokens a log-probability is NaN")
        count = len(entries)
        tokens.append([entry["id"] for entry in entries[:TOLD]])
        log_p.append([entry["logprob"] for entry in entries[:TOLD]])
        labels.append(label)
        on_position()
    log_p_PK, label_P = (np.clip(np.array(values, dtype=np.float64), _LEAST_LOG_P, 0.0) for values in (log_p, labels))
    return Told(np.array(tokens, dtype=np.int64), log_p_PK, label_P, count < TOLD)


def _said(server: "LlamaServer", ids: tuple[int, ...], place: int) -> tuple[list[dict[str, Any]], float | None]:
    """The likeliest tokens, and the log-probability of the one that follows; None is what JSON has for NaN."""
    following = ids[place + 1]
    told = _asked(server, ids[: place + 1], TOLD, following)
    if told is not None and told["id"] == following:
        return told["top_logprobs"], told["logprob"]
    for count in (TOLD, _ALL):
        told = _asked(server, ids[: place + 1], count, _plain(server))
        found = {entry["id"]: entry["logprob"] for entry in told["top_logprobs"]} if told else {}
        if told and following in found:
            return told["top_logprobs"], found[following]
    raise ModelError(
        f"llama.cpp says nothing of token {following} from {server.file.name}, where the model's tokenizer has it",
        "check that the file has the whole vocabulary of the model",
    )


def _asked(server: "LlamaServer", prompt: tuple[int, ...], count: int, forced: int | None) -> dict[str, Any] | None:
    body = {**_SETTINGS, "prompt": list(prompt), "n_probs": count}
    if forced is not None:
        body["logit_bias"] = [[forced, _BIAS]]
    found = server.post("/completion", body)
    if found["tokens_evaluated"] != len(prompt):
        raise ModelError(
            f"llama.cpp reads {found['tokens_evaluated']} tokens from {server.file.name} where {len(prompt)} were sent",
            "verify with shorter rows",
        )
    told: list[dict[str, Any]] = found.get("completion_probabilities") or []
    return told[0] if told else None


def _plain(server: "LlamaServer") -> int | None:
    """A token that is text by itself."""
    return next(iter(reversed(token_ids(server, "a", special=False))), None)


def vectors(server: "LlamaServer", ids: tuple[int, ...], classes: int | None = None) -> "NDArray[np.float64]":
    """What an embedding model makes of a row of tokens, (R, H): one vector, or one a token where the file does not say
    how they are pooled. Of a classifier the server gives as many numbers as the model is wide, of which the first are
    the logits of its `classes`, and the others whatever lies behind them in memory.
    """
    import numpy as np

    found = server.post("/embedding", {"content": list(ids), "embd_normalize": -1})
    vectors_RH = np.atleast_2d(np.array(found[0]["embedding"], dtype=np.float64))[:, :classes]
    if not np.isfinite(vectors_RH).all():
        raise _no_numbers(server, "a vector holds NaN")
    return vectors_RH


def _no_numbers(server: "LlamaServer", what: str) -> ModelError:
    return ModelError(
        f"llama.cpp computes no numbers from {server.file.name}: {what}",
        "look for NaN in the weights, with `entrenar-inspect validate`",
    )
