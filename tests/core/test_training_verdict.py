"""What a report concludes: exact where there is a formula, and silent where there is nothing to say."""

import pytest
from scipy.stats import binomtest

from entrenar_core.config import parse_config
from entrenar_core.reports import Scores
from entrenar_core.training.verdict import (
    interval,
    larger,
    majority_accuracy,
    perplexity_ratio,
    quality,
    retention,
    warnings,
)

NOT_WORTH_IT = "the teacher is no better than the student trained without it: distilling from it is not worth while"
CONFIG = {"teacher": {"model_id": "a/b"}, "student": {"model_id": "c/d"}, "dataset": {"path": "x.jsonl"}}


def scores(accuracy: float, examples: int = 500, perplexity: float | None = None) -> Scores:
    return Scores(examples, examples, 1.0 - accuracy, accuracy, perplexity=perplexity)


def told(
    student: Scores, baseline: Scores | None = None, majority: float | None = 0.1, **training: object
) -> list[str]:
    config = parse_config({**CONFIG, "training": training})
    return list(warnings(config, student, baseline, scores(0.8), majority))


def told_of(distillation: dict[str, object], teacher: float = 0.8, before: float = 0.1) -> list[str]:
    config = parse_config({**CONFIG, "distillation": distillation})
    return list(warnings(config, scores(0.1), None, scores(teacher), 0.2, scores(before)))


def test_scores_of_a_head_that_no_loss_trains_are_told_for_what_they_are() -> None:
    (said,) = told_of({"losses": [{"name": "hidden_mse"}, {"name": "attention_mse"}]})
    assert said.startswith("no loss looks at the student's answers")
    (said,) = told_of({"losses": [{"name": "hidden_mse"}, {"name": "cross_entropy"}]})
    assert "commonest class" in said


def test_a_student_that_is_no_smaller_is_told() -> None:
    assert list(larger(67_000_000, 22_700_000)) == ["the student has 3 times the parameters of its teacher"]
    assert list(larger(4, 4)) == []


def test_a_teacher_that_knows_nothing_is_told() -> None:
    assert "the teacher is no better than always giving the commonest class" in told_of({}, teacher=0.2)
    assert "the teacher is no better than the student was before training" in told_of({}, teacher=0.5, before=0.6)
    assert not [said for said in told_of({}, teacher=0.5, before=0.4) if "teacher" in said]


@pytest.mark.parametrize("where", ["temperature", "alpha"])
def test_a_loss_that_schedules_move_is_not_compared(where: str) -> None:
    schedule = {"schedule": "linear", "start": 0.9, "end": 0.5}
    assert "schedules move the loss: its values in two steps cannot be compared" in told_of({where: schedule})
    assert not [said for said in told_of({where: {"schedule": "constant", "start": 0.9}}) if "schedules" in said]


@pytest.mark.parametrize("rows", [1, 2, 12, 986])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_interval_is_wilsons(rows: int, share: float) -> None:
    right = round(share * rows)
    expected = binomtest(right, rows).proportion_ci(0.95, "wilson")
    assert interval(right / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_a_good_student_of_many_rows_gives_nothing_to_say() -> None:
    assert told(scores(0.7)) == []


@pytest.mark.parametrize(("accuracy", "warned"), [(0.2, True), (0.3, True), (0.31, False)])
def test_a_student_that_is_no_better_than_the_commonest_class_is_told(accuracy: float, warned: bool) -> None:
    assert (
        "the student is no better than always giving the commonest class" in told(scores(accuracy), majority=0.3)
    ) == (warned)


def test_few_rows_are_told_with_their_interval() -> None:
    (said,) = told(scores(0.5, examples=12))
    assert said == "12 evaluation rows are few: the student's accuracy lies between 25.4 % and 74.6 % (95 % interval)"
    (said,) = told(scores(1.0, examples=48))
    assert "between 92.6 % and 100.0 %" in said
    assert told(scores(0.5, examples=200)) == []


@pytest.mark.parametrize(
    ("student", "baseline", "said"),
    [
        (0.7, 0.6, []),
        (0.6, 0.6, ["the distilled student is no better than the one trained without a teacher"]),
        (0.7, 0.8, [NOT_WORTH_IT]),
    ],
)
def test_the_rival_without_a_teacher_is_compared(student: float, baseline: float, said: list[str]) -> None:
    seed = "one seed: differences of a few points can be chance"
    assert told(scores(student), scores(baseline)) == [*said, seed]


def test_weights_selected_on_the_evaluation_rows_are_told() -> None:
    (warning,) = told(scores(0.7), select="best", eval_every=5)
    assert "optimistic" in warning


def test_language_models_are_compared_by_cross_entropy_and_have_no_commonest_class() -> None:
    student, baseline = scores(0.2, examples=9, perplexity=3.0), scores(0.1, examples=9, perplexity=4.0)
    assert told(student, baseline, majority=None) == ["one seed: differences of a few points can be chance"]
    assert perplexity_ratio(scores(0.5, perplexity=6.0), scores(0.5, perplexity=4.0)) == 1.5
    assert perplexity_ratio(scores(0.5), scores(0.5)) is None


def test_the_commonest_class_is_that_of_the_training_rows() -> None:
    assert majority_accuracy([0, 0, 1, 2], [1, 1, 0, -1, -1, -1]) == 0.25
    assert majority_accuracy([0, 1], [-1]) == 0.0


def tagger(accuracy: float, entity_f1: float | None, examples: int = 500) -> Scores:
    return Scores(examples, 9 * examples, 1.0, accuracy, entity_f1=entity_f1)


def test_taggers_are_compared_by_entities_where_there_are_some() -> None:
    assert quality(tagger(0.9, 0.4), language=False) == 0.4
    assert quality(tagger(0.9, None), language=False) == 0.9
    assert quality(scores(0.9), language=True) == -scores(0.9).cross_entropy
    assert retention(tagger(0.9, 0.4), tagger(0.95, 0.8), "token-classification") == 0.5
    assert retention(tagger(0.5, None), tagger(1.0, None), "token-classification") == 0.5
    assert retention(scores(0.3), scores(0.6), "masked-lm") == 0.5
    assert retention(scores(0.3), scores(0.6), "causal-lm") is None
    assert retention(tagger(0.9, 0.4), tagger(0.9, 0.0), "token-classification") is None
    config = parse_config(CONFIG)
    told = list(warnings(config, tagger(0.99, 0.5), tagger(0.1, 0.6), tagger(0.5, 0.7), 0.2))
    assert told[0] == "the distilled student is no better than the one trained without a teacher"


def test_few_rows_of_words_have_no_interval_since_their_words_hang_together() -> None:
    config = parse_config(CONFIG)
    (told,) = warnings(config, tagger(0.9, 0.5, 40), None, tagger(0.95, 0.6, 40), 0.2)
    assert told == "40 evaluation rows are few: on others the scores may be some points away"


def test_masked_language_models_are_compared_by_cross_entropy() -> None:
    config = parse_config({**CONFIG, "task": "masked-lm"})
    student, rival, teacher = (Scores(9, 90, loss, 0.5) for loss in (2.0, 2.1, 1.9))
    assert list(warnings(config, student, rival, teacher, None)) == [
        "one seed: differences of a few points can be chance"
    ]
    assert next(iter(warnings(config, student, rival, Scores(9, 90, 2.2, 0.5), None))) == NOT_WORTH_IT
