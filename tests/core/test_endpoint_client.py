"""A server that fails for a while is asked again, one that is wrong is not; and no one else learns the key."""

import itertools
import logging
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrenar_core.errors import AccessError, EntrenarError, FetchError, Interrupted, ModelError, UsageError
from entrenar_core.teachers.endpoint.answers import Answer, Question
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.client import Client, api_key
from entrenar_core.teachers.endpoint.connecting import connect
from entrenar_core.teachers.endpoint.failures import Passing, after, refusal, shown
from entrenar_core.teachers.endpoint.settings import EndpointSettings
from telling_server import MODEL, Behaviour, Fault, TellingServer
from tiny_models import tiny_llama

KEY = "sk-secret-0123456789"
ROW = Question(tuple(range(5, 25)), tuple(range(19)), "row 3")


@pytest.fixture(scope="module")
def tokenizer_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, TellingServer]]:
    folder = tiny_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with TellingServer(AutoModelForCausalLM.from_pretrained(folder), tokenizer) as server:
        yield tokenizer, server


@pytest.fixture
def server(tokenizer_and_server: tuple[Any, TellingServer]) -> TellingServer:
    found = tokenizer_and_server[1]
    found.behaviour = Behaviour()
    found.requests.clear()
    return found


@pytest.fixture
def connected(tokenizer_and_server: tuple[Any, TellingServer], server: TellingServer) -> Callable[..., Endpoint]:
    tokenizer, _ = tokenizer_and_server

    def make(on_note: Any = lambda _: None, stopped: Any = lambda: False, **settings: Any) -> Endpoint:
        settings = {"model": MODEL, "top_logprobs": 5, "timeout_s": 1.0, "patience_s": 10.0} | settings
        given = EndpointSettings(settings.pop("url", server.url), **settings)
        return connect(given, tokenizer, len(tokenizer), on_note=on_note, stopped=stopped)

    return make


def same(one: Answer, other: Answer) -> bool:
    return bool((one.tokens_NK == other.tokens_NK).all() and (one.log_p_NK == other.log_p_NK).all())


# ── What may pass ──

PASSING: list[Fault] = [
    (429, {"Retry-After": "1"}),
    (429, {}),
    (500, {}),
    (502, {}),
    (503, {"Retry-After": "soon"}),
    (408, {}),
    "cut",
    "reset",
    "no json",
    "hang",
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_what_passes_is_asked_again(server: TellingServer, connected: Callable[..., Endpoint], fault: Fault) -> None:
    notes: list[str] = []
    endpoint = connected(notes.append)
    expected = endpoint.ask(ROW)
    server.requests.clear()
    server.behaviour.faults = deque([fault, fault])
    began = time.monotonic()
    assert same(endpoint.ask(ROW), expected)
    took = time.monotonic() - began
    assert len(server.completions()) == 3
    assert took > (2.0 if fault == (429, {"Retry-After": "1"}) else 0.7), "it waits, and longer the second time"
    assert len(notes) == 2
    assert "fails" in notes[0]
    assert notes[1] == f"{server.url} answers again"


def test_rows_keep_their_order_while_some_fail(server: TellingServer, connected: Callable[..., Endpoint]) -> None:
    notes: list[str] = []
    endpoint = connected(notes.append, concurrency=3)
    rows = [Question(tuple(range(5, 12 + n)), (0, n + 3), f"row {n}") for n in range(8)]
    expected = [endpoint.ask(row) for row in rows]
    server.behaviour.faults = deque([(500, {}), "reset", (503, {}), "cut"])
    found = list(endpoint.answers(rows))
    assert [row for row, _ in found] == rows
    assert all(same(answer, one) for (_, answer), one in zip(found, expected, strict=True))
    assert sum("fails" in note for note in notes) in (1, 2), "one note for all that fails at once"


def test_one_that_stays_away_is_told_with_what_to_do(server: TellingServer, connected: Callable[..., Endpoint]) -> None:
    endpoint = connected(patience_s=1.5)
    server.behaviour.faults = deque([(503, {})] * 50)
    began = time.monotonic()
    with pytest.raises(FetchError) as caught:
        endpoint.ask(ROW)
    assert time.monotonic() - began < 3
    assert caught.value.message.startswith(f"{server.url}: row 3: it has failed for ")
    assert "status 503, it is unwell" in caught.value.message
    assert "give the same command again" in str(caught.value.hint)
    assert "whole shards" in str(caught.value.hint)


def test_a_wait_longer_than_patience_is_not_begun(server: TellingServer, connected: Callable[..., Endpoint]) -> None:
    endpoint = connected(patience_s=30.0)
    server.behaviour.faults = deque([(429, {"Retry-After": "3600"})])
    began = time.monotonic()
    with pytest.raises(FetchError, match="asks to wait 3600 s"):
        endpoint.ask(ROW)
    assert time.monotonic() - began < 1


def test_an_address_where_nothing_answers_is_soon_told(connected: Callable[..., Endpoint], monkeypatch: Any) -> None:
    monkeypatch.setattr("entrenar_core.teachers.endpoint.client.FIRST_PATIENCE_S", 0.5)
    began = time.monotonic()
    with pytest.raises(FetchError, match="cannot be reached: the connection failed") as caught:
        connected(url="http://127.0.0.1:9/v1", patience_s=300.0)
    assert time.monotonic() - began < 3
    assert "check its address" in str(caught.value.hint)


@pytest.mark.parametrize("many", [False, True])
def test_one_that_asks_to_stop_does_not_wait(
    server: TellingServer, connected: Callable[..., Endpoint], many: bool
) -> None:
    stop = threading.Event()
    endpoint = connected(stopped=stop.is_set, patience_s=300.0)
    server.behaviour.faults = deque([(503, {"Retry-After": "60"})] * 9)
    threading.Timer(0.4, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped while"):
        list(endpoint.answers([ROW] * 5)) if many else endpoint.ask(ROW)
    assert time.monotonic() - began < 2


def test_closing_ends_waiting(server: TellingServer, connected: Callable[..., Endpoint]) -> None:
    endpoint = connected(patience_s=300.0)
    server.behaviour.faults = deque([(503, {"Retry-After": "60"})])
    threading.Timer(0.3, endpoint.close).start()
    with pytest.raises(Interrupted):
        endpoint.ask(ROW)


def test_delays_grow_and_differ() -> None:
    client = Client(EndpointSettings("http://127.0.0.1:1/v1", "m"))
    delays = [[client._delay(Passing("x"), attempt) for _ in range(20)] for attempt in range(1, 12)]
    for attempt, some in enumerate(delays):
        longest = min(0.5 * 2**attempt, 30.0)
        assert all(longest / 2 <= delay <= longest for delay in some)
        assert len(set(some)) > 10, "not all clients at once"
    client.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 12 ", 12.0),
        ("9" * 40, 999_999_999.0),
        ("-5", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_when_to_ask_again(header: str | None, seconds: float | None) -> None:
    assert after(header) == seconds


def test_when_to_ask_again_as_a_date() -> None:
    found = after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert found is not None
    assert 85 < found <= 90


# ── What does not pass ──


def spoilt(value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Of the third position, another log-probability of the token that was sent."""

    def spoil(answer: dict[str, Any]) -> dict[str, Any]:
        entry = next(iter(answer["choices"][0]["prompt_logprobs"][3].values()))
        entry["logprob"] = value
        return answer

    return spoil


def without_a_position(answer: dict[str, Any]) -> dict[str, Any]:
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


def of_other_tokens(answer: dict[str, Any]) -> dict[str, Any]:
    told = answer["choices"][0]["prompt_logprobs"]
    told[3] = {str(int(name) + 320): entry for name, entry in told[3].items()}
    return answer


def with_an_id_beyond(answer: dict[str, Any]) -> dict[str, Any]:
    answer["choices"][0]["prompt_logprobs"][3]["320"] = {"logprob": -1e-3}
    return answer


def with_a_name(answer: dict[str, Any]) -> dict[str, Any]:
    answer["choices"][0]["prompt_logprobs"][3][" the"] = {"logprob": -1.0}
    return answer


def likelier_than_all(answer: dict[str, Any]) -> dict[str, Any]:
    for entry in answer["choices"][0]["prompt_logprobs"][3].values():
        entry["logprob"] = -0.1
    return answer


WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (spoilt(float("nan")), "the answer holds NaN, which is no number"),
    (spoilt(float("-inf")), "the answer holds -Infinity"),
    (spoilt(1.5), "row 3, after 3 tokens: '1.5' is no log-probability"),
    (spoilt("-1"), "row 3, after 3 tokens: '-1' is no log-probability"),
    (spoilt(None), "row 3, after 3 tokens: 'None' is no log-probability"),
    (without_a_position, "of 20 tokens, `prompt_logprobs` tells 19 positions"),
    (of_other_tokens, "tells nothing of token 8, which was sent"),
    (with_an_id_beyond, "'320' is no id of a token: the vocabulary has 320"),
    (with_a_name, "' the' is no id with a log-probability"),
    (likelier_than_all, "add up to 4.5"),
    (lambda _: [], "the answer is no completion"),
    (lambda _: {"choices": [1, 2]}, "the answer is no completion"),
    (lambda _: b"[" * 100_000, "the answer is cut off, or no JSON"),
    (lambda _: b" " * 2_000_000, "the answer is longer than"),
    (lambda _: b"<!doctype html><title>Welcome</title>", "the answer is a page of HTML"),
    (lambda _: b'{"choices": ' + b"1" * 5000 + b"}", "the answer is cut off, or no JSON"),
    (lambda _: b"\xff\xfe{}", "the answer is cut off, or no JSON"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_and_by_whom(
    server: TellingServer, connected: Callable[..., Endpoint], spoil: Any, message: str
) -> None:
    endpoint = connected(patience_s=0.2)
    server.behaviour.spoil = spoil
    with pytest.raises(EntrenarError) as caught:
        endpoint.ask(ROW)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{server.url}: row 3")
    assert caught.value.hint


@pytest.mark.parametrize("status", [400, 404, 413, 422, 501])
def test_a_refusal_is_not_repeated(server: TellingServer, connected: Callable[..., Endpoint], status: int) -> None:
    endpoint = connected()
    server.requests.clear()
    server.behaviour.faults = deque([(status, {})])
    with pytest.raises(ModelError, match=f"row 3: status {status}, it is unwell"):
        endpoint.ask(ROW)
    assert len(server.completions()) == 1


def test_what_was_compressed_is_not_unpacked(server: TellingServer, connected: Callable[..., Endpoint]) -> None:
    endpoint = connected()
    assert server.requests[-1].headers["Accept-Encoding"] == "identity"
    server.behaviour.faults = deque([(200, {"Content-Encoding": "gzip"})])
    with pytest.raises(ModelError, match="compressed"):
        endpoint.ask(ROW)


def test_what_a_server_says_is_shown_on_a_line_of_its_own_length() -> None:
    assert shown("a\n\x1b[31mb\t c", None) == "a [31mb c"
    assert len(shown("x" * 5000, None)) == 300
    assert refusal(b'{"error": {"message": "no"}}') == "no"
    assert refusal(b'{"detail": [{"loc": 1}]}') == '[{"loc": 1}]'
    assert refusal(b"<html>") == ""
    assert refusal(b"plain \xff") == "plain \ufffd"


# ── Keys and addresses ──


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return monkeypatch


def test_the_key_is_sent_and_told_to_no_one(
    server: TellingServer,
    connected: Callable[..., Endpoint],
    no_keys: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server.behaviour.key = KEY
    with pytest.raises(AccessError, match="status 401, None is not a key") as missing:
        connected()
    assert "no key was sent: set OPENAI_API_KEY" in str(missing.value.hint)
    no_keys.setenv("TEACHER_KEY", KEY[::-1])
    with pytest.raises(AccessError, match=r"Bearer \*\*\* is not a key") as wrong:
        connected(api_key_env="TEACHER_KEY")
    assert "the key in use is not accepted: set TEACHER_KEY" in str(wrong.value.hint)
    no_keys.setenv("TEACHER_KEY", f" {KEY}\n")
    endpoint = connected(api_key_env="TEACHER_KEY")
    assert server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"
    everything = [caplog.text, *capsys.readouterr(), repr(endpoint), str(endpoint), repr(endpoint.client.settings)]
    everything += [f"{error.value!r} {error.value.hint}" for error in (missing, wrong)]
    assert not [text for text in everything if KEY in text or KEY[::-1] in text]


def test_a_usual_key_goes_to_this_machine_or_over_https(no_keys: pytest.MonkeyPatch) -> None:
    assert api_key(EndpointSettings("http://127.0.0.1/v1", "m")) is None
    no_keys.setenv("OPENAI_API_KEY", KEY)
    for url, key in {
        "http://127.0.0.1:8080/v1": KEY,
        "http://localhost/v1": KEY,
        "http://[::1]:80/v1": KEY,
        "https://example.org/v1": KEY,
        "http://example.org/v1": None,
        "http://127.0.0.1.example.org/v1": None,
    }.items():
        assert api_key(EndpointSettings(url, "m")) == key
    assert api_key(EndpointSettings("http://example.org/v1", "m", api_key_env="OPENAI_API_KEY")) == KEY


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "sk-\x07", "sk-ä"])
def test_a_key_that_cannot_be_one_is_told_without_it(no_keys: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        no_keys.setenv("TEACHER_KEY", value)
    with pytest.raises(AccessError) as caught:
        api_key(EndpointSettings("http://127.0.0.1/v1", "m", api_key_env="TEACHER_KEY"))
    assert "TEACHER_KEY" in caught.value.message
    assert not value or not value.strip() or value not in f"{caught.value} {caught.value.hint}"


def test_no_redirect_is_followed(
    server: TellingServer, connected: Callable[..., Endpoint], no_keys: pytest.MonkeyPatch
) -> None:
    no_keys.setenv("OPENAI_API_KEY", KEY)
    server.behaviour.redirect_to = "http://elsewhere.example/v1/models?token=abc"
    with pytest.raises(FetchError) as caught:
        connected()
    assert caught.value.message == f"{server.url} leads to http://elsewhere.example/v1/models"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8080",
        "ftp://example.org/v1",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://host/v1?key=1",
        "http://host/v1#x",
        "http://ho st/v1",
        "http://host/v1\n",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        EndpointSettings(url, "m")
    assert "http://127.0.0.1:8080/v1" in str(caught.value.hint)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        EndpointSettings("http://user:hunter2@host/v1", "m")
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint}"


@pytest.mark.parametrize("key", ["sk-proj-0123456789", "0123456789abcdef", "a" * 60, "my key", "ключ"])
def test_a_key_in_place_of_its_name_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="no name of an environment variable") as refused:
        EndpointSettings("http://127.0.0.1/v1", "m", api_key_env=key)
    assert key not in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize("name", ["top_logprobs", "concurrency", "timeout_s", "patience_s"])
def test_numbers_are_positive(name: str) -> None:
    values: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=name):
        EndpointSettings("http://host/v1", "m", **values)


def test_what_follows_the_host_is_kept() -> None:
    settings = EndpointSettings("https://gateway.example/llm/v1/", "m")
    assert (settings.url, settings.root) == ("https://gateway.example/llm/v1", "https://gateway.example/llm")
    assert EndpointSettings("https://gateway.example/llm", "m").root == "https://gateway.example/llm"


def test_draws_do_not_depend_on_how_often_a_server_failed(
    server: TellingServer, connected: Callable[..., Endpoint]
) -> None:
    endpoint = connected()
    before, torch_before = random.getstate(), torch.get_rng_state()
    server.behaviour.faults = deque(itertools.repeat((500, {}), 1))
    endpoint.ask(ROW)
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_nothing_here_needs_torch_to_check_a_configuration() -> None:
    program = (
        "import sys; from entrenar_core.teachers import promises, signals; from entrenar_core.teachers.endpoint import "
        "settings; "
        "print([name for name in ('torch', 'transformers', 'httpx2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
