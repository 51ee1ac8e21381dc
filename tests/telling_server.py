"""A small server on the loopback that tells log-probabilities of a real tiny model, in the forms of vLLM's server.

What it knows, what it tells and what goes wrong with it are switched on by a test. Requests are recorded.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import torch

Fault = Literal["cut", "reset", "hang", "no json", "html"] | tuple[int, Mapping[str, str]]
MODEL = "tiny"


@dataclass
class Seen:
    """What the server was asked."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Behaviour:
    """How a server differs from vLLM's.

    `forms` are those in which it tells log-probabilities: vLLM's two, and llama.cpp's of the next token; `pages` those
    beside `/completions`, and `hidden` how others answer. `most` is how many of the likeliest it tells; `touched`: as
    they are after the temperature and the bias. `faults` befall one completion each, in their order; `spoil` changes
    every completion.
    """

    forms: tuple[str, ...] = ("prompt_logprobs", "echo")
    pages: tuple[str, ...] = ("models", "tokenize", "detokenize")
    most: int = 20
    touched: bool = False
    texts_alone: bool = False
    text_of_tokens: bool = True
    delay_s: float = 0.0
    key: str | None = None
    redirect_to: str | None = None
    hidden: tuple[int, bytes, Mapping[str, str]] = (404, b'{"detail": "Not Found"}', {})
    faults: deque[Fault] = field(default_factory=deque)
    spoil: Callable[[dict[str, Any]], Any] = lambda answer: answer


class TellingServer:
    """Serves a model and a tokenizer; a context manager. `context` is how many tokens it reads."""

    def __init__(self, model: Any, tokenizer: Any, *, context: int = 128) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.behaviour = Behaviour()
        self.requests: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def start(self) -> None:
        """At the address where it was before."""
        self.behaviour.faults.clear()
        self._server = _Server(("127.0.0.1", self._server.server_port), type("Handler", (_Handler,), {"served": self}))
        self.__enter__()

    def stop(self) -> None:
        """Nothing answers any more, and what is under way breaks."""
        self.behaviour.faults.extend(["reset"] * 100)
        self.__exit__()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def completions(self) -> list[Any]:
        """The bodies of all completions that were asked for."""
        return [seen.body for seen in self.requests if seen.path == "/v1/completions"]

    def log_p(self, ids: list[int], body: Mapping[str, Any]) -> torch.Tensor:
        """Of every token after each of `ids`, (T, V)."""
        with torch.no_grad():
            logits_TV = self.model(torch.tensor([ids])).logits[0].float()
        if self.behaviour.touched:
            for id_, bias in body.get("logit_bias", ()):
                logits_TV[:, id_] += bias
            logits_TV = logits_TV / body["temperature"]
        return logits_TV.log_softmax(-1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is none
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    served: TellingServer
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer leaves whole, and at once

    def log_message(self, *_: Any) -> None:
        """Nothing to stderr."""

    def do_GET(self) -> None:
        behaviour = self.served.behaviour
        self.served.requests.append(Seen(self.path, dict(self.headers), None))
        if behaviour.redirect_to is not None:
            self._send(307, {}, {"Location": behaviour.redirect_to})
        elif behaviour.key is not None and self.headers.get("Authorization") != f"Bearer {behaviour.key}":
            self._refuse(401, f"{self.headers.get('Authorization')} is not a key of this server")
        elif self.path == "/v1/models" and "models" in behaviour.pages:
            entry = {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": self.served.context}
            self._send(200, {"object": "list", "data": [entry]})
        else:
            self._send(*behaviour.hidden)

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with served.lock:
            served.requests.append(Seen(self.path, dict(self.headers), body))
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
        try:
            page = self.path.removeprefix("/")
            if page == "v1/completions":
                self._complete(body)
            elif page not in served.behaviour.pages:
                self._send(*served.behaviour.hidden)
            elif page == "tokenize":
                ids = served.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
                self._send(200, {"count": len(ids), "max_model_len": served.context, "tokens": ids})
            else:
                self._send(200, {"prompt": served.tokenizer.decode(body["tokens"])})
        finally:
            with served.lock:
                served.at_once -= 1

    def _complete(self, body: Any) -> None:
        behaviour = self.served.behaviour
        time.sleep(behaviour.delay_s)
        with self.served.lock:
            fault = behaviour.faults.popleft() if behaviour.faults else None
        if isinstance(fault, tuple):
            self._send(fault[0], {"error": {"message": "it is unwell"}}, fault[1])
        elif fault is not None:
            self._fault(fault)
        elif body["model"] != MODEL:
            self._refuse(404, f"The model `{body['model']}` does not exist.")
        elif behaviour.texts_alone and not isinstance(body["prompt"], str):
            self._refuse(422, "prompt: Input should be a valid string")
        elif (asked := max(body.get("prompt_logprobs", 0), body.get("logprobs") or 0)) > behaviour.most:
            self._refuse(400, f"Requested sample logprobs of {asked}, which is greater than max allowed")
        else:
            self._send(200, behaviour.spoil(self._completion(body)))

    def _completion(self, body: Any) -> dict[str, Any]:
        forms, prompt = self.served.behaviour.forms, body["prompt"]
        ids = self.served.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        choice: dict[str, Any] = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
        log_p_TV = self.served.log_p(ids, body)
        if "prompt_logprobs" in body and "prompt_logprobs" in forms:
            choice["prompt_logprobs"] = [None, *self._of_prompt(ids, log_p_TV, body["prompt_logprobs"])]
        if body.get("echo") and "echo" in forms:
            choice["logprobs"] = self._echo(ids, log_p_TV, body)
        elif "logprobs" in body and "next" in forms:
            choice["logprobs"] = {"content": [self._next(log_p_TV[-1], body)]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice], "usage": usage}

    def _of_prompt(self, ids: list[int], log_p_TV: torch.Tensor, k: int) -> list[dict[str, Any]]:
        """The token that was sent comes first, then the likeliest, as vLLM orders them."""
        found = []
        for log_p_V, following in zip(log_p_TV[:-1], ids[1:], strict=True):
            top = log_p_V.topk(k).indices.tolist()
            ranks = {following: int((log_p_V > log_p_V[following]).sum()) + 1} | {
                id_: place + 1 for place, id_ in enumerate(top)
            }
            found.append({str(id_): self._entry(id_, log_p_V, rank) for id_, rank in ranks.items()})
        return found

    def _entry(self, id_: int, log_p_V: torch.Tensor, rank: int) -> dict[str, Any]:
        entry = {"logprob": float(log_p_V[id_]), "rank": rank}
        return entry | ({"decoded_token": self._text(id_)} if self.served.behaviour.text_of_tokens else {})

    def _echo(self, ids: list[int], log_p_TV: torch.Tensor, body: Any) -> dict[str, Any]:
        def name(id_: int) -> str:
            return f"token_id:{id_}" if body.get("return_tokens_as_token_ids") else self._text(id_)

        entries = self._of_prompt(ids, log_p_TV, body["logprobs"])
        taken = int(log_p_TV[-1].argmax())
        last = self._of_prompt([ids[-1], taken], log_p_TV[-1:].repeat(2, 1), body["logprobs"])
        tops = [{name(int(id_)): entry["logprob"] for id_, entry in one.items()} for one in (*entries, *last)]
        labels = [one[str(id_)]["logprob"] for one, id_ in zip((*entries, *last), (*ids[1:], taken), strict=True)]
        tokens = [name(id_) for id_ in (*ids, taken)]
        return {"tokens": tokens, "token_logprobs": [None, *labels], "top_logprobs": [None, *tops], "text_offset": []}

    def _next(self, log_p_V: torch.Tensor, body: Any) -> dict[str, Any]:
        """As llama.cpp's, which takes what is forced, and tells how likely it was before."""
        forced = [id_ for id_, _ in body.get("logit_bias", ())]
        taken = forced[0] if forced else int(log_p_V.argmax())
        top = [
            {"id": id_, "token": self._text(id_), "logprob": float(log_p_V[id_])}
            for id_ in log_p_V.topk(body["logprobs"]).indices.tolist()
        ]
        return {"id": taken, "token": self._text(taken), "logprob": float(log_p_V[taken]), "top_logprobs": top}

    def _text(self, id_: int) -> str:
        return str(self.served.tokenizer.decode([id_]))

    def _fault(self, fault: str) -> None:
        if fault == "hang":
            time.sleep(2.0)
        if fault in ("hang", "reset"):
            self.close_connection = True
            return
        text = {"cut": b'{"choices": [', "no json": b'{"choices": [', "html": b"<html>Welcome</html>"}[fault]
        self.send_response(200)
        self.send_header("Content-Length", str(len(text) + (1000 if fault == "cut" else 0)))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = True

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def _send(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def biased(answer: dict[str, Any]) -> dict[str, Any]:
    """As a server that tells log-probabilities after its bias, and so those of forced tokens wrong."""
    told = (answer["choices"][0]["logprobs"] or {"content": [None]})["content"][0]
    if told and told["id"] != told["top_logprobs"][0]["id"]:
        told["logprob"] = 0.0
    return answer
