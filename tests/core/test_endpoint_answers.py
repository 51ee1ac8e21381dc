"""What a server says is taken only where it can be log-probabilities of tokens, and nothing of it is lost."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.data.collating import Collator
from entrenar_core.errors import ModelError
from entrenar_core.losses import DIVERGENCES, Logits, divergence_from
from entrenar_core.losses.sparse import TopKRows
from entrenar_core.teachers.cache.kinds import TaughtRow, TopK
from entrenar_core.teachers.endpoint.answers import Answer, Question, Said, answer_of
from entrenar_core.teachers.endpoint.source import arrays_of, questions_of

URL = "http://127.0.0.1:1/v1"
V = 30
ROW = Question((3, 1, 4, 1, 5), (1, 3), "row 7")


def taken(*said: Said, k: int = 3) -> Answer:
    return answer_of(ROW, said, k, V, URL)


def entries(*log_p: Any) -> list[tuple[Any, Any]]:
    return [(10 + place, value) for place, value in enumerate(log_p)]


GOOD = Said(entries(-1.0, -2.0, -3.0), -9.0)


def test_the_likeliest_come_first_and_the_rest_is_what_is_left() -> None:
    said = Said([(8, -3.0), (9, -1.0), (4, -7.0), (2, -2.0)], -7.0)
    found = taken(said, Said(entries(math.log(0.5), math.log(0.25), math.log(0.25)), -20.0))
    assert found.tokens_NK.tolist() == [[9, 2, 8], [10, 11, 12]]
    assert found.log_p_NK[0].tolist() == [-1.0, -2.0, -3.0]
    assert found.log_rest_N[0] == pytest.approx(math.log(1 - math.exp(-1) - math.exp(-2) - math.exp(-3)), abs=1e-6)
    assert found.log_rest_N[1] < -15, "rounding leaves nothing that counts"
    assert found.label_N.tolist() == [-7.0, -20.0]


def test_a_label_is_that_of_one_of_the_likeliest_where_the_server_tells_none() -> None:
    found = taken(Said([(1, -1.0), (2, -2.0), (4, -3.0)]), Said([(1, -1.0), (2, -2.0), (3, -3.0)]))
    assert found.label_N[0] == -3.0
    assert math.isnan(found.label_N[1])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(entries(-1.0, -2.0)), "tells 2 of the 3 likeliest"),
        (Said(entries(-1.0, -2.0, math.nan)), "'nan' is no log-probability"),
        (Said(entries(-1.0, -2.0, -math.inf)), "'-inf' is no log-probability"),
        (Said(entries(-1.0, -2.0, 0.5)), "'0.5' is no log-probability"),
        (Said(entries(-1.0, -2.0, None)), "'None' is no log-probability"),
        (Said(entries(-1.0, -2.0, "-3")), "'-3' is no log-probability"),
        (Said(entries(-1.0, -2.0, True)), "'True' is no log-probability"),
        (Said(entries(-0.1, -0.2, -0.3)), "add up to 2.4"),
        (Said([(1, -1.0), (1, -2.0), (2, -3.0)]), "one token twice"),
        (Said([(1, -1.0), (V, -2.0), (2, -3.0)]), "'30' is no id of a token: the vocabulary has 30"),
        (Said([(1, -1.0), (-1, -2.0), (2, -3.0)]), "'-1' is no id"),
        (Said([(1, -1.0), ("5", -2.0), (2, -3.0)]), "'5' is no id"),
        (Said([(1, -1.0), (None, -2.0), (2, -3.0)]), "'None' is no id"),
        (Said(entries(-1.0, -2.0, -3.0), math.nan), "'nan' is no log-probability"),
        (Said(entries(-1.0, -2.0, -3.0), -2.5), "among the likeliest it is missing"),
        (Said([(1, -1.0), (2, -2.0), (5, -3.0)], -4.0), "among the likeliest it has -3.0000"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(said: Said, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        taken(GOOD, said)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{URL}: row 7, after 4 tokens: ")
    assert caught.value.hint


@given(seed=st.integers(0, 200), k=st.integers(1, 12), vocabulary=st.integers(13, 60))
def test_what_a_cache_keeps_of_it_is_what_it_keeps_of_a_model_that_says_the_same(
    seed: int, k: int, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(4, vocabulary, generator=generator) * 3
    ids = tuple(torch.randint(vocabulary, (5,), generator=generator).tolist())
    question, log_p_NV = Question(ids, (0, 1, 2, 3), "row 0"), logits_NV.log_softmax(-1)
    said = [
        Said(list(zip(tokens.tolist(), log_p.tolist(), strict=True)), float(log_p_V[following]))
        for log_p_V, following in zip(log_p_NV, ids[1:], strict=True)
        for log_p, tokens in [log_p_V.topk(k)]
    ]
    kind = TopK(k, 1.0, 1.0, vocabulary)
    expected = kind.kept(TaughtRow(Logits(logits_NV), torch.tensor(ids[1:]), b""))
    found = arrays_of(answer_of(question, said, k, vocabulary, URL), vocabulary)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=2e-5, err_msg=name)
    student = torch.randn(4, vocabulary, generator=generator)
    core = DIVERGENCES["forward_kl"].make()
    kept, live = (divergence_from(kind.targets(arrays, "cpu"), core, student) for arrays in (found, expected))
    torch.testing.assert_close(kept, live, rtol=1e-3, atol=1e-3)


def test_at_another_temperature_nothing_is_made_up() -> None:
    rows = TopKRows(torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5]]), (1.0,), V)
    core = DIVERGENCES["forward_kl"].make()
    assert divergence_from(rows, core, torch.zeros(1, V)).isfinite().all()
    with pytest.raises(ValueError, match="known at temperature 1 alone"):
        divergence_from(rows, core, torch.zeros(1, V), 2.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_asked_for_as_its_rows_are_read(side: Any) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "row": 11},
        {"input_ids": [1, 2, 3, 4, 9], "labels": [-100, -100, -100, 4, -100], "row": 12},
        {"input_ids": [1, 2], "labels": [-100, -100], "row": 13},
    ]
    batch = Collator(0, side)(rows)
    found = list(questions_of(batch))
    assert [(one.ids, one.places, one.name) for one in found] == [
        ((5, 6, 7), (0, 1), "row 11"),
        ((1, 2, 3, 4, 9), (2,), "row 12"),
        ((1, 2), (), "row 13"),
    ]
    assert found[1].needed == (1, 2, 3, 4), "what follows the last that counts is not sent"
    assert sum(len(one.places) for one in found) == batch.num_soft
