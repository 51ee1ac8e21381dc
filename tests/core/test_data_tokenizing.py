"""Which tokens of a row are learnt: of texts, of completions, of what the assistant says in a chat."""

import itertools
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.rendering import render
from entrenar_core.data.tokenizing import covered, tokenize_rows
from entrenar_core.errors import DataError
from entrenar_core.models.rows import Counting
from tiny_models import tiny_tokenizer

PLAIN = DatasetConfig(path="x")
PROMPTS = DatasetConfig(path="x", prompt_column="q", completion_column="a")
CHATS = DatasetConfig(path="x", messages_column="m")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("wordpiece"), kind="wordpiece")


def tokens(rows: list[dict[str, Any]], tokenizer: Any, config: DatasetConfig, limit: int = 128) -> Any:
    numbered = datasets.Dataset.from_list([{"row": index, **row} for index, row in enumerate(rows)])
    return tokenize_rows(numbered, tokenizer, task="causal-lm", config=config, max_length=limit)


def learnt(row: dict[str, Any], tokenizer: Any) -> str:
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@given(text=st.text(min_size=2, max_size=40))
def test_all_of_a_text_is_learnt_and_its_end(bpe: Any, text: str) -> None:
    (row,) = tokens([{"text": text}], bpe, PLAIN)
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"] == [*bpe(text)["input_ids"], *([] if text.endswith("</s>") else [bpe.eos_token_id])]
    assert row["length"] == len(row["input_ids"])


@given(
    prompt=st.text(alphabet="ab é\n😀", max_size=20), completion=st.text(alphabet="ab é\n😀", min_size=1, max_size=20)
)
def test_of_a_prompt_with_its_completion_the_completion_is_learnt(bpe: Any, prompt: str, completion: str) -> None:
    rows = [{"prompt": prompt, "completion": completion}, {"prompt": "a", "completion": "b"}]
    made = tokens(rows, bpe, PROMPTS)
    row = next(iter(made))
    said = learnt(row, bpe)
    assert said.endswith("</s>")
    if row["row"] == 0:
        assert completion.endswith(said.removesuffix("</s>")) or said.removesuffix("</s>").endswith(completion)
        unlearnt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        assert prompt.startswith(bpe.decode(unlearnt).rstrip("\ufffd"))


def test_a_reasoning_is_learnt_with_a_weight_of_its_own(bpe: Any) -> None:
    config = DatasetConfig(
        prompt_column="p", reasoning_column="r", completion_column="c", reasoning_weight=0.25, completion_weight=0.75
    )
    rows = [
        {"prompt": "the dog:", "reasoning": " it jumps over", "completion": " the river"},
        {"prompt": "the fox:", "reasoning": "", "completion": " runs"},
    ]
    first, second = tokens(rows, bpe, config)
    for row, reasoning, completion in ((first, " it jumps over", " the river</s>"), (second, "", " runs</s>")):
        parts = {
            weight: bpe.decode([t for t, w, label in zip(row["input_ids"], row["weights"], row["labels"], strict=True)
                                if w == weight and label != -100])
            for weight in (0.25, 0.75)
        }  # fmt: skip
        assert parts == {0.25: reasoning, 0.75: completion}
    batch = Collator(bpe.pad_token_id)([first, second])
    assert batch.weights is not None
    assert batch.weights.shape == batch.labels.shape
    counting = Counting(shifted=True)
    weights = counting.weights(batch)
    assert weights is not None
    assert len(weights) == batch.num_soft
    assert set(weights.tolist()) == {0.25, 0.75}
    (plain,) = tokens([{"prompt": "a", "completion": "b"}], bpe, PROMPTS)
    assert "weights" not in plain


def test_only_what_the_assistant_says_in_a_chat_is_learnt(bpe: Any) -> None:
    chat = [
        {"role": "user", "content": "where is the dog"},
        {"role": "assistant", "content": "in the river"},
        {"role": "user", "content": "and the fox"},
        {"role": "assistant", "content": "the fox runs"},
    ]
    (row,) = tokens([{"messages": chat}], bpe, CHATS)
    assert learnt(row, bpe) == "in the river</s>the fox runs</s>"
    assert bpe.decode(row["input_ids"]) == bpe.apply_chat_template(chat, tokenize=False)
    assert bpe.eos_token_id in row["labels"]


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        (None, [{"role": "user", "content": "a"}], "no chat template"),
        ("{{ messages | length }}{{ messages[-1]['content'] }}", None, "turn 2 differently"),
        ("{{ raise_exception('roles must alternate') }}", None, "roles must alternate"),
        ("x", "a text", "a chat is a list"),
        ("x", [{"role": "user", "content": None}], "a `role` and a `content`"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_refused(
    tmp_path: Path, template: str | None, messages: Any, complaint: str
) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.chat_template = template
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match=complaint) as refused:
        render({"row": 3, "messages": turns if messages is None else messages}, CHATS, tokenizer)
    assert refused.value.hint


def test_what_is_longer_than_a_limit_is_cut_and_has_no_end(bpe: Any) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away from the river"
    whole = bpe(text)["input_ids"]
    (row,) = tokens([{"text": text}], bpe, PLAIN, limit=5)
    assert row["input_ids"] == whole[:5]
    assert row["length"] == 5
    (row,) = tokens([{"text": text}], bpe, DatasetConfig(path="x", max_length=4))
    assert row["input_ids"] == whole[:4]
    (row,) = tokens([{"text": text}], bpe, PLAIN, limit=len(whole) + 1)
    assert row["input_ids"] == [*whole, bpe.eos_token_id]


def test_an_end_that_the_tokenizer_adds_is_learnt_and_not_doubled(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer(tmp_path)
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    (row,) = tokens([{"text": "the dog"}], tokenizer, PLAIN)
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_tokens_of_spaces_are_learnt_though_offsets_are_trimmed(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    offsets = tokenizer("a   \n\n b", return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in offsets), "the tokenizer trims nothing: this tests nothing"
    (row,) = tokens([{"text": "a   \n\n b"}], tokenizer, PLAIN)
    assert row["labels"] == row["input_ids"]


def test_rows_without_a_token_to_learn_are_dropped(bpe: Any) -> None:
    rows = [{"text": ""}, {"text": "the dog"}, {"text": ""}]
    assert [row["row"] for row in tokens(rows, bpe, PLAIN)] == [1]
    cut = [{"prompt": "the quick brown fox", "completion": "dog"}, {"prompt": "a", "completion": "dog"}]
    assert [row["row"] for row in tokens(cut, bpe, PROMPTS, limit=3)] == [1]
    with pytest.raises(DataError, match="none of the 2 rows"):
        tokens([{"text": ""}] * 2, bpe, PLAIN)


def test_a_classifiers_rows_keep_their_class_and_their_closing_token(wordpiece: Any) -> None:
    rows = datasets.Dataset.from_dict({"row": [4, 7], "text": ["the quick brown fox"] * 2, "label": [3, -1]})
    made = tokenize_rows(rows, wordpiece, task="sequence-classification", config=PLAIN, max_length=4)
    assert made["labels"][:] == [3, -100]
    assert made["row"][:] == [4, 7]
    assert made["length"][:] == [4, 4]
    assert {ids[-1] for ids in made["input_ids"]} == {wordpiece.sep_token_id}


def test_a_classifiers_empty_row_is_a_pad_token_where_the_tokenizer_adds_none(bpe: Any) -> None:
    rows = datasets.Dataset.from_dict({"row": [0], "text": [""], "label": [1]})
    made = tokenize_rows(rows, bpe, task="sequence-classification", config=PLAIN, max_length=4)
    assert bpe("")["input_ids"] == []
    assert made["input_ids"][:] == [[bpe.pad_token_id]]
    assert made["length"][:] == [1]


def test_processes_and_streams_give_the_same_tokens(bpe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    rows = datasets.Dataset.from_list([{"row": i, "text": "the dog " * (i % 5)} for i in range(40)])

    def made(config: DatasetConfig, data: Any) -> list[Any]:
        return list(tokenize_rows(data, bpe, task="causal-lm", config=config, max_length=9))

    alone = made(PLAIN, rows)
    assert len(alone) == 32
    assert made(DatasetConfig(path="x", num_proc=2), rows) == alone
    assert made(PLAIN, rows.to_iterable_dataset()) == alone
    assert capfd.readouterr() == ("", "")


def test_num_proc_is_how_many_processes_tokenise(bpe: Any, tmp_path: Path) -> None:
    class Recording:
        is_fast, eos_token_id = True, None

        def __call__(self, text: str, **settings: Any) -> Any:
            import os

            (tmp_path / str(os.getpid())).touch()
            return bpe(text, **settings)

    rows = datasets.Dataset.from_list([{"row": i, "text": "the dog"} for i in range(8)])
    tokenize_rows(rows, Recording(), task="causal-lm", config=DatasetConfig(path="x", num_proc=2), max_length=9)
    assert len(list(tmp_path.iterdir())) == 2


@given(
    cuts=st.lists(st.integers(0, 30), min_size=2, max_size=12).map(sorted),
    ends=st.lists(st.integers(0, 30), max_size=6, unique=True).map(sorted),
)
def test_a_token_is_learnt_exactly_if_it_shares_a_character_with_a_span(cuts: list[int], ends: list[int]) -> None:
    offsets = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    characters = {character for start, end in spans for character in range(start, end)}
    assert covered(offsets, spans) == [bool(characters & set(range(*offset))) for offset in offsets]
