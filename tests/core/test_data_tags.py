"""Tags of words: read from every kind of source, carried by a word's first token, refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.names import tagged
from entrenar_core.data.sources import load_rows
from entrenar_core.data.tags import first_tokens, flat_labels, joined, standing
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import DataError
from tiny_models import tiny_tokenizer

TASK = "token-classification"


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("wordpiece"), kind="wordpiece")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("bpe"))


def tokens(tokenizer: Any, rows: list[tuple[list[str], list[int]]], limit: int = 64) -> list[dict[str, Any]]:
    data = datasets.Dataset.from_dict(
        {"row": list(range(len(rows))), "tokens": [row[0] for row in rows], "label": [row[1] for row in rows]}
    )
    return list(tokenize_rows(data, tokenizer, task=TASK, config=DatasetConfig(path="x"), max_length=limit))


@given(
    words=st.lists(st.sampled_from(["the", "fox", "unquick", "don't", "(", "x1", "é", ""]), min_size=1, max_size=8),
)
def test_the_first_piece_of_a_word_carries_its_tag(wordpiece: Any, words: list[str]) -> None:
    """Against the words that the tokenizer itself tells when it is given a list of them."""
    tags = [index % 4 - 1 for index in range(len(words))]
    expected = wordpiece(words, is_split_into_words=True)
    seen: set[int | None] = {None}
    begun = [word if word not in seen and not seen.add(word) else None for word in expected.word_ids()]  # type: ignore[func-returns-value]
    if not any(words):
        with pytest.raises(DataError, match="none of the 1 rows"):
            tokens(wordpiece, [(words, tags)])
        return
    (row,) = tokens(wordpiece, [(words, tags)])
    assert row["input_ids"] == expected["input_ids"]
    assert row["targets"] == [word is not None for word in begun]
    assert row["labels"] == [-100 if word is None or tags[word] < 0 else tags[word] for word in begun]
    assert row["length"] == len(row["input_ids"])


@given(words=st.lists(st.sampled_from(["the", "fox", "😀", "don't", "x"]), min_size=1, max_size=8))
def test_words_of_a_byte_level_tokenizer_are_told_by_their_characters(bpe: Any, words: list[str]) -> None:
    (row,) = tokens(bpe, [(words, list(range(len(words))))])
    assert bpe.decode(row["input_ids"]) == " ".join(words)
    assert [label for label in row["labels"] if label >= 0] == list(range(len(words)))
    starts = [position for position, target in enumerate(row["targets"]) if target]
    cut = [row["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert [bpe.decode(ids).strip() for ids in cut] == words


@given(st.lists(st.text(alphabet="ab é😀", max_size=3), max_size=8))
def test_joined_words_are_where_they_are_said_to_be(words: list[str]) -> None:
    text, spans = joined(words)
    assert [text[start:end] for start, end in spans] == words


def test_a_token_over_several_words_begins_the_first_and_none_begins_the_others() -> None:
    spans = [(0, 2), (3, 3), (4, 6), (7, 9)]
    assert first_tokens([(0, 0), (0, 5), (5, 6), (6, 9), (0, 0)], spans) == [None, 0, None, 3, None]
    assert first_tokens([(0, 1), (1, 2), (3, 6), (6, 7), (7, 9)], spans) == [0, None, 2, None, 3]


def test_words_that_are_cut_off_count_for_nothing(wordpiece: Any) -> None:
    (row,) = tokens(wordpiece, [(["the", "quick", "fox"], [1, 2, 3])], limit=4)
    assert row["labels"] == [-100, 1, 2, -100]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_counts_words_with_and_without_tags(wordpiece: Any, side: Any) -> None:
    made = tokens(wordpiece, [(["the", "unquick", "fox"], [1, -1, 0]), (["dog"], [2])])
    batch = Collator(0, side)(made)
    assert batch.targets.sum(1).tolist() == [3, 1]
    assert (batch.num_soft, batch.num_hard) == (4, 3)
    assert batch.labels[batch.targets].tolist() == [1, -100, 0, 2]
    assert (batch.labels[~batch.targets] == -100).all()


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def good(count: int = 10) -> list[dict[str, Any]]:
    return [{"tokens": ["a", "fox", str(i)], "tags": ["O", "B-X", ("O", "B-Y")[i % 2]]} for i in range(count)]


def loaded(folder: Path, rows: list[dict[str, Any]], names: list[str] | None = None, **settings: Any) -> Any:
    config = DatasetConfig(path=write(folder, rows), label_column="tags", **settings)
    return load_rows(config, task=TASK, seed=1, label_names=names)


def test_names_are_found_in_all_rows_and_sorted(tmp_path: Path) -> None:
    rows = loaded(tmp_path, [*good(), {"tokens": ["x"], "tags": None}, {"tokens": ["y", "z"], "tags": [None, "O"]}])
    assert rows.label_names == ("B-X", "B-Y", "O")
    by_row = {row["row"]: row for row in [*rows.train, *rows.evaluation]}
    assert by_row[3]["label"] == [2, 0, 1]
    assert by_row[10] == {"row": 10, "tokens": ["x"], "label": [-1]}
    assert by_row[11]["label"] == [-1, 2]
    assert all(max(row["label"]) >= 0 for row in rows.evaluation)
    assert rows.num_labelled_rows == sum(mark == 0 for mark in standing(rows.train["label"]))
    assert rows.num_train_rows == rows.num_labelled_rows + 1


def test_labels_of_rows_are_kept_or_dropped_whole(tmp_path: Path) -> None:
    rows = loaded(tmp_path, good(30), labelled_rows=4, eval_fraction=0.2)
    labels = list(rows.train["label"])
    assert len(rows.evaluation) == 6
    assert rows.num_labelled_rows == sum(mark == 0 for mark in standing(labels)) == 4
    assert sum(row == [-1, -1, -1] for row in labels) == 20
    assert len(flat_labels(labels)) == 12


def test_tags_may_be_numbers_of_declared_names_as_in_a_parquet_file(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
        }
    )
    rows = {"tokens": [["a", "b"]] * 10, "tags": [[1, 2], [0, -1]] * 5}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    config = DatasetConfig(path=str(tmp_path / "train.parquet"), label_column="tags")
    found = load_rows(config, task=TASK, seed=1)
    assert found.label_names == ("O", "B-X", "I-X")
    assert {tuple(row["label"]) for row in found.train} == {(1, 2), (0, -1)}
    head = load_rows(config, task=TASK, seed=1, label_names=["I-X", "B-X", "O"])
    assert {tuple(row["label"]) for row in head.train} == {(1, 0), (2, -1)}


def test_numbers_are_classes_and_minus_100_is_none(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": [2, -100, i % 2]} for i in range(8)]
    found = loaded(tmp_path, rows)
    assert found.label_names == ("0", "1", "2")
    assert {tuple(row["label"]) for row in found.train} <= {(2, -1, 0), (2, -1, 1)}


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "row 10 has 2 words in column `tokens` and 1 tag in column `tags`",
            "give one tag for each word; null for a word without one",
        ),
        (
            {"tokens": ["a", None], "tags": ["O", "O"]},
            "row 10 has a word in column `tokens` that is no text",
            "write a list of texts",
        ),
        (
            {"tokens": None, "tags": ["O"]},
            "row 10 has nothing in column `tokens`",
            "remove such rows, or fill them with an empty text or list",
        ),
    ],
)
def test_rows_that_do_not_fit_are_told_by_their_number(
    tmp_path: Path, row: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, [*good(), row])
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_a_tag_that_the_head_does_not_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, good(), names=["O", "B-X"])
    assert refused.value.message == "label 'B-Y' in column `tags` is unknown to the model's head, which has O, B-X"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"tokens": "a b", "tags": ["O", "O"]}] * 4, {}, "column `tokens` holds string, not lists of words"),
        ([{"tokens": [1, 2], "tags": ["O", "O"]}] * 4, {}, "column `tokens` holds lists of int64, not lists of words"),
        ([{"tokens": ["a"], "tags": "O"}] * 4, {}, "column `tags` holds string, not lists of tags"),
        ([{"words": ["a"], "tags": ["O"]}] * 4, {}, "`dataset.tokens_column`: the data has no column `tokens`"),
        (
            good(),
            {"text_column": "t"},
            f"`dataset.text_column` is not read: {TASK} reads tokens_column and label_column",
        ),
        (good(), {"streaming": True}, f"`dataset.streaming` is not for {TASK}, whose tags are all read first"),
        (good(), {"mask_probability": 0.2}, f"`dataset.mask_probability` is for masked-lm, and the task is {TASK}"),
        (
            [{"tokens": ["a"], "tags": ["O"]}] * 4,
            {},
            "the training rows have only the label 'O' in column `tags`",
        ),
    ],
)
def test_what_is_no_data_of_tagged_words_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, rows, **settings)
    assert refused.value.message == message
    assert refused.value.hint


def test_names_in_a_docstring_are_tagged_by_what_they_spell() -> None:
    kinds = {"path": "PARAMETER", "close": "FUNCTION", "read_all": "FUNCTION", "Reader": "CLASS", "a": "PARAMETER"}
    words, tags = tagged("Close a path of Reader.close: close() or read_all, self.path; close it.", kinds)
    listed = [(word, tag) for word, tag in zip(words, tags, strict=True) if tag != "O"]
    assert listed == [
        ("path", "B-PARAMETER"),
        ("Reader", "B-CLASS"),
        (".", "I-CLASS"),
        ("close", "I-CLASS"),
        ("close", "B-FUNCTION"),
        ("read_all", "B-FUNCTION"),
        ("self", "B-PARAMETER"),
        (".", "I-PARAMETER"),
        ("path", "I-PARAMETER"),
    ]
