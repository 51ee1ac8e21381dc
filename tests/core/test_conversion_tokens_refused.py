"""A tokenizer that llama.cpp could not follow is refused, with what it does otherwise and the rules that cut words."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import tokenizer_makers as makers
from entrenar_core.conversion.gguf_splits import SPLITTINGS
from entrenar_core.conversion.tokens import TokenizerMetadata, tokenizer_metadata
from entrenar_core.errors import ModelError

SPACED = pre_tokenizers.ByteLevel(add_prefix_space=True)
LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
META = makers.SPACE
Change = Callable[[Tokenizer], object]


def made(folder: Path, rows: int = 1000) -> TokenizerMetadata:
    return tokenizer_metadata(folder, config={}, vocab_size=rows, architecture="llama")


def changed(folder: Path, change: Change) -> Path:
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    change(tokenizer)
    tokenizer.save(file)
    return folder


def edited(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> Path:
    content = json.loads((folder / name).read_text("utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def splits(*patterns: str) -> Change:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Sequence([*cuts, LETTERS]))


def normalizer(*steps: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Sequence(list(steps)))


def cutting(*steps: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Sequence(list(steps)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sources")
    return {
        "bytes": makers.byte_level(place / "bytes"),
        "pieces": makers.sentence_piece(place / "pieces"),
        "unigram": makers.unigram(place / "unigram"),
        "words": makers.wordpiece(place / "words"),
    }


def copied(source: Path, target: Path) -> Path:
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("bytes", splits(r"\w+|\W+"), r"cuts words by `\w+|\W+`, for which llama.cpp has no name"),
        ("bytes", splits(r"\p{N}", r"\s+"), r"by `\p{N}` and then by `\s+`, for which"),
        ("bytes", splits(), "cuts words by nothing"),
        ("bytes", cutting(pre_tokenizers.Punctuation(), LETTERS), "by the rule Punctuation (behavior: Isolated)"),
        ("bytes", cutting(LETTERS, pre_tokenizers.Digits()), "after it has spelled them in bytes"),
        ("bytes", lambda found: setattr(found, "pre_tokenizer", SPACED), "puts a space before a text"),
        ("bytes", normalizer(normalizers.NFC(), normalizers.Lowercase()), "changes a text first (Lowercase)"),
        ("bytes", lambda found: setattr(found.model, "dropout", 0.1), "merges with dropout 0.1"),
        ("pieces", normalizer(normalizers.NFKC()), "changes a text by the rule NFKC"),
        ("pieces", normalizer(), "neither spells bytes nor writes spaces as U+2581"),
        ("pieces", cutting(pre_tokenizers.Whitespace()), "cuts words by the rule Whitespace"),
        ("pieces", lambda found: setattr(found.model, "byte_fallback", False), "does not fall back on bytes"),
        ("pieces", lambda found: setattr(found.model, "ignore_merges", True), "takes a word that is a token whole"),
        ("unigram", normalizer(normalizers.NFKC()), "by the rule NFKC, and llama.cpp only by a table"),
        ("unigram", normalizer(normalizers.Strip(False, True)), "drops spaces at the end of a text alone"),
        ("unigram", cutting(), "cuts words by nothing"),
        ("unigram", cutting(pre_tokenizers.Metaspace(prepend_scheme="never")), "by Metaspace, and llama.cpp puts"),
        (
            "unigram",
            cutting(pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")),
            "leaves out the spaces between words",
        ),
        ("words", normalizer(normalizers.Lowercase()), "by Lowercase, BertPreTokenizer, and llama.cpp by those of"),
        ("words", normalizer(normalizers.BertNormalizer(handle_chinese_chars=False)), "has handle_chinese_chars off"),
        ("words", cutting(pre_tokenizers.Whitespace()), "by BertNormalizer, Whitespace"),
        ("words", lambda found: setattr(found.model, "continuing_subword_prefix", "@@"), "otherwise than with ##"),
        ("words", lambda found: makers.ends(found, "[CLS]"), "does not put a token at both ends"),
    ],
)
def test_what_it_cannot_follow(kind: str, change: Change, why: str, sources: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(copied(sources[kind], tmp_path), change)
    with pytest.raises(ModelError) as caught:
        made(folder)
    assert why in caught.value.message
    assert caught.value.message.startswith(f"{folder}: ")
    assert caught.value.hint


def test_merges_that_no_scores_tell_need_a_tokenizer_without_a_space_before_a_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"are not merged, though '.+' is a token"):
        made(makers.sentence_piece(tmp_path / "prefixed", complete=False))
    notes = made(makers.sentence_piece(tmp_path / "bare", complete=False, spaces="never")).notes
    assert "only a llama.cpp of 2026 or later" in notes[0]


def test_a_token_across_two_words_needs_a_tokenizer_that_joins_them(tmp_path: Path) -> None:
    merges = [(META, "a"), ("b", META), ("b" + META, "a"), ("b", META + "a")]
    tokens = [*makers.SPECIALS, *makers.OCTETS, META, "a", "b", *("".join(merge) for merge in merges[:3])]
    model = models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    assert made(makers.save(tokenizer, tmp_path, {})).metadata["tokenizer.ggml.model"].value == "llama"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    with pytest.raises(ModelError, match="its token 'b▁' would join two of them"):
        made(makers.save(tokenizer, tmp_path, {}))


def test_a_word_that_is_a_token_but_not_merged_makes_the_name(tmp_path: Path) -> None:
    """With the cuts of GPT-2 llama.cpp has no name for taking such a word whole; with those of Llama 3 it has both."""
    added = {"Ġunmerged": 700}
    for pre, whole, name in (("llama-bpe", True, "llama-bpe"), ("llama-bpe", False, "dbrx"), ("gpt-2", False, "gpt-2")):
        folder = makers.byte_level(tmp_path / f"{pre}-{whole}", pre=pre, ignore_merges=whole)
        edited(folder, lambda content: content["model"]["vocab"].update(added))
        assert made(folder).metadata["tokenizer.ggml.pre"].value == name
    folder = makers.byte_level(tmp_path / "whole", ignore_merges=True)
    assert made(folder).metadata["tokenizer.ggml.pre"].value == "gpt-2", "it makes no difference"
    edited(folder, lambda content: content["model"]["vocab"].update(added))
    with pytest.raises(ModelError, match=r"takes a word that is a token whole, for which llama.cpp has no name"):
        made(folder)


def test_the_same_rules_in_other_words_have_the_same_name(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path, pre="qwen2")
    (rule,) = SPLITTINGS["qwen2"].patterns
    endings = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    for spelled in (
        rule.replace(endings, "'(?i:[sdmt]|ll|ve|re)").replace(r"\p{N}|", r"\p{N}{1}|"),
        rule.replace(r"\r\n", "\r\n"),
        rule.replace(r"?\p{L}+", r"?+\p{L}+").replace(r"\p{N}]+[", r"\p{N}]++["),
    ):
        assert spelled != rule
        assert made(changed(folder, splits(spelled))).metadata["tokenizer.ggml.pre"].value == "qwen2"
    inverted = pre_tokenizers.Split(Regex(rule), "removed", invert=True)
    assert made(changed(folder, cutting(inverted, LETTERS))).metadata["tokenizer.ggml.pre"].value == "qwen2"


def test_more_tokens_than_rows(sources: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        made(sources["bytes"], rows=599)
    assert "its tokenizer has 600 tokens, of which " in caught.value.message
    assert caught.value.message.endswith("has the id 599, and the embedding has 599 rows")


def test_bytes_without_a_token_need_an_unknown_token_that_is_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ModelError, match="no token for 255 of the 256 bytes and writes <unk> for them"):
        made(makers.save(tokenizer, tmp_path, {}))


def test_two_tokens_at_one_end(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path)
    both = processors.TemplateProcessing(single="<s> <pad> $A", special_tokens=[("<s>", 0), ("<pad>", 2)])
    changed(folder, lambda tokenizer: setattr(tokenizer, "post_processor", both))
    with pytest.raises(ModelError, match=r"adds 2 tokens to a text, and llama.cpp at most one at either end"):
        made(folder)


def test_another_token_behind_a_text_than_the_one_that_ends_it(tmp_path: Path) -> None:
    folder = changed(makers.byte_level(tmp_path), lambda tokenizer: makers.ends(tokenizer, None, "<pad>"))
    with pytest.raises(ModelError, match="puts '<pad>' behind a text, and names '</s>' as what ends it"):
        made(folder)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": "{"}, "tokenizer.json (cannot be loaded|is not JSON)"),
        (
            {"tokenizer.json": '{"version": "1.0", "model": {"type": "Oracle"}}'},
            "tokenizer.json (cannot be loaded|is not JSON)",
        ),
        ({"tokenizer.model": "\n\x03abc"}, "cannot be loaded"),
    ],
)
def test_files_that_are_no_tokenizer(files: dict[str, str], why: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=why) as caught:
        made(tmp_path)
    assert caught.value.hint
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)


def test_a_kind_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match=r"is a WordLevel, which llama.cpp does not know"):
        made(makers.save(tokenizer, tmp_path, {}))
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)]))
    with pytest.raises(ModelError, match="a Unigram without an unknown token"):
        made(makers.save(unigram, tmp_path, {}))
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("b", -2.0)], 0, byte_fallback=True))
    unigram.decoder = decoders.ByteFallback()
    with pytest.raises(ModelError, match="a Unigram that falls back on bytes"):
        made(makers.save(unigram, tmp_path, {}))


def test_a_text_with_half_of_a_character(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eot_token": "\ud800"}))
    with pytest.raises(ModelError, match=r"tokenizer_config.json has half of a character in a text"):
        made(folder)


def test_two_tokens_with_one_id(tmp_path: Path) -> None:
    folder = edited(makers.byte_level(tmp_path), lambda content: content["model"]["vocab"].update(twice=7))
    with pytest.raises(ModelError, match=r"tokenizer.json gives two tokens one id"):
        made(folder)


def test_a_table_that_is_broken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library panics over one, when it reads it or when it uses it."""
    folder = makers.unigram(tmp_path, replacements={"é": "e"})
    for table in ("", "AAAA", "not base 64", base64.b64encode(bytes.fromhex("0800000000040000ffffffff61")).decode()):
        edited(folder, lambda content: content["normalizer"]["normalizers"][0].update(precompiled_charsmap=table))  # noqa: B023
        with pytest.raises(ModelError, match=r"the tokenizer of .* is broken"):
            made(folder)
    assert "panicked" not in capfd.readouterr().err


def test_scores_that_no_file_can_hold(tmp_path: Path) -> None:
    folder = edited(makers.unigram(tmp_path), lambda content: content["model"]["vocab"].append(["huge", -1e300]))
    with pytest.raises(ModelError, match="scores that no 32 bits hold"):
        made(folder)


def test_settings_that_name_tokens_which_the_file_does_not_have(tmp_path: Path) -> None:
    named = {"600": {"content": "<new>", "special": True}}
    folder = makers.byte_level(tmp_path, settings={"added_tokens_decoder": named})
    with pytest.raises(ModelError, match=r"gives '<new>' the id 600, and its tokenizer.json does not"):
        made(folder)
    changed(folder, lambda tokenizer: tokenizer.add_tokens([AddedToken("<new>", special=True)]))
    assert made(folder).metadata["tokenizer.ggml.tokens"].value[600] == "<new>"
