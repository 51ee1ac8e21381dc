"""GGUF files in real llama.cpp beside their originals: faithful ones pass, and each way of being wrong is found."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar_core.errors import ModelError, UsageError
from entrenar_core.verification import LIMITS, Verification, verify
from llama_files import bert_file, llama_file
from tiny_models import tiny_bert, tiny_llama

pytestmark = pytest.mark.real_models

TEXTS = ("the quick brown fox", "naïve café, 123 + 4\n\n\tif x:", "<s>the fox</s>", "機械学習 🦊", "")
WORDS = ("the quick brown fox", "A teacher, and (brackets).")
PASSAGE = "the student learns\n\nOpen the file, read every line of it."
WIDE = 0.3
"""The spread of weights at which all of them matter to what a small model predicts."""


def nightly(kind: str) -> Any:
    """A type of which others stand in for it in every run."""
    return pytest.param(kind, marks=pytest.mark.nightly)


@pytest.fixture(scope="module", autouse=True)
def llama_cpp() -> None:
    if find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed; `make setup` brings it")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), initializer_range=WIDE)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), initializer_range=WIDE)


def checked(gguf: Path, original: Path, mix: str | None = "f32", **settings: Any) -> Verification:
    settings = {"texts": TEXTS, "positions": 32, "threads": 1} | settings
    return verify(gguf, original, mix=mix, **settings)


def unpaired(name: str, values: Any) -> Any:
    """Queries as transformers has them, which llama.cpp reads otherwise."""
    if not name.endswith("attn_q.weight"):
        return values
    return values.reshape(4, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def test_a_faithful_file_passes_with_predictions_that_are_equal(llama: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    gguf = llama_file(llama, tmp_path / "model.gguf")
    found = checked(gguf, llama, progress=lambda *said: seen.append(said))
    assert found.passed
    assert found.reasons == ()
    assert (found.texts.texts, found.texts.agreeing) == (len(TEXTS), len(TEXTS))
    assert found.vectors is None
    assert found.predictions is not None
    assert found.predictions.is_exact
    assert found.predictions.positions == 32
    assert found.predictions.distances.kl_max < 1e-6
    assert found.predictions.distances.difference_max < 1e-3
    assert found.predictions.distances.agreement == 1
    assert found.predictions.ratio == pytest.approx(1, abs=1e-4)
    assert found.predictions.noise is None
    assert [said for said in seen if said[1] == said[2]] == [("texts", 5, 5), ("positions", 32, 32)]


def test_the_perplexity_is_that_of_transformers_loss(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of tokens that end amid a character, of which llama.cpp says nothing when they are taken."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entrenar_core.verification import asking

    monkeypatch.setattr(asking, "TOLD", 20)  # not all of them are among so many
    text = ", ".join(["the quick naïve fox, 日本 🦊"] * 4)
    found = checked(llama_file(llama, tmp_path / "model.gguf"), llama, passage=text, positions=1000)
    ids = AutoTokenizer.from_pretrained(llama)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(llama)(ids, labels=ids).loss
    assert found.predictions is not None
    assert found.predictions.positions == ids.shape[1] - 1
    assert found.predictions.original_perplexity == pytest.approx(loss.exp().item(), rel=1e-4)
    assert found.predictions.perplexity == pytest.approx(loss.exp().item(), rel=1e-4)


@pytest.mark.parametrize("kind", [nightly("F32"), nightly("Q8_0"), "Q4_0"])
def test_queries_that_are_not_permuted_are_found_in_every_type(llama: Path, tmp_path: Path, kind: str) -> None:
    gguf = llama_file(llama, tmp_path / "model.gguf", kind=kind, change=unpaired)
    found = checked(gguf, llama, kind.lower(), texts=TEXTS[:1], positions=80)
    assert not found.passed
    assert found.texts.agreeing == 1
    assert "its predictions differ by a KL divergence of" in found.reasons[0]


@pytest.mark.parametrize("kind", [nightly("BF16"), nightly("Q8_0"), "Q4_0"])
def test_honest_quantising_passes_in_a_model_as_sensitive_as_a_random_one(
    llama: Path, tmp_path: Path, kind: str
) -> None:
    gguf = llama_file(llama, tmp_path / "model.gguf", kind=kind)
    found = checked(gguf, llama, None, texts=TEXTS[:1], positions=80)
    assert found.reasons == ()
    assert found.predictions is not None
    assert found.predictions.distances.kl_mean > 1e-5
    assert found.mix == kind.lower()
    if kind == "Q4_0":  # more than trained models lose, and no more than noise of the same size costs
        assert found.predictions.distances.kl_mean > LIMITS["q4_0"].kl
        assert found.predictions.noise is not None


def test_two_tokens_that_are_exchanged_are_found_and_shown(llama: Path, tmp_path: Path) -> None:
    def exchanged(tokens: list[str]) -> list[str]:
        a, b = tokens.index("t"), tokens.index("q")
        tokens[a], tokens[b] = tokens[b], tokens[a]
        return tokens

    found = checked(llama_file(llama, tmp_path / "model.gguf", tokens=exchanged), llama, positions=10)
    assert not found.passed
    assert found.texts.agreeing < len(TEXTS)
    difference = found.texts.first_difference
    assert difference is not None
    assert difference.text == TEXTS[0]
    assert difference.original != difference.gguf
    (reason,) = found.reasons
    assert reason.startswith(f"llama.cpp cuts {len(TEXTS) - found.texts.agreeing} of 5 texts otherwise: 'the quick")


def test_a_beginning_that_only_llama_cpp_adds_is_found(llama: Path, tmp_path: Path) -> None:
    import gguf

    file = llama_file(llama, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(file, "r+")
    reader.fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = True
    reader.data.flush()
    found = checked(file, llama, positions=5)
    assert found.texts.agreeing == 0
    assert found.texts.first_difference is not None
    assert found.texts.first_difference.special


def test_weights_that_are_no_numbers_are_an_error(llama: Path, tmp_path: Path) -> None:
    def spoilt(name: str, values: Any) -> Any:
        return np.full_like(values, np.nan) if name == "blk.1.ffn_down.weight" else values

    gguf = llama_file(llama, tmp_path / "model.gguf", change=spoilt)
    with pytest.raises(ModelError, match=r"llama.cpp (computes no numbers from|ended while it ran) model.gguf"):
        checked(gguf, llama, positions=5)


def test_rows_fit_a_model_that_reads_few_tokens(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "short", max_position_embeddings=16)
    found = checked(llama_file(folder, tmp_path / "model.gguf"), folder, texts=(), positions=32)
    assert found.passed
    assert found.predictions is not None
    assert found.predictions.positions == 32


def test_a_large_vocabulary_is_told_in_part_and_perplexity_stays_exact(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entrenar_core.verification import asking

    gguf = llama_file(llama, tmp_path / "model.gguf", kind="Q8_0")
    whole = checked(gguf, llama, "q8_0", texts=()).predictions
    monkeypatch.setattr(asking, "TOLD", 12)
    part = checked(gguf, llama, "q8_0", texts=()).predictions
    assert whole is not None
    assert part is not None
    assert (part.told, part.is_exact) == (12, False)
    assert 0.1 < part.told_share < 1
    assert 0 < part.distances.kl_mean < whole.distances.kl_mean
    assert part.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert part.original_perplexity == pytest.approx(whole.original_perplexity, rel=1e-6)


def test_vectors_of_an_encoder_are_compared(bert: Path, tmp_path: Path) -> None:
    found = checked(bert_file(bert, tmp_path / "model.gguf"), bert, texts=WORDS, passage=PASSAGE)
    assert found.reasons == ()
    assert found.texts.agreeing == len(WORDS)
    assert found.predictions is None
    assert found.vectors is not None
    assert found.vectors.pooling == "mean"
    assert found.vectors.texts == 2 + len(WORDS)
    assert 0.99999 < found.vectors.cosine_min <= found.vectors.cosine_mean <= 1 + 1e-9


@pytest.mark.nightly
def test_vectors_that_are_not_pooled_are_compared_token_by_token(bert: Path, tmp_path: Path) -> None:
    found = checked(bert_file(bert, tmp_path / "model.gguf", pooling=0), bert, texts=WORDS, passage=PASSAGE)
    assert found.passed
    assert found.vectors is not None
    assert found.vectors.pooling is None


def test_another_encoder_is_found(bert: Path, tmp_path: Path) -> None:
    other = tiny_bert(tmp_path / "other", seed=7, initializer_range=WIDE)
    found = checked(bert_file(other, tmp_path / "model.gguf"), bert, texts=WORDS, passage=PASSAGE)
    assert not found.passed
    assert found.reasons[0].startswith("a vector has a cosine of ")


def test_another_pooling_than_the_folder_names_is_an_error(
    bert: Path, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    import json

    from entrenar_core.models.sentence_files import sentence_files

    folder = copied(bert)
    for name, content in sentence_files("first", 32, 64).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"its first token in .*, and the mean of its tokens in the GGUF"):
        checked(bert_file(bert, tmp_path / "model.gguf"), folder, texts=WORDS, passage=PASSAGE)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    import shutil

    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("passage", ["a", "the quick fox"])
def test_a_passage_of_a_few_tokens_says_nothing(llama: Path, tmp_path: Path, passage: str) -> None:
    gguf = llama_file(llama, tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"tokens? that a model could predict"):
        checked(gguf, llama, passage=passage)


def test_a_type_that_is_not_known_is_refused(bert: Path, tmp_path: Path) -> None:
    gguf = bert_file(bert, tmp_path / "model.gguf")  # names none itself
    with pytest.raises(UsageError, match="of the type q9_9 may differ is not known"):
        checked(gguf, bert, "q9_9")
    with pytest.raises(UsageError, match="does not say in which type its weights are"):
        checked(gguf, bert, None)
