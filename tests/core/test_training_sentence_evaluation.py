"""What sentence encoders are asked, and what their vectors score."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import DataError
from entrenar_core.training import sentence_evaluation
from entrenar_core.training.sentence_evaluation import halves_of, questions_of, score_sentences

TEXTS = ["open the file", "close the file now", "run", "x", ""]


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        ("open the file now", ("open the", "file now")),
        ("open the file", ("open", "the file")),
        ("  two\n words ", ("two", "words")),
        ("word", ("wo", "rd")),
        ("日本語", ("日", "本語")),
        ("x", None),
        (" ", None),
    ],
)
def test_a_text_is_cut_between_words_or_characters(text: str, halves: tuple[str, str] | None) -> None:
    assert halves_of(text) == halves


@given(text=st.text())
def test_halves_hold_all_that_is_not_white_space(text: str) -> None:
    halves = halves_of(text)
    if halves is None:
        assert len("".join(text.split())) < 2
    else:
        assert all(halves)
        assert "".join("".join(halves).split()) == "".join(text.split())


def test_without_labels_halves_are_asked_for_and_equal_ones_are_equally_right() -> None:
    asked = questions_of([*TEXTS, "shut the file now"], None, "label")
    assert asked.halved
    assert asked.whole == 6
    assert asked.texts[6:] == ("open", "close the", "r", "shut the", "the file", "file now", "un", "file now")
    assert asked.labels_N.tolist() == [0, 1, 2, 1]


def test_with_labels_rows_are_asked_for() -> None:
    asked = questions_of(TEXTS, [0, 1, 0, -1, 2], "label")
    assert not asked.halved
    assert asked.texts == tuple(TEXTS)


def test_where_nothing_can_be_asked_the_run_ends() -> None:
    with pytest.raises(DataError, match="no two evaluation rows have the same label in column `topic`"):
        questions_of(TEXTS, [0, 1, -1, -1, 2], "topic")
    with pytest.raises(DataError, match="no evaluation text has two halves"):
        questions_of(["x", ""], None, "label")


def test_of_many_rows_some_are_drawn_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_evaluation, "MOST_ROWS", 10)
    texts = [f"row {number}" for number in range(50)]
    first, second = (questions_of(texts, [int(text[4:]) % 3 for text in texts], "label") for _ in range(2))
    assert first.texts == second.texts
    assert first.whole == 10
    assert first.labels_N.tolist() == [int(text[4:]) % 3 for text in first.texts]


# ── Scores ──


def test_halves_that_are_each_nearest_to_their_own_score_all() -> None:
    asked = questions_of(["a b", "c d", "e f"], None, "label")
    corners = torch.eye(3)
    scores = score_sentences(torch.cat([corners, corners, corners * 2]), asked)
    assert (scores.accuracy, scores.mean_average_precision) == (1.0, 1.0)
    assert (scores.examples, scores.targets) == (3, 3)
    assert (scores.cosine, scores.rank_correlation, scores.cross_entropy) == (None, None, None)
    turned = score_sentences(torch.cat([corners, corners, corners.roll(1, 0)]), asked)
    assert turned.accuracy == 0.0


def test_rows_without_a_label_or_a_like_are_in_the_way_and_are_not_queries() -> None:
    asked = questions_of(["a", "b", "c", "d"], [0, 0, 1, -1], "label")
    near = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.0, -1.0]])
    scores = score_sentences(near, asked)
    assert scores.targets == 2
    assert scores.examples == 4
    assert scores.accuracy == 0.0, "the third row is nearer to both"
    assert scores.mean_average_precision == pytest.approx((1 / 3 + 1 / 2) / 2), (
        "of equal cosines the wrong one is first"
    )


def test_rows_are_compared_with_the_teachers_and_halves_are_not() -> None:
    asked = questions_of(["a b", "c d", "e f"], None, "label")
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    other = torch.cat([vectors[:3] * 5, -vectors[3:]])
    scores = score_sentences(vectors, asked, other)
    assert scores.cosine == pytest.approx(1.0)
    assert scores.rank_correlation == pytest.approx(1.0)
    wider = score_sentences(vectors, asked, torch.cat([other, torch.zeros(9, 2)], 1))
    assert wider.cosine is None
    assert wider.rank_correlation == pytest.approx(1.0)
