"""What beside the vocabulary goes into a GGUF: tokens with a role, the ends of a text, templates, what was added."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, trainers

import tokenizer_makers as makers
from entrenar_core.conversion.tokens import TRIAL_TEXTS, TokenizerMetadata, tokenizer_metadata
from entrenar_core.conversion.tokens.scores import disagreement, merged, scores_of
from llama_tokens import LlamaTokens, vocabulary_file

ROWS = 1000
SPACE = makers.SPACE


def made(folder: Path, config: Mapping[str, Any] | None = None) -> TokenizerMetadata:
    return tokenizer_metadata(folder, config=config or {}, vocab_size=ROWS, architecture="llama")


def values(found: TokenizerMetadata) -> dict[str, Any]:
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.value for key, value in found.metadata.items()}


def library(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def with_added(folder: Path, *tokens: AddedToken) -> Path:
    tokenizer = library(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def assert_alike(folder: Path, texts: tuple[str, ...], *, differing: tuple[str, ...] = ()) -> None:
    """llama.cpp cuts these texts as the library does; in the others it is known to differ, and does."""
    found, tokenizer = made(folder), library(folder)
    with LlamaTokens({"file": vocabulary_file(folder / "file.gguf", found.metadata)}) as llama:
        for text, ids in zip(texts, llama.ids("file", texts), strict=True):
            assert ids == tokenizer.encode(text).ids, text
            assert not found.may_differ(text), text
        for text, ids in zip(differing, llama.ids("file", differing), strict=True):
            assert ids != tokenizer.encode(text).ids, text
            assert found.may_differ(text), text


@pytest.mark.parametrize("first", ["<s>", None])
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_the_ends_are_those_of_the_file_as_in_transformers(
    settings: dict[str, bool], first: str | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = makers.byte_level(tmp_path, first=first, settings=settings)
    found = values(made(folder))
    assert (found["add_bos_token"], found["add_eos_token"]) == (first is not None, False)
    ids = AutoTokenizer.from_pretrained(folder)("a")["input_ids"]
    assert ids == [*[found["bos_token_id"]] * found["add_bos_token"], library(folder).token_to_id("a")]


def test_roles_are_told_by_id(tmp_path: Path) -> None:
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "cls_token": "<pad>", "sep_token": "</s>"}
    found = values(made(makers.byte_level(tmp_path, settings=settings)))
    ids = {key: value for key, value in found.items() if key.endswith("_token_id")}
    assert ids == {
        "bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 2, "cls_token_id": 2, "seperator_token_id": 1,
    }  # fmt: skip


def test_of_bert_the_first_token_is_the_one_for_classes(tmp_path: Path) -> None:
    found = values(made(makers.wordpiece(tmp_path)))
    ids = {key.removesuffix("_token_id"): value for key, value in found.items() if key.endswith("_token_id")}
    assert ids == {"padding": 0, "unknown": 1, "cls": 2, "bos": 2, "seperator": 3, "mask": 4}
    assert (found["add_bos_token"], found["add_sep_token"]) == (True, True)
    assert found["tokens"][:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = {token if token.startswith("##") else f" {token}" for token in library(tmp_path).get_vocab()}
    spelled = [token for token in found["tokens"][5:] if not token.startswith("[PAD")]
    assert all(token.replace(SPACE, " ", 1) in words or f"##{token}" in words or token in words for token in spelled)


def test_config_json_names_what_the_tokenizer_does_not(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path, settings={"eos_token": None, "bos_token": None, "pad_token": "<none>"})
    bare = made(folder)
    assert "eos_token_id" not in values(bare)
    assert any("names no token that ends a text" in note for note in bare.notes)
    assert any("names the pad token '<none>'" in note for note in bare.notes)
    found = values(made(folder, {"eos_token_id": [1, 2], "bos_token_id": 0}))
    assert (found["bos_token_id"], found["eos_token_id"], found["eot_token_id"]) == (0, 1, 2)
    assert "eos_token_id" not in values(made(folder, {"eos_token_id": 300})), "a letter is not what ends a text"


def test_templates_are_found_wherever_they_lie(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]
    folder = makers.byte_level(tmp_path, settings={"chat_template": named})
    found = values(made(folder))
    assert (found["chat_template"], found["chat_template.tool_use"], found["chat_templates"]) == (
        "d",
        "t",
        ("tool_use",),
    )
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    found = values(made(folder))
    assert (found["chat_template"], found["chat_template.rag"]) == ("file", "r")
    assert found["chat_templates"] == ("tool_use", "rag")


@pytest.mark.real_models
def test_added_tokens_are_found_in_a_text(tmp_path: Path) -> None:
    plain, control = AddedToken("<think>", normalized=False), AddedToken("<|go|>", normalized=False, special=True)
    spaced = AddedToken("two words", normalized=False)
    texts = ("a<think>b</think> <|go|>x", "say two words, two  words", "<think><think>", *TRIAL_TEXTS)
    for folder in (makers.byte_level(tmp_path / "b"), makers.sentence_piece(tmp_path / "s")):
        with_added(folder, plain, control, spaced)
        types = dict(typed_tokens(values(made(folder))))
        assert (types["<think>"], types["<|go|>"], types["two words"]) == (4, 3, 4)
        assert_alike(folder, texts)


def typed_tokens(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return list(zip(found["tokens"], found["token_type"], strict=True))


@pytest.mark.real_models
def test_tokens_that_take_spaces_in_are_told(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path)
    with_added(folder, AddedToken("<|right|>", rstrip=True, normalized=False), AddedToken("whole", single_word=True))
    notes = made(folder).notes
    assert any(note.startswith("<|right|> takes in white space beside them") for note in notes)
    assert any(note.startswith("whole is found only as whole words") for note in notes)
    assert_alike(folder, ("no such token",), differing=("<|right|> a", "unwholesome"))


@pytest.mark.real_models
def test_tokens_that_overlap_are_told(tmp_path: Path) -> None:
    folder = makers.byte_level(tmp_path)
    with_added(folder, AddedToken("<aa>", normalized=False), AddedToken("a><bbbb", normalized=False))
    notes = made(folder).notes
    assert any("the added token <aa> ends as a><bbbb starts" in note and "'<aa><bbbb'" in note for note in notes)
    assert_alike(folder, ("<aa> a><bbbb", "<aa>"), differing=("x <aa><bbbb y",))


@pytest.mark.real_models
def test_runs_of_spaces_that_were_added_are_merged_too(tmp_path: Path) -> None:
    """As in Gemma: the runs are among the added tokens, and made by merges whose order is not that of scores."""
    runs = [SPACE * length for length in range(2, 17)]
    lengths = [(left, run - left) for run in range(2, 17) for left in range(1, run)]
    merges = [(SPACE * left, SPACE * right) for left, right in sorted(lengths, key=lambda cut: (-cut[0], -cut[1]))]
    letters = sorted({letter for text in TRIAL_TEXTS for letter in text} | {SPACE})
    tokens = dict.fromkeys([*makers.SPECIALS, *makers.OCTETS, *runs, *(letter for letter in letters if letter != " ")])
    ids = {token: id_ for id_, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    source = library(makers.sentence_piece(tmp_path / "source", spaces="never"))
    tokenizer.normalizer, tokenizer.decoder = source.normalizer, source.decoder
    tokenizer.add_special_tokens(list(makers.SPECIALS))
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    makers.ends(tokenizer, "<s>")
    folder = makers.save(tokenizer, tmp_path / "runs", makers.ROLES)
    found = values(made(folder))
    assert found["model"] == "llama"
    assert {kind for token, kind in typed_tokens(found) if token in runs} == {1}
    assert_alike(folder, (*TRIAL_TEXTS, *(f"a{' ' * count}b" for count in range(40))))


def test_older_forms_are_read_through_transformers(tmp_path: Path) -> None:
    """Of words a vocab.txt, of bytes vocab.json with merges.txt: the class of the model has the other rules."""
    words, qwen = makers.wordpiece(tmp_path / "words"), makers.byte_level(tmp_path / "bytes", pre="qwen2")
    vocabulary = library(words).get_vocab()
    lines = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n"
    older = folder_of(tmp_path / "bert", {"config.json": '{"model_type": "bert"}', "vocab.txt": lines})
    ours, theirs = values(made(older)), values(made(words))
    assert (ours["tokens"], ours["model"], ours["bos_token_id"]) == (theirs["tokens"], "bert", 2)
    assert sorted(file.name for file in older.iterdir()) == ["config.json", "vocab.txt"]
    model = json.loads(library(qwen).to_str())["model"]
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n"
    files = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": merges, "config.json": '{"model_type": "qwen2"}'}
    found = made(folder_of(tmp_path / "qwen", files))
    ours, theirs = values(found), values(made(qwen))
    assert (ours["pre"], ours["merges"]) == ("qwen2", theirs["merges"])
    assert any("NFC" in note for note in found.notes), "transformers' class of Qwen 2 composes accents"


def folder_of(place: Path, files: Mapping[str, str]) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8")
    return place


@given(st.text(alphabet="abcd ", max_size=30), st.integers(0, 5))
def test_merging_is_that_of_the_library(text: str, seed: int) -> None:
    corpus = ["abcabcdab cab dabcabda abcd"[seed:], "a b ab cd dcba bacd"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator([*corpus, "abcd "], trainers.BpeTrainer(vocab_size=25, show_progress=False))
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    places = {merge: -float(place) for place, merge in enumerate(merges)}
    assert merged(text, places.get) == tokenizer.encode(text).tokens


def test_scores_tell_merges_where_every_cut_is_one() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc"]
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    assert disagreement(merges, pieces) is None
    assert scores_of(merges) == {"ab": 0, "bc": -1, "abc": -2}
    assert disagreement(merges[:3], pieces) == "'ab' and 'c' are not merged, though 'abc' is a token"
    assert all(before > after for before, after in pairwise(scores_of(merges).values()))


def test_merges_that_overlap_are_tried_on_texts() -> None:
    """The first merge of `hip` is before that of `sh`, and its other after it: "ship" shows which of the two counts."""
    pieces = ["s", "h", "i", "p", "hi", "ip", "sh", "hip"]
    overlapping = [("hi", "p"), ("i", "p"), ("s", "h"), ("h", "ip"), ("h", "i")]
    told = disagreement(overlapping, pieces)
    assert told is not None
    assert told.startswith("the merges of its tokens overlap, so that 'The old lighthouse keeper counts ships a'")
    assert disagreement([overlapping[0], overlapping[3], *overlapping[1:3], overlapping[4]], pieces) is None
