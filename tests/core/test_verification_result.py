"""What is held against a file: the limit of its type, or what noise of that size costs its original."""

from dataclasses import replace
from itertools import pairwise

import pytest

from entrenar_core.errors import UsageError
from entrenar_core.verification.comparing import Distances
from entrenar_core.verification.limits import LIMITS, MARGIN, limits_of
from entrenar_core.verification.result import (
    Predictions,
    TextAgreement,
    TextDifference,
    VectorAgreement,
    Verification,
    prediction_reasons,
    vector_reasons,
)

EQUAL = Distances(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
ALIKE = Predictions(100, 10, 1.0, True, EQUAL, 20.0, 20.0)
Q4 = LIMITS["q4_0"]


def far(noise: Distances | None = None, **distances: float) -> Predictions:
    return replace(ALIKE, distances=replace(EQUAL, **distances), noise=noise)


def test_nothing_is_held_against_a_file_at_its_limits() -> None:
    assert prediction_reasons(far(kl_mean=Q4.kl), Q4) == []
    assert vector_reasons(VectorAgreement(3, "mean", Q4.cosine, 1.0), Q4) == []


def test_a_file_beyond_its_limit_may_lose_so_much_as_noise_does_with_a_margin() -> None:
    noise = replace(EQUAL, kl_mean=1.0)
    assert prediction_reasons(far(kl_mean=1.9), Q4)
    assert prediction_reasons(far(noise, kl_mean=MARGIN * 0.99), Q4) == []
    (reason,) = prediction_reasons(far(noise, kl_mean=MARGIN * 1.01), Q4)
    assert reason == "its predictions differ by a KL divergence of 2.02 nats on average, beyond 2"
    assert vector_reasons(VectorAgreement(3, "mean", 0.81, 0.9, noise_min=0.9), Q4) == []
    assert vector_reasons(VectorAgreement(3, "mean", 0.79, 0.9, noise_min=0.9), Q4)


def test_small_noise_makes_no_limit_smaller() -> None:
    assert prediction_reasons(far(EQUAL, kl_mean=Q4.kl), Q4) == []
    assert vector_reasons(VectorAgreement(3, "mean", Q4.cosine, 1.0, noise_min=1.0), Q4) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perplexity_is_beyond_its_limit_when_chance_does_not_explain_it(sign: int) -> None:
    assert prediction_reasons(far(loss=sign * 0.5, loss_error=0.2), Q4) == []
    (reason,) = prediction_reasons(far(loss=sign * 0.5, loss_error=0.1), Q4)
    assert "they differ by more than 15" in reason


def test_a_difference_is_held_against_types_that_promise_one() -> None:
    (reason,) = prediction_reasons(far(difference_max=0.03), LIMITS["f32"])
    assert "differs by 0.03, beyond 0.02" in reason
    assert prediction_reasons(far(difference_max=0.03), LIMITS["f16"]) == []


def test_one_text_that_is_cut_otherwise_fails_a_file() -> None:
    difference = TextDifference("a text", False, (1, 2, 3, 4), (1, 2, 3, 5))
    texts = TextAgreement(7, 6, difference)
    found = Verification("q4_0", Q4, texts, ALIKE, None)
    assert not found.passed
    assert found.reasons == (f"llama.cpp cuts 1 of 7 texts otherwise: {difference}",)
    assert replace(found, texts=TextAgreement(7, 7)).passed


def test_a_difference_between_texts_is_shown_from_where_it_begins() -> None:
    ids = tuple(range(100))
    other = (*ids[:50], 7, *ids[51:])
    shown = str(TextDifference("x" * 99, False, ids, other))
    assert shown == (
        f"'{'x' * 60}'… is 48 49 50 51 52 53 54 55 to its tokenizer from token 49 on, "
        "and 48 49 7 51 52 53 54 55 to llama.cpp"
    )
    assert str(TextDifference("", True, (1,), ())) == "'' is 1 to its tokenizer, and nothing to llama.cpp"
    assert str(TextDifference("a", True, (1, 2), (1, 2, 3))).endswith("1 2 to its tokenizer, and 1 2 3 to llama.cpp")


def test_finer_types_are_held_to_more() -> None:
    names = ["f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
    for finer, coarser in pairwise(names):
        a, b = LIMITS[finer], LIMITS[coarser]
        assert a.kl < b.kl
        assert a.error < b.error
        assert a.cosine > b.cosine
        assert a.perplexity <= b.perplexity


def test_types_are_found_in_any_case_and_unknown_ones_refused() -> None:
    assert limits_of("Q4_K_M") is LIMITS["q4_k_m"]
    with pytest.raises(UsageError, match="of the type q9_9 may differ is not known"):
        limits_of("q9_9")
