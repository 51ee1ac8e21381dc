"""How servers tell log-probabilities of given tokens. All take a prompt of token ids at `/completions`.

- `prompt_logprobs`, of vLLM and what follows it: one request for a row; ids with log-probabilities at each position.
- `echo` with `logprobs`, of OpenAI's first models, where the server names tokens by id (`return_tokens_as_token_ids`).
- the next token, of llama.cpp, which tells nothing of a prompt: one request for each position, in one slot for a row,
  so that its prompt cache leaves one token to be read. The token that really follows is forced by a bias, since the
  server tells the log-probability of the token that it takes, as it was before the bias.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NoReturn, Protocol

from entrenar_core.teachers.endpoint.answers import Answer, Question, Said, answer_of
from entrenar_core.teachers.endpoint.client import Client

NEUTRAL: Mapping[str, Any] = {
    "stream": False,
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""Samplers off, by the names that servers have for them: the distribution is the model's."""
_ENTRY_BYTES = 1024
_BIAS = 1000.0
_WIDER = (1024,)
_ID = "token_id:"
_OTHER = "it is no server that entrenar knows: llama.cpp's and vLLM's are"


@dataclass(frozen=True, slots=True)
class Task:
    """Whom to ask, and for how many of the likeliest of how many tokens."""

    client: Client
    model: str
    k: int
    vocabulary: int

    @property
    def url(self) -> str:
        """For messages."""
        return self.client.settings.url

    def completion(self, ids: tuple[int, ...], about: str, limit: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of a completion of some tokens."""
        body = {**NEUTRAL, "model": self.model, "prompt": list(ids), **settings}
        found = self.client.post(f"{self.url}/completions", body, about=about, limit_bytes=2**20 + limit * _ENTRY_BYTES)
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            self.client.fail(about, "the answer is no completion", _OTHER)
        usage = found.get("usage")
        read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if read is not None and read != len(ids):
            self.client.fail(about, f"it read {read} tokens where {len(ids)} were sent", "serve it without a template")
        return choices[0]


class TellingProtocol(Protocol):
    """A way to ask."""

    @property
    def name(self) -> str:
        """For notes."""
        ...

    @property
    def room(self) -> int:
        """How many tokens the server needs beyond those of a row."""
        ...

    @property
    def task(self) -> Task:
        """Whom it asks."""
        ...

    def ask(self, question: Question, temperature: float = 1.0) -> Answer:
        """What a server says of a row; raises as `Client.post` and `answer_of`."""
        ...

    def texts(self, question: Question) -> Iterator[tuple[int, str]]:
        """Tokens with their texts, as the server spells them, where it does."""
        ...


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """One request for a row, by `prompt_logprobs`."""

    task: Task
    name: str = "one request for a row, by `prompt_logprobs`"
    room: int = 1

    def ask(self, question: Question, temperature: float = 1.0) -> Answer:
        """As `TellingProtocol.ask`."""
        task, told = self.task, self._told(question, temperature)
        said = (self._at(question, place, told[place + 1]) for place in question.places)
        return answer_of(question, said, task.k, task.vocabulary, task.url)

    def texts(self, question: Question) -> Iterator[tuple[int, str]]:
        """As `TellingProtocol.texts`: of the prompt, and of the likeliest."""
        for entries in self._told(question, 1.0)[1:]:
            for id_, entry in entries.items() if isinstance(entries, dict) else ():
                text = entry.get("decoded_token") if isinstance(entry, dict) else None
                if isinstance(text, str) and id_.isdecimal():
                    yield int(id_), text

    def _told(self, question: Question, temperature: float) -> list[Any]:
        ids, task = question.needed, self.task
        settings = {"max_tokens": 1, "prompt_logprobs": task.k, "temperature": temperature}
        choice = task.completion(ids, question.name, len(ids) * (task.k + 2), settings)
        told = choice.get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(ids):
            length = f"{len(told)} positions" if isinstance(told, list) else "nothing"
            task.client.fail(question.name, f"of {len(ids)} tokens, `prompt_logprobs` tells {length}", _OTHER)
        return told

    def _at(self, question: Question, place: int, entries: Any) -> Said:
        fail = self.task.client.fail
        if not isinstance(entries, dict):
            fail(question.about(place), "it tells nothing", _OTHER)
        found = {}
        for id_, entry in entries.items():
            if not isinstance(entry, dict) or not id_.isdecimal():
                fail(question.about(place), f"{id_[:40]!r} is no id with a log-probability", _OTHER)
            found[int(id_[:18])] = entry.get("logprob")
        following = question.ids[place + 1]
        if following not in found:
            fail(question.about(place), f"it tells nothing of token {following}, which was sent", _OTHER)
        return Said(list(found.items()), found[following])


@dataclass(frozen=True, slots=True)
class Echo:
    """One request for a row, by `echo` and `logprobs`."""

    task: Task
    name: str = "one request for a row, by `echo` and `logprobs`"
    room: int = 1

    def ask(self, question: Question, temperature: float = 1.0) -> Answer:
        """As `TellingProtocol.ask`."""
        ids, task = question.needed, self.task
        tokens, labels, tops = self._told(question, temperature, as_ids=True)
        if tokens != [f"{_ID}{id_}" for id_ in ids]:
            self._fail(question, f"tokens are echoed as {str(tokens[:2])[:80]}, and not by their ids")
        said = (Said(self._entries(question, tops[place + 1]), labels[place + 1]) for place in question.places)
        return answer_of(question, said, task.k, task.vocabulary, task.url)

    def texts(self, question: Question) -> Iterator[tuple[int, str]]:
        """As `TellingProtocol.texts`: of the prompt, echoed once more as it is read."""
        tokens, _, _ = self._told(question, 1.0, as_ids=False)
        return ((id_, text) for id_, text in zip(question.needed, tokens, strict=True) if isinstance(text, str))

    def _told(self, question: Question, temperature: float, *, as_ids: bool) -> list[list[Any]]:
        """Tokens, their log-probabilities, and the likeliest in their places; what was generated is left out."""
        ids, names = question.needed, ("tokens", "token_logprobs", "top_logprobs")
        settings = {"max_tokens": 1, "echo": True, "logprobs": self.task.k, "return_tokens_as_token_ids": as_ids}
        choice = self.task.completion(
            ids, question.name, len(ids) * (self.task.k + 2), settings | {"temperature": temperature}
        )
        told = choice.get("logprobs")
        lists = [told.get(name) for name in names] if isinstance(told, dict) else []
        whole = [values[: len(ids)] for values in lists if isinstance(values, list) and len(values) == len(ids) + 1]
        if len(whole) < len(names):
            self._fail(question, f"of {len(ids)} tokens, `echo` tells something else")
        return whole

    def _entries(self, question: Question, top: Any) -> list[tuple[int, Any]]:
        if not isinstance(top, dict) or not all(name.startswith(_ID) and name[len(_ID) :].isdecimal() for name in top):
            self._fail(question, "the likeliest tokens are not named by their ids")
        return [(int(name[len(_ID) :][:18]), value) for name, value in top.items()]

    def _fail(self, question: Question, message: str) -> NoReturn:
        self.task.client.fail(question.name, message, _OTHER)


@dataclass(frozen=True, slots=True)
class NextToken:
    """One request for each position, in one of the `slots` of the server, where it has some.

    `plain` is a token that is text by itself, where tokens can be forced. The one that follows is forced, which tells
    its log-probability. Where it ends amid a character, llama.cpp's keeps back what it says of it: then the plain one
    is forced, and the other looked for among as many of the likeliest as it takes.
    """

    task: Task
    slots: "SimpleQueue[int] | None" = None
    plain: int | None = None
    name: str = "one request for each position, by `logprobs` of the next token"
    room: int = 0

    def forcing(self, question: Question) -> "NextToken":
        """The same, which forces tokens; the plain one is the first that is taken in a row."""
        return replace(self, plain=self._told(question, question.places[-1], None, 1.0)["id"])

    def ask(self, question: Question, temperature: float = 1.0) -> Answer:
        """As `TellingProtocol.ask`."""
        slot = None if self.slots is None else self.slots.get()
        try:
            said = [self._said(question, place, slot, temperature) for place in question.places]
        finally:
            if self.slots is not None and slot is not None:
                self.slots.put(slot)
        return answer_of(question, said, self.task.k, self.task.vocabulary, self.task.url)

    def texts(self, question: Question) -> Iterator[tuple[int, str]]:
        """As `TellingProtocol.texts`: of the likeliest."""
        for place in question.places:
            for entry in self._told(question, place, None, 1.0, self.plain)["top_logprobs"]:
                if isinstance(entry.get("id"), int) and isinstance(entry.get("token"), str):
                    yield entry["id"], entry["token"]

    def _said(self, question: Question, place: int, slot: int | None, temperature: float) -> Said:
        if self.plain is None:
            return Said(_entries(self._told(question, place, slot, temperature)))
        following = question.ids[place + 1]
        told = self._asked(question, place, slot, temperature, following, self.task.k)
        if told is not None:
            if told.get("id") != following:
                message = f"token {following} was forced, and it took {told.get('id')}"
                self.task.client.fail(question.about(place), message, _OTHER)
            return Said(_entries(told), told.get("logprob"))
        for k in (self.task.k, *(k for k in _WIDER if self.task.k < k < self.task.vocabulary), self.task.vocabulary):
            entries = _entries(self._told(question, place, slot, temperature, self.plain, k))
            label = next((log_p for id_, log_p in entries if id_ == following), None)
            if label is not None:
                break
        return Said(entries[: self.task.k], label)

    def _told(
        self,
        question: Question,
        place: int,
        slot: int | None,
        temperature: float,
        forced: int | None = None,
        k: int | None = None,
    ) -> dict[str, Any]:
        told = self._asked(question, place, slot, temperature, forced, k or self.task.k)
        if told is None:
            self.task.client.fail(question.about(place), "it tells no log-probabilities with ids of tokens", _OTHER)
        return told

    def _asked(
        self, question: Question, place: int, slot: int | None, temperature: float, forced: int | None, k: int
    ) -> dict[str, Any] | None:
        """What is told of the next token: its id, its log-probability, and the likeliest; None where nothing is."""
        settings: dict[str, Any] = {
            "max_tokens": 1,
            "logprobs": k,
            "cache_prompt": True,
            "temperature": temperature,
            "samplers": ["temperature"],
            "seed": 0,
        }
        if slot is not None:
            settings["id_slot"] = slot
        if forced is not None:
            settings["logit_bias"] = [[forced, _BIAS]]
        about = question.about(place)
        told = self.task.completion(question.ids[: place + 1], about, k + 2, settings).get("logprobs")
        content = told.get("content") if isinstance(told, dict) else None
        if not content:
            return None
        first = content[0] if isinstance(content, list) and len(content) == 1 else None
        top = first.get("top_logprobs") if isinstance(first, dict) else None
        if not isinstance(top, list) or not all(isinstance(entry, dict) for entry in top):
            self.task.client.fail(about, "it tells no likeliest tokens with their ids", _OTHER)
        return first


def _entries(told: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(entry.get("id"), entry.get("logprob")) for entry in told["top_logprobs"]]
