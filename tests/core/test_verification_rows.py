"""Rows of a passage: how many positions they hold, that they fit, and that they begin as the model expects."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import UsageError
from entrenar_core.verification.passage import PASSAGE
from entrenar_core.verification.rows import ROW_TOKENS, encoded, rows_of, texts_of
from tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a kind that adds nothing to a text."""
    return tiny_tokenizer(tmp_path_factory.mktemp("plain")).backend_tokenizer


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Which begins a text with <s> and ends it with </s>."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("framed"))
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=ids)
    return tokenizer.backend_tokenizer


@given(positions=st.integers(1, 700), context=st.integers(24, 200), begins=st.booleans())
def test_rows_have_as_many_positions_as_asked_for_and_fit(
    plain: Any, framed: Any, positions: int, context: int, begins: bool
) -> None:
    tokenizer = framed if begins else plain
    rows = rows_of(tokenizer, PASSAGE, positions=positions, context=context)
    whole = encoded(tokenizer, PASSAGE, special=False)
    assert sum(len(row.places) for row in rows) == positions
    for row in rows:
        begin = (tokenizer.token_to_id("<s>"),) if begins else ()
        piece = row.ids[len(begin) :]
        assert row.ids[: len(begin)] == begin
        assert len(row.ids) <= min(context, ROW_TOKENS + 1)
        assert any(whole[at : at + len(piece)] == piece for at in range(len(whole)))
        assert row.places == tuple(range(len(row.ids) - 1))


def test_rows_lie_over_the_whole_passage(plain: Any) -> None:
    whole = encoded(plain, PASSAGE, special=False)
    first, *_, last = rows_of(plain, PASSAGE, positions=3 * ROW_TOKENS, context=4096)
    assert first.ids == whole[: len(first.ids)]
    assert last.ids == whole[-len(last.ids) :]


def test_of_a_short_passage_every_token_is_predicted_and_no_more(plain: Any) -> None:
    text = "the quick brown fox"
    (row,) = rows_of(plain, text, positions=1000, context=64)
    assert row.ids == encoded(plain, text, special=False)
    assert len(row.places) == len(row.ids) - 1


@pytest.mark.parametrize("passage", ["", "t"])
def test_a_passage_without_a_token_to_predict_is_refused(plain: Any, passage: str) -> None:
    with pytest.raises(UsageError, match="no token that a model could predict"):
        rows_of(plain, passage, positions=10, context=64)


def test_rows_for_vectors_are_whole_texts_with_what_frames_them(framed: Any) -> None:
    rows = texts_of(framed, "the fox\n\nthe dog\n\n", ["a river", "  "], context=64)
    assert [row.ids for row in rows] == [
        encoded(framed, text, special=True) for text in ("the fox", "the dog", "a river")
    ]
    assert all(row.ids[0] == framed.token_to_id("<s>") and row.ids[-1] == framed.token_to_id("</s>") for row in rows)


def test_rows_for_vectors_are_cut_to_what_the_model_reads(framed: Any) -> None:
    (row,) = texts_of(framed, "the quick brown fox jumps over the lazy dog " * 9, [], context=16)
    assert len(row.ids) == 16
    assert row.ids[-1] == framed.token_to_id("</s>")
    with pytest.raises(UsageError, match="no text"):
        texts_of(framed, " ", [""], context=16)
