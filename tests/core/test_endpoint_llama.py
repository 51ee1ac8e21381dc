"""llama.cpp's server with a real model: what it says is what the same GGUF says when it is loaded here."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.errors import FetchError, ModelError
from entrenar_core.losses import DIVERGENCES, Logits, divergence_from
from entrenar_core.models.loading import load_model
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.models.tokenizers import load_tokenizer
from entrenar_core.references import parse_reference
from entrenar_core.teachers.cache.kinds import TaughtRow
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.connecting import connect
from entrenar_core.teachers.endpoint.settings import EndpointSettings
from entrenar_core.teachers.endpoint.source import EndpointTeacher, arrays_of, kind_of, questions_of
from llama_server import LlamaServer, real_gguf, shallow_gguf, shallow_llama
from tiny_models import tiny_tokenizer

pytestmark = pytest.mark.real_models

K = 20
TEXTS = (
    "<|im_start|>user\nName 3 colours.<|im_end|>\n<|im_start|>assistant\nRed, green and violet.<|im_end|>",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2",
    "The quick brown fox jumps over the lazy dog, naïve façade, 机器学习.",
)


class Model:
    """A GGUF that is served, and loaded here."""

    def __init__(self, server: LlamaServer, tokenizer: Any, live: Any) -> None:
        self.server, self.tokenizer, self.live = server, tokenizer, live
        self.counting = Counting(shifted=True, vocabulary=len(self.tokenizer))

    def connect(self, on_note: Callable[[str], None] = lambda _: None, **settings: Any) -> Endpoint:
        settings = {"model": self.server.model.name, "top_logprobs": K} | settings
        given = EndpointSettings(self.server.url, **settings)
        return connect(given, self.tokenizer, len(self.tokenizer), on_note=on_note)

    def batch(self, texts: tuple[str, ...] = TEXTS) -> Batch:
        rows = []
        for number, text in enumerate(texts):
            ids = self.tokenizer(text)["input_ids"]
            rows.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:], "row": number})
        return Collator(0)(rows)

    @torch.no_grad()
    def says(self, batch: Batch) -> Logits:
        """What the loaded model says."""
        return Logits(read_rows(self.live, batch, self.counting).of(slice(None)))


@pytest.fixture(scope="module")
def artifact() -> ModelArtifact:
    reference = parse_reference(str(real_gguf()))
    return inspect_folder(reference.locate(), reference=reference)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def tokenizer(artifact: ModelArtifact) -> Any:
    return load_tokenizer(artifact)


@pytest.fixture(scope="module")
def shallow(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Two layers, in which nothing is rounded to fewer bits."""
    reader = GGUFReader(real_gguf())
    path = shallow_gguf(reader, tmp_path_factory.mktemp("gguf") / "shallow.gguf", layers=2)
    with LlamaServer(path, exact=True) as server:
        yield Model(server, tokenizer, shallow_llama(reader, layers=2))
    path.unlink()


@pytest.fixture(scope="module")
def whole(artifact: ModelArtifact, tokenizer: Any) -> Iterator[Model]:
    """The model as it is, of which llama.cpp rounds what goes into each layer to 8 bits."""
    with LlamaServer(real_gguf()) as server:
        yield Model(server, tokenizer, load_model(artifact, "causal-lm", dtype="float32").eval())


def test_log_probabilities_are_those_of_the_model(shallow: Model) -> None:
    endpoint, batch = shallow.connect(), shallow.batch()
    assert "one request for each position" in str(endpoint)
    assert (endpoint.tells_labels, endpoint.context, endpoint.concurrency) == (True, 512, 2)
    told = EndpointTeacher(endpoint, shallow.counting).told(batch)
    log_p_NV, labels_N = shallow.says(batch).logits_NV.log_softmax(-1), shallow.counting.labels(batch)
    assert 50 < len(log_p_NV) == len(told.rows)
    torch.testing.assert_close(log_p_NV.gather(-1, told.rows.tokens_NK), told.rows.log_p_NK, atol=5e-4, rtol=0)
    torch.testing.assert_close(log_p_NV.topk(K).values, told.rows.log_p_NK, atol=5e-4, rtol=0)
    torch.testing.assert_close(log_p_NV.gather(-1, labels_N[:, None])[:, 0], told.label_N, atol=5e-4, rtol=0)
    rest_N = log_p_NV.scatter(-1, told.rows.tokens_NK, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(rest_N.exp(), told.rows.log_rest_NJ[:, 0].exp(), atol=1e-3, rtol=0)


def test_the_loss_is_that_of_the_live_model_within_what_its_likeliest_tokens_lack(shallow: Model) -> None:
    endpoint, batch = shallow.connect(), shallow.batch()
    live, core = shallow.says(batch), DIVERGENCES["forward_kl"].make()
    student_NV = torch.randn(live.logits_NV.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kind = kind_of(endpoint)
    kept = kind.targets(kind.kept(TaughtRow(live, shallow.counting.labels(batch), b"")), "cpu")
    told = EndpointTeacher(endpoint, shallow.counting).rows(batch)
    losses = [divergence_from(teacher, core, student_NV).mean() for teacher in (live, kept, told)]
    of_live, of_kept, of_told = (float(loss.detach()) for loss in losses)
    lacking = abs(of_kept - of_live)
    assert lacking > 0.01, "something is lacking in 20 tokens"
    assert abs(of_told - of_kept) < 0.02 * lacking
    assert abs(of_told - of_live) < 1.02 * lacking
    gradients = [torch.autograd.grad(loss, student_NV)[0] for loss in losses[1:]]
    torch.testing.assert_close(*gradients, atol=2e-3 * float(gradients[0].abs().max()), rtol=0)


@pytest.mark.nightly
def test_the_model_as_it_is_said_within_what_llama_cpp_rounds(whole: Model) -> None:
    batch = whole.batch()
    told = EndpointTeacher(whole.connect(), whole.counting).told(batch)
    live = whole.says(batch)
    log_p_NV, labels_N = live.logits_NV.log_softmax(-1), whole.counting.labels(batch)
    differences = (log_p_NV.gather(-1, told.rows.tokens_NK) - told.rows.log_p_NK).abs()
    assert differences.mean() < 0.15
    assert differences.max() < 1.5
    assert (log_p_NV.gather(-1, labels_N[:, None])[:, 0] - told.label_N).abs().mean() < 0.15
    assert (log_p_NV.argmax(-1) == told.rows.tokens_NK[:, 0]).float().mean() > 0.9
    core = DIVERGENCES["forward_kl"].make()
    noise_NV = torch.randn(log_p_NV.shape, generator=torch.Generator().manual_seed(0))
    of_live, of_told = (divergence_from(x, core, live.logits_NV + 0.5 * noise_NV).mean() for x in (live, told.rows))
    kept = kind_of(whole.connect())
    of_kept = divergence_from(
        kept.targets(kept.kept(TaughtRow(live, labels_N, b"")), "cpu"), core, live.logits_NV + 0.5 * noise_NV
    ).mean()
    assert abs(float(of_told - of_live)) < abs(float(of_kept - of_live)) + 0.02


def test_each_position_costs_one_token(shallow: Model) -> None:
    """The prompt cache holds, also where two rows begin alike, and take turns."""
    endpoint = shallow.connect()
    read: list[tuple[int, int]] = []
    original = endpoint.client.post

    def post(url: str, body: Any, **keywords: Any) -> Any:
        found = original(url, body, **keywords)
        read.append((len(body["prompt"]), found["usage"]["prompt_tokens_details"]["cached_tokens"]))
        return found

    endpoint.client.post = post  # type: ignore[method-assign]
    ids = tuple(shallow.tokenizer(TEXTS[1])["input_ids"])
    rows = [next(questions_of(shallow.batch((TEXTS[1] + end,)))) for end in (" # one", " # another", " # a third")]
    list(endpoint.answers(rows))
    assert len(read) == sum(len(row.places) for row in rows) > 3 * (len(ids) - 4)
    fresh = [length - cached for length, cached in read]
    assert sorted(fresh)[: len(fresh) - len(rows)] == [1] * (len(fresh) - len(rows))


@pytest.mark.long
def test_a_server_that_goes_away_and_comes_back_loses_nothing(shallow: Model) -> None:
    notes: list[str] = []
    endpoint, batch = shallow.connect(notes.append, patience_s=60.0), shallow.batch()
    teacher = EndpointTeacher(endpoint, shallow.counting)
    answered, original = [0], endpoint.client.post

    def counted(*arguments: Any, **keywords: Any) -> Any:
        found = original(*arguments, **keywords)
        answered[0] += 1
        return found

    def replace() -> None:
        while answered[0] < 20:
            time.sleep(0.002)
        shallow.server.kill()
        time.sleep(0.5)
        shallow.server.start()

    endpoint.client.post = counted  # type: ignore[method-assign]
    expected, needed = teacher.rows(batch), answered[0]
    answered[0] = 0
    killer = threading.Thread(target=replace)
    killer.start()
    try:
        found = teacher.rows(batch)
    finally:
        killer.join()
    assert torch.equal(found.tokens_NK, expected.tokens_NK)
    torch.testing.assert_close(found.log_p_NK, expected.log_p_NK, atol=2e-3, rtol=0)
    assert "fails (the connection failed" in notes[0]
    assert notes[-1].endswith("answers again")
    assert answered[0] == needed, "no position is asked for again that was answered"


@pytest.mark.long
def test_one_that_does_not_come_back_gives_what_came_before(shallow: Model) -> None:
    endpoint = shallow.connect(patience_s=1.0)
    rows = list(questions_of(shallow.batch()))
    answers = endpoint.answers(rows * 6)
    kept = [arrays_of(next(answers)[1], endpoint.vocabulary) for _ in range(3)]
    shallow.server.kill()
    try:
        with pytest.raises(FetchError, match="it has failed for") as caught:
            list(answers)
        assert "give the same command again" in str(caught.value.hint)
        with pytest.raises(FetchError, match="cannot be reached"):
            shallow.connect(patience_s=1.0)
    finally:
        shallow.server.start()
    again = [arrays_of(shallow.connect().ask(row), endpoint.vocabulary) for row in rows]
    for before, after in zip(kept, again, strict=True):
        assert (before["tokens"] == after["tokens"]).all()


def test_another_tokenizer_is_refused_by_its_first_text(shallow: Model, tmp_path: Path) -> None:
    other = tiny_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="its tokens are others than the student's: ids") as caught:
        connect(EndpointSettings(shallow.server.url, "shallow.gguf"), other, len(other))
    assert "The quick brown" in caught.value.message
    with pytest.raises(ModelError, match="it has 49,152 tokens, and the student 60,000"):
        connect(EndpointSettings(shallow.server.url, "shallow.gguf"), shallow.tokenizer, 60_000)


def test_a_row_longer_than_its_context_is_refused(shallow: Model) -> None:
    endpoint = shallow.connect()
    long = Collator(0)([{"input_ids": [5] * 513, "labels": [-100] * 511 + [5, 5], "row": 9}])
    with pytest.raises(ModelError, match="row 9 has 513 tokens, and it reads 512"):
        EndpointTeacher(endpoint, shallow.counting).rows(long)
    fits = Collator(0)([{"input_ids": [5] * 512, "labels": [-100] * 511 + [5], "row": 9}])
    assert len(EndpointTeacher(endpoint, shallow.counting).rows(fits)) == 1
