"""A server that tells log-probabilities in vLLM's forms gives what its model gives when it is loaded here."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrenar_core.data.collating import Batch, Collator
from entrenar_core.errors import EntrenarError, ModelError, NotFoundError, UsageError
from entrenar_core.losses import DIVERGENCES, divergence_from
from entrenar_core.losses.sparse import TopKRows
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.keys import keys_of
from entrenar_core.teachers.cache.kinds import TaughtRow
from entrenar_core.teachers.cache.shards import write_shard
from entrenar_core.teachers.cache.store import Store
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.connecting import connect
from entrenar_core.teachers.endpoint.scoring import score_endpoint
from entrenar_core.teachers.endpoint.settings import EndpointSettings
from entrenar_core.teachers.endpoint.source import EndpointTeacher, arrays_of, kind_of, questions_of
from entrenar_core.training.evaluation import evaluate
from telling_server import MODEL, Behaviour, TellingServer, biased
from tiny_models import CORPUS, tiny_llama, tiny_tokenizer

K = 15
FORMS = ("prompt_logprobs", "echo", "next")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.6)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def serving(model: Any, tokenizer: Any) -> Iterator[TellingServer]:
    with TellingServer(model, tokenizer) as server:
        yield server


@pytest.fixture
def server(serving: TellingServer) -> TellingServer:
    serving.behaviour, serving.most_at_once = Behaviour(), 0
    serving.requests.clear()
    return serving


def connected(server: TellingServer, tokenizer: Any, **settings: Any) -> Endpoint:
    settings = {"model": MODEL, "top_logprobs": K, "patience_s": 2.0, "timeout_s": 5.0} | settings
    return connect(EndpointSettings(server.url, **settings), tokenizer, len(tokenizer))


def rows_of(tokenizer: Any) -> list[dict[str, Any]]:
    found = []
    for number, text in enumerate(CORPUS):
        ids = tokenizer(text)["input_ids"][: 20 + 3 * number]
        hidden = number % 3 * 4  # rows of which the first tokens are not learnt
        labels = [-100] * hidden + ids[hidden:]
        found.append({"input_ids": ids, "labels": labels, "row": number, "length": len(ids)})
    return found


def batch_of(tokenizer: Any, side: Any = "right") -> Batch:
    return Collator(tokenizer.pad_token_id, side)(rows_of(tokenizer))


def counting(tokenizer: Any) -> Counting:
    return Counting(shifted=True, vocabulary=len(tokenizer))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", FORMS)
def test_it_says_what_the_model_says(server: TellingServer, model: Any, tokenizer: Any, form: str, side: Any) -> None:
    server.behaviour.forms = (form,)
    endpoint = connected(server, tokenizer)
    assert form in ("next", *re.findall("`(.+?)`", endpoint.protocol.name)[:1])
    assert endpoint.tells_labels
    assert not endpoint.notes
    batch = batch_of(tokenizer, side)
    told = EndpointTeacher(endpoint, counting(tokenizer)).told(batch)
    with torch.no_grad():
        live = read_rows(model, batch, counting(tokenizer))
    log_p_NV, labels_N = live.of(slice(None)).log_softmax(-1), counting(tokenizer).labels(batch)
    torch.testing.assert_close(told.rows.log_p_NK, log_p_NV.topk(K).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(log_p_NV.gather(-1, told.rows.tokens_NK), told.rows.log_p_NK, atol=1e-4, rtol=0)
    torch.testing.assert_close(told.label_N, log_p_NV.gather(-1, labels_N[:, None])[:, 0], atol=1e-4, rtol=0)
    kind = kind_of(endpoint)
    assert kind.betas == tuple(told.rows.betas)
    student = torch.randn(log_p_NV.shape, generator=torch.Generator().manual_seed(0))
    core = DIVERGENCES["forward_kl"].make()
    kept = kind.targets(kind.kept(TaughtRow(live, labels_N, b"")), "cpu")
    expected, whole = divergence_from(kept, core, student), divergence_from(live, core, student)
    found = divergence_from(told.rows, core, student)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # a cache rounds to 16 bits
    assert (found <= whole + 1e-4).all(), "what is lumped together is never farther apart"


def test_one_request_asks_for_a_row(server: TellingServer, tokenizer: Any) -> None:
    endpoint = connected(server, tokenizer)
    server.requests.clear()
    batch = batch_of(tokenizer)
    EndpointTeacher(endpoint, counting(tokenizer)).rows(batch)
    assert len(server.completions()) == len(CORPUS)
    for body in server.completions():
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, -1, 0.0)
        assert body["prompt"] in [row["input_ids"] for row in rows_of(tokenizer)]


def test_rows_are_asked_for_at_once_and_answered_in_order(server: TellingServer, tokenizer: Any) -> None:
    endpoint = connected(server, tokenizer, concurrency=3)
    alone = EndpointTeacher(connected(server, tokenizer, concurrency=1), counting(tokenizer))
    server.behaviour.delay_s, server.most_at_once = 0.05, 0
    many = EndpointTeacher(endpoint, counting(tokenizer)).rows(batch_of(tokenizer))
    assert server.most_at_once == 3
    server.behaviour.delay_s, server.most_at_once = 0.0, 0
    torch.testing.assert_close(many.log_p_NK, alone.rows(batch_of(tokenizer)).log_p_NK, atol=0, rtol=0)
    assert server.most_at_once == 1


def test_no_more_rows_are_taken_in_than_are_soon_asked_for(server: TellingServer, tokenizer: Any) -> None:
    endpoint, given = connected(server, tokenizer, concurrency=2), 0

    def questions() -> Iterator[Any]:
        nonlocal given
        for _ in range(8):
            for question in questions_of(batch_of(tokenizer)):
                given += 1
                yield question

    answers = endpoint.answers(questions())
    for done in range(10):
        next(answers)
        assert given <= done + 4
    answers.close()  # type: ignore[attr-defined]


def test_a_batch_without_anything_that_counts_asks_for_nothing(server: TellingServer, tokenizer: Any) -> None:
    teacher = EndpointTeacher(connected(server, tokenizer), counting(tokenizer))
    server.requests.clear()
    rows = teacher.rows(batch_of(tokenizer).blanked())
    assert (len(rows), rows.tokens_NK.shape, rows.log_rest_NJ.shape) == (0, (0, K), (0, 1))
    said = teacher.listening(Wants())(batch_of(tokenizer).blanked())
    assert said.rows is not None
    assert not server.completions()


def test_a_cache_that_is_built_of_its_answers_says_the_same(
    server: TellingServer, tokenizer: Any, tmp_path: Path
) -> None:
    endpoint, rows = connected(server, tokenizer), rows_of(tokenizer)
    rows[2]["labels"] = [-100] * rows[2]["length"]  # a row of which nothing counts
    batch, file = Collator(tokenizer.pad_token_id)(rows), tmp_path / "shard.safetensors"
    kept = [arrays_of(answer, endpoint.vocabulary) for _, answer in endpoint.answers(questions_of(batch))]
    write_shard(file, list(keys_of(batch)), kept, {})
    cached = CachedTeacher(Store([file]), kind_of(endpoint))
    told = EndpointTeacher(endpoint, counting(tokenizer)).told(batch)
    found = cached.rows(batch)
    assert isinstance(found, TopKRows)
    assert torch.equal(found.tokens_NK, told.rows.tokens_NK)
    torch.testing.assert_close(found.log_p_NK, told.rows.log_p_NK, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.log_rest_NJ, told.rows.log_rest_NJ)
    torch.testing.assert_close(cached.of_labels(batch), told.label_N)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_scored_as_the_model_is(server: TellingServer, model: Any, tokenizer: Any, form: str) -> None:
    server.behaviour.forms = (form,)
    tokens, collator = Dataset.from_list(rows_of(tokenizer)), Collator(tokenizer.pad_token_id)
    teacher = EndpointTeacher(connected(server, tokenizer), counting(tokenizer))
    seen: list[tuple[int, int]] = []
    found = score_endpoint(teacher, tokens, collator=collator, batch_size=2, on_batch=lambda *x: seen.append(x))
    expected = evaluate(
        model, tokens, collator=collator, batch_size=2, counting=counting(tokenizer), accelerator=Accelerator(cpu=True)
    )
    assert found.targets == expected.targets
    assert found.accuracy == expected.accuracy
    assert found.cross_entropy == pytest.approx(expected.cross_entropy, abs=1e-4)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-3)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_labels_beyond_the_likeliest_are_not_made_up(server: TellingServer, tokenizer: Any) -> None:
    """A server that tells log-probabilities after its bias tells those of forced tokens wrong."""
    server.behaviour = Behaviour(forms=("next",))
    server.behaviour.spoil = biased
    endpoint = connected(server, tokenizer)
    assert not endpoint.tells_labels
    teacher = EndpointTeacher(endpoint, counting(tokenizer))
    told, labels_N = teacher.told(batch_of(tokenizer)), counting(tokenizer).labels(batch_of(tokenizer))
    among_N = (told.rows.tokens_NK == labels_N[:, None]).any(-1)
    assert 0 < among_N.sum() < len(among_N)
    assert torch.equal(told.label_N.isnan(), ~among_N)
    tokens = Dataset.from_list(rows_of(tokenizer))
    with pytest.raises(ModelError, match="log-probability of every label"):
        score_endpoint(teacher, tokens, collator=Collator(tokenizer.pad_token_id), batch_size=2)


# ── What is found out before anything is built on it ──


def refused(server: TellingServer, tokenizer: Any, kind: type[EntrenarError] = ModelError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        connected(server, tokenizer, **settings)
    assert caught.value.hint
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.mark.parametrize("form", FORMS)
def test_log_probabilities_after_samplers_are_refused(server: TellingServer, tokenizer: Any, form: str) -> None:
    server.behaviour = Behaviour(forms=(form,), touched=True)
    assert "after its samplers" in refused(server, tokenizer)


@pytest.mark.parametrize("form", FORMS)
def test_a_distribution_that_was_cut_is_refused(server: TellingServer, tokenizer: Any, form: str) -> None:
    """As of a server whose `top_k` cannot be switched off: the likeliest have all of the probability."""

    def cut(answer: dict[str, Any]) -> dict[str, Any]:
        return _mapped(answer, lambda values: [value - _log_sum(values) for value in values])

    server.behaviour = Behaviour(forms=(form,), spoil=cut)
    assert "after its samplers" in refused(server, tokenizer, top_logprobs=5)


def _log_sum(values: list[float]) -> float:
    top = sorted(values, reverse=True)[:5]
    return float(torch.tensor(top).logsumexp(0))


def _mapped(answer: dict[str, Any], change: Any) -> dict[str, Any]:
    """Every list of likeliest tokens, changed; the token that was sent is left out where it is none of them."""
    (choice,) = answer["choices"]
    for entries in choice.get("prompt_logprobs") or ():
        if entries:
            for entry, value in zip(entries.values(), change([x["logprob"] for x in entries.values()]), strict=True):
                entry["logprob"] = value
    told = choice["logprobs"] or {}
    for place, top in enumerate(told.get("top_logprobs", ())):
        if top:
            top.update(zip(top, change(list(top.values())), strict=True))
            told["token_logprobs"][place] = top[told["tokens"][place]]
    for entry in told.get("content", ()):
        values = change([x["logprob"] for x in entry["top_logprobs"]])
        for one, value in zip(entry["top_logprobs"], values, strict=True):
            one["logprob"] = value
    return answer


def other_tokenizer(folder: Path) -> Any:
    return tiny_tokenizer(folder, texts=["xyz zyx yxz xxyyzz zzyyxx"] * 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pages", [("models", "tokenize", "detokenize"), ("models",), ()])
def test_other_tokens_are_refused(
    server: TellingServer, tokenizer: Any, tmp_path: Path, form: str, pages: tuple[str, ...]
) -> None:
    server.behaviour = Behaviour(forms=(form,), pages=pages)
    server.tokenizer, before = other_tokenizer(tmp_path), server.tokenizer
    try:
        text = refused(server, tokenizer)
    finally:
        server.tokenizer = before
    assert "its tokens are others than the student's" in text
    assert re.search(r"ids? \[?\d+", text), "the first that differ"
    connected(server, tokenizer)


def test_texts_that_are_split_otherwise_are_worth_a_note(
    server: TellingServer, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bytewise:
        """The same tokens, but one for every byte."""

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": [id_ for part in text for id_ in tokenizer(part)["input_ids"]]}

        def decode(self, ids: list[int]) -> str:
            return str(tokenizer.decode(ids))

    monkeypatch.setattr(server, "tokenizer", Bytewise())
    (note,) = connected(server, tokenizer).notes
    assert "splits texts otherwise" in note


def test_a_server_that_names_no_token_cannot_be_told_apart(server: TellingServer, tokenizer: Any) -> None:
    server.behaviour = Behaviour(forms=("prompt_logprobs",), pages=("models",), text_of_tokens=False)
    assert "cannot be told: it has no /detokenize" in refused(server, tokenizer)


@pytest.mark.parametrize(
    "hidden",
    [
        (403, b"{}", {}),
        (200, b"<html>Welcome</html>", {}),
        (200, b"ok", {}),
        (200, b"{}", {}),
        (302, b"", {"Location": "https://elsewhere.example/login"}),
        (500, b"", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["prompt_logprobs", "next"])
def test_a_gateway_may_hide_what_is_not_openais(server: TellingServer, tokenizer: Any, hidden: Any, form: str) -> None:
    server.behaviour = Behaviour(forms=(form,), pages=("models",), hidden=hidden)
    assert not connected(server, tokenizer, patience_s=10.0).notes


def test_a_server_that_takes_texts_alone_is_refused(server: TellingServer, tokenizer: Any) -> None:
    server.behaviour.texts_alone = True
    text = refused(server, tokenizer)
    assert "it takes texts alone" in text
    assert "Input should be a valid string" in text
    assert "Ollama" in text


def test_a_server_that_tells_nothing_is_refused_with_what_it_says(server: TellingServer, tokenizer: Any) -> None:
    server.behaviour.forms = ()
    text = refused(server, tokenizer)
    assert "`prompt_logprobs` tells nothing" in text
    assert "tells no log-probabilities with ids" in text


def test_echoed_texts_are_no_ids(server: TellingServer, tokenizer: Any) -> None:
    """As SGLang's and OpenAI's: one text may be of several tokens."""

    def as_texts(answer: dict[str, Any]) -> dict[str, Any]:
        told = answer["choices"][0]["logprobs"]
        return json.loads(re.sub(r"token_id:(\d+)", r"t\1", json.dumps(answer))) if told else answer

    server.behaviour = Behaviour(forms=("echo",), spoil=as_texts)
    assert "and not by their ids" in refused(server, tokenizer)


def test_more_than_the_server_tells_is_refused_with_its_words(server: TellingServer, tokenizer: Any) -> None:
    server.behaviour.most = 5
    text = refused(server, tokenizer)
    assert "greater than max allowed" in text


def test_fewer_than_were_asked_for_is_refused(server: TellingServer, tokenizer: Any) -> None:
    def five(answer: dict[str, Any]) -> dict[str, Any]:
        for entries in answer["choices"][0].get("prompt_logprobs") or ():
            for name in list(entries or ())[5:]:
                del entries[name]
        return answer

    server.behaviour = Behaviour(forms=("prompt_logprobs",), spoil=five)
    text = refused(server, tokenizer)
    assert f"of the {K} likeliest tokens" in text
    assert "lower `top_logprobs`" in text
    assert "--max-logprobs" in text


def test_a_model_that_is_not_served_is_named_with_those_that_are(server: TellingServer, tokenizer: Any) -> None:
    assert "does not serve large; it serves tiny" in refused(server, tokenizer, NotFoundError, model="large")
    server.behaviour.pages = ()
    assert "The model `large` does not exist" in refused(server, tokenizer, model="large")


def test_more_tokens_than_there_are_cannot_be_asked_for(server: TellingServer, tokenizer: Any) -> None:
    assert "of 320 tokens" in refused(server, tokenizer, UsageError, top_logprobs=320)


def test_a_row_longer_than_the_server_reads_is_refused_by_its_number(server: TellingServer, tokenizer: Any) -> None:
    endpoint = connected(server, tokenizer)
    assert endpoint.context == 128
    long = [{"input_ids": [5] * 128, "labels": [5] * 128, "row": 4}]
    with pytest.raises(ModelError, match=r"row 4 has 128 tokens, and it reads 128, of which 1 is for its own"):
        EndpointTeacher(endpoint, counting(tokenizer)).rows(Collator(0)(long))
    endpoint.require_length(127, "row 4")


def test_a_server_that_reads_other_tokens_than_were_sent_is_refused(server: TellingServer, tokenizer: Any) -> None:
    def templated(answer: dict[str, Any]) -> dict[str, Any]:
        answer["usage"]["prompt_tokens"] += 1
        return answer

    server.behaviour.spoil = templated
    assert re.search(r"it read (\d+) tokens where (\d+) were sent", refused(server, tokenizer))


def test_what_is_found_out_is_said(server: TellingServer, tokenizer: Any) -> None:
    endpoint = connected(server, tokenizer)
    assert str(endpoint) == (f"tiny at {server.url}: one request for a row, by `prompt_logprobs`, 4 rows at a time")
    assert dataclasses.is_dataclass(endpoint)
    endpoint.close()
