"""Finds out what a server can tell, once, before anything is built on it."""

from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar_core.errors import EntrenarError, ModelError, NotFoundError, UsageError
from entrenar_core.teachers.endpoint.alignment import compare_texts, compare_tokens, probe_questions
from entrenar_core.teachers.endpoint.answers import Answer, Question
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.client import Client
from entrenar_core.teachers.endpoint.failures import ABSENT, Refused
from entrenar_core.teachers.endpoint.protocols import Echo, NextToken, PromptLogprobs, Task, TellingProtocol
from entrenar_core.teachers.endpoint.settings import EndpointSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIES = 3
_PLACES = 6
"""Positions of the probe: servers that tell one position at a time are asked for each."""
_MOVED = 0.02
"""Nats by which log-probabilities change at another temperature, beyond what they change by themselves."""
_NEEDS = (
    "llama.cpp's and vLLM's servers do; of others (Ollama, LM Studio, TGI, SGLang, OpenAI) export what the teacher "
    "says to a cache, or serve the model with one of these"
)


def connect(
    settings: EndpointSettings,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
    *,
    on_note: Callable[[str], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Endpoint:
    """Asks a server for a few rows, in each way that it may know, and compares its tokens with a tokenizer's.

    Args:
        settings: which server.
        tokenizer: whose ids are sent: the student's.
        vocabulary: how many ids it has.
        on_note: is told when the server fails and when it answers again, from any thread.
        stopped: whether someone asked to stop.

    Raises:
        UsageError: as many of the likeliest tokens are asked for as there are.
        NotFoundError: it does not serve that model.
        ModelError: it does not tell what is needed, means other tokens by the ids, or tells log-probabilities as they
            are after its samplers.
        AccessError, FetchError, Interrupted: as `Client.post`.
    """
    if settings.top_logprobs >= vocabulary:
        raise UsageError(f"`top_logprobs` is {settings.top_logprobs}, of {vocabulary:,} tokens", "lower it")
    client = Client(settings, on_note=on_note, stopped=stopped)
    client.tries = _TRIES
    try:
        found = _connected(client, tokenizer, vocabulary)
        client.tries = None
        return found
    except BaseException:
        client.close()
        raise


def _connected(client: Client, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Endpoint:
    settings = client.settings
    listed = _listed_model(client)
    question = next(probe_questions(tokenizer))
    if (tokens := _fact(listed, "n_vocab")) is not None and tokens < vocabulary:
        client.fail(settings.model, f"it has {tokens:,} tokens, and the student {vocabulary:,}", "take another student")
    notes = compare_texts(client, tokenizer)
    protocol = _protocol(client, question, vocabulary, listed)
    protocol = _require_untouched(protocol, question)
    if notes is None:
        compare_tokens(protocol, tokenizer)
    slots = protocol.slots.qsize() if isinstance(protocol, NextToken) and protocol.slots is not None else None
    return Endpoint(
        client=client,
        protocol=protocol,
        concurrency=min(settings.concurrency, slots or settings.concurrency),
        context=_fact(listed, "max_model_len") or _fact(listed, "n_ctx"),
        tells_labels=not isinstance(protocol, NextToken) or protocol.plain is not None,
        notes=notes or (),
    )


def _listed_model(client: Client) -> Mapping[str, Any]:
    """What a server says of the model, nothing where it lists none.

    Raises:
        NotFoundError: it lists others.
    """
    url, model = client.settings.url, client.settings.model
    try:
        found = client.get(f"{url}/models", about="its models")
    except Refused:
        return {}
    data = found.get("data") if isinstance(found, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    for entry in entries:
        aliases = entry.get("aliases")
        names = {str(entry.get("id")), *(map(str, aliases) if isinstance(aliases, list) else ())}
        if model in names | {name.rpartition("/")[2] for name in names}:
            return entry
    if not entries:
        return {}
    served = ", ".join(str(entry.get("id"))[:80] for entry in entries[:5])
    raise NotFoundError(f"{url} does not serve {model}; it serves {served}", "give one of these as the model")


def _fact(listed: Mapping[str, Any], name: str) -> int | None:
    """A number that vLLM says of a model, or that llama.cpp says in its `meta`."""
    meta = listed.get("meta")
    value = listed.get(name, meta.get(name) if isinstance(meta, dict) else None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _protocol(client: Client, question: Question, vocabulary: int, listed: Mapping[str, Any]) -> TellingProtocol:
    """The first way to ask that works; of the others, what the server said to each."""
    settings = client.settings
    task = Task(client, settings.model, settings.top_logprobs, vocabulary)
    # llama.cpp's takes no notice of what it does not know, and would be asked in vain
    whole: list[TellingProtocol] = [] if listed.get("owned_by") == "llamacpp" else [PromptLogprobs(task), Echo(task)]
    troubles: list[EntrenarError] = []
    for protocol in [*whole, NextToken(task, _slots(client))]:
        try:
            protocol.ask(_few(question) if isinstance(protocol, NextToken) else question)
        except ModelError as error:
            troubles.append(error)
        else:
            return protocol
    said = "; ".join(dict.fromkeys(trouble.message.removeprefix(f"{settings.url}: ") for trouble in troubles))
    if all(isinstance(trouble, Refused) for trouble in troubles) and _takes_text(task):
        said = f"it takes texts alone, and no token ids ({said})"
    hints = {trouble.hint for trouble in troubles if trouble.hint and "top_logprobs" in trouble.hint}
    hint = f"{hints.pop()}, or raise the limit of the server (vLLM: --max-logprobs)" if hints else _NEEDS
    raise ModelError(f"{settings.url} does not tell log-probabilities of given tokens: {said}", hint)


def _takes_text(task: Task) -> bool:
    body = {"model": task.model, "prompt": "The quick brown fox", "max_tokens": 1}
    try:
        task.client.post(f"{task.url}/completions", body, about="a text")
    except Refused:
        return False
    return True


def _slots(client: Client) -> "SimpleQueue[int] | None":
    """Those of llama.cpp's server: each keeps what it read last."""
    try:
        found = client.get(f"{client.settings.root}/props", about="its slots")
    except ABSENT:
        return None
    total = found.get("total_slots") if isinstance(found, dict) else None
    if not isinstance(total, int) or isinstance(total, bool) or total < 1:
        return None
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(min(total, client.settings.concurrency)):
        slots.put(slot)
    return slots


def _few(question: Question) -> Question:
    return Question(question.ids, question.places[-_PLACES:], question.name)


def _require_untouched(protocol: TellingProtocol, question: Question) -> TellingProtocol:
    """Asks again at another temperature, which must change nothing, and for labels, where they must be asked for."""
    url, question = protocol.task.url, _few(question)
    first, again, warm = protocol.ask(question), protocol.ask(question), protocol.ask(question, 2.0)
    noise = _difference(first, again)
    if _difference(first, warm) > _MOVED + 5 * noise or _is_cut(first):
        raise ModelError(
            f"{url} tells log-probabilities as they are after its samplers, and not the model's own",
            "serve it with those before them (vLLM: --logprobs-mode raw_logprobs)",
        )
    if not isinstance(protocol, NextToken):
        return protocol
    try:
        forced = protocol.forcing(question)
        difference = _difference(first, forced.ask(question))
    except ModelError:
        return protocol
    return forced if difference <= _MOVED + 5 * noise else protocol


def _difference(one: Answer, other: Answer) -> float:
    """The largest, of the tokens that both tell; infinite where they are mostly others."""
    found: list[float] = []
    for ids, log_p, other_ids, other_log_p in zip(
        one.tokens_NK, one.log_p_NK, other.tokens_NK, other.log_p_NK, strict=True
    ):
        _, mine, theirs = np.intersect1d(ids, other_ids, return_indices=True)
        if len(mine) * 2 < len(ids):
            return np.inf
        found.append(float(np.abs(log_p[mine] - other_log_p[theirs]).max()))
    return max(found)


def _is_cut(answer: Answer) -> bool:
    """Whether the likeliest have everything, where the last of them still has a part: others were cut off."""
    nothing_left_N = answer.log_rest_N < np.log(1e-6)
    return bool((nothing_left_N & (answer.log_p_NK[:, -1] > np.log(1e-3))).all())
