"""Whole words are masked together, in the shares that were published, and as a function of seed, epoch and row."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.masking import NO_WORD, Masking, tells_words, word_numbers
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import DataError
from tiny_models import tiny_tokenizer

MASK, ORDINARY = 4, tuple(range(1000, 9000))
WORDS = st.lists(st.integers(1, 4), min_size=1, max_size=60)


def masking(probability: float = 0.15, seed: int = 1) -> Masking:
    return Masking(MASK, ORDINARY, probability, seed)


def pieces(lengths: list[int]) -> tuple[list[int], list[int]]:
    """Ids from 100 on, none of them twice, and the words that they are of, between two special tokens."""
    words = [NO_WORD, *itertools.chain(*([word] * length for word, length in enumerate(lengths))), NO_WORD]
    return [2, *range(100, 98 + len(words)), 3], words


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("wordpiece"), kind="wordpiece")


def fate_of(ids: list[int], made: list[int], positions: list[int]) -> str:
    if all(made[position] == MASK for position in positions):
        return "masked"
    if all(made[position] == ids[position] for position in positions):
        return "kept"
    assert all(made[position] in ORDINARY for position in positions), "a word with two fates"
    return "random"


@given(lengths=WORDS, row=st.integers(0, 10**9), epoch=st.none() | st.integers(0, 99), p=st.floats(0.01, 0.99))
def test_words_are_masked_whole_and_labels_are_what_was_there(
    lengths: list[int], row: int, epoch: int | None, p: float
) -> None:
    ids, words = pieces(lengths)
    made, labels = masking(p).apply(ids, words, row=row, epoch=epoch)
    chosen = {word for word, label in zip(words, labels, strict=True) if label != -100}
    assert NO_WORD not in chosen
    for word in {*words} - {NO_WORD}:
        positions = [position for position, other in enumerate(words) if other == word]
        assert [labels[at] for at in positions] == (
            [ids[at] for at in positions] if word in chosen else [-100] * len(positions)
        )
        fate = fate_of(ids, made, positions)
        assert word in chosen or fate == "kept"
    assert (made[0], made[-1]) == (2, 3)
    assert int(p * len(lengths)) <= max(len(chosen), 1)
    assert 1 <= len(chosen) <= max(1, int(p * len(lengths)) + 1)


@given(lengths=WORDS, row=st.integers(0, 10**6), epoch=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_seed_epoch_and_row_alone_decide(lengths: list[int], row: int, epoch: int, seed: int) -> None:
    ids, words = pieces(lengths)
    first = masking(seed=seed).apply(ids, words, row=row, epoch=epoch)
    masking(seed=seed + 1).apply(ids, words, row=row + 1, epoch=epoch)
    assert masking(seed=seed).apply(ids, words, row=row, epoch=epoch) == first
    judged = masking(seed=seed).apply(ids, words, row=row, epoch=None)
    assert masking(seed=seed + 1).apply(ids, words, row=row, epoch=None) == judged, "evaluation hangs on the seed"


def test_every_seed_epoch_and_row_has_a_mask_of_its_own() -> None:
    ids, words = pieces([1] * 200)
    places = [(1, row, epoch) for row in range(4) for epoch in (None, 0, 1, 2)] + [(2, 0, 0)]
    made = [masking(seed=seed).apply(ids, words, row=row, epoch=epoch)[1] for seed, row, epoch in places]
    assert len({tuple(labels) for labels in made}) == len(places)


@pytest.mark.parametrize("p", [0.05, 0.15, 0.4])
def test_the_shares_are_those_of_the_source(p: float) -> None:
    """Of 4,000 rows of 30 words; four standard deviations of a share are allowed."""
    rows, per_row = 4000, 30
    ids, words = pieces([1, 2, 3] * 10)
    fates: Counter[str] = Counter()
    for row in range(rows):
        made, labels = masking(p).apply(ids, words, row=row, epoch=0)
        for word in {word for word, label in zip(words, labels, strict=True) if label != -100}:
            fates[fate_of(ids, made, [at for at, other in enumerate(words) if other == word])] += 1
    chosen = fates.total()
    assert chosen / (rows * per_row) == pytest.approx(p, abs=4 * (0.5 / per_row) / rows**0.5)
    for fate, share in (("masked", 0.8), ("random", 0.1), ("kept", 0.1)):
        assert fates[fate] / chosen == pytest.approx(share, abs=4 * (share * (1 - share) / chosen) ** 0.5)


def test_random_tokens_are_drawn_from_all_that_are_no_special_ones(wordpiece: Any) -> None:
    made = Masking.of(wordpiece, probability=0.15, seed=1)
    assert made.mask_token_id == wordpiece.mask_token_id
    special = {wordpiece.convert_tokens_to_ids(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    assert set(made.ordinary_ids) == set(wordpiece.get_vocab().values()) - special


def rows(tokenizer: Any, *texts: str, limit: int = 64) -> list[dict[str, Any]]:
    data = datasets.Dataset.from_dict({"row": list(range(len(texts))), "text": list(texts)})
    config = DatasetConfig(path="x")
    return list(tokenize_rows(data, tokenizer, task="masked-lm", config=config, max_length=limit))


def test_pieces_of_a_word_have_its_number_and_special_tokens_have_none(wordpiece: Any) -> None:
    (row,) = rows(wordpiece, "the unquick fox [SEP] \N{SNOWMAN} a")
    tokens = wordpiece.convert_ids_to_tokens(row["input_ids"])
    assert set(row) == {"input_ids", "words", "length", "row"}
    assert row["length"] == len(tokens)
    numbers = dict(zip(tokens, row["words"], strict=True))
    assert [numbers[token] for token in ("[CLS]", "[SEP]", "[UNK]")] == [NO_WORD] * 3
    of_word = [number for token, number in zip(tokens, row["words"], strict=True) if token in ("u", "##n", "##q")]
    assert len(of_word) == 3
    assert len(set(of_word)) == 1
    assert len({numbers["the"], numbers["fox"], numbers["a"], of_word[0]}) == 4


def test_rows_are_cut_and_those_without_a_word_dropped(wordpiece: Any) -> None:
    made = rows(wordpiece, "", "the quick brown fox", "\N{SNOWMAN}", limit=4)
    assert [row["row"] for row in made] == [1]
    assert made[0]["words"] == [NO_WORD, 0, 1, NO_WORD]
    with pytest.raises(DataError, match="none of the 2 rows has a token to learn"):
        rows(wordpiece, "", " ")


def test_a_tokenizer_that_takes_a_text_for_one_word_has_its_tokens_masked_one_by_one(
    tmp_path: Path, wordpiece: Any
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        "<mask>": 0,
        "<pad>": 1,
        **{character: 2 + at for at, character in enumerate("abcdefghijklmnop qrstuvwxyz")},
    }
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [])), mask_token="<mask>", pad_token="<pad>"
    )
    assert tells_words(wordpiece)
    assert not tells_words(plain)
    (row,) = rows(plain, "the fox")
    assert row["words"] == list(range(7))
    assert word_numbers([5, 6, 9], [0, 0, None], frozenset({6}), whole=True) == [0, NO_WORD, NO_WORD]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_the_masks_of_its_rows_and_counts_what_is_masked(wordpiece: Any, side: Any) -> None:
    made = rows(wordpiece, "the quick brown fox jumps over the lazy dog", "the dog", "open the file and write")
    how = Masking.of(wordpiece, probability=0.3, seed=5)
    collator = Collator(wordpiece.pad_token_id, side, how)
    batch = collator.of_epoch(3)(made)
    for position, row in enumerate(made):
        ids, labels = how.apply(row["input_ids"], row["words"], row=row["row"], epoch=3)
        real = batch.attention_mask_BT[position].bool()
        assert batch.input_ids_BT[position][real].tolist() == ids
        assert batch.labels[position][real].tolist() == labels
        assert (batch.labels[position][~real] == -100).all()
    assert batch.targets.tolist() == (batch.labels != -100).tolist()
    assert batch.num_soft == batch.num_hard == int(batch.targets.sum()) >= 3
    alone = collator.of_epoch(3)([made[1]])
    assert alone.input_ids_BT[0].tolist() == batch.input_ids_BT[1][batch.attention_mask_BT[1].bool()].tolist()
    assert not collator.of_epoch(4)(made).labels.equal(batch.labels)
    assert collator(made).labels.equal(collator(made).labels)
