"""Troubles are recognised from series whose truth is known, and none is seen where there is none."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config import parse_config
from entrenar_core.diagnosis import Trouble, find_troubles
from entrenar_core.diagnosis.series import comparable_losses, level, spikes, thirds
from entrenar_core.diagnosis.trends import plateau
from entrenar_core.diagnosis.troubles import dead_gradients, flatness, vanished_losses
from entrenar_core.training.verdict import troubles

# of configs/quickstart.yaml: a run that went well, every tenth step
QUICKSTART = [
    2.858, 2.618, 2.446, 2.194, 2.257, 2.248, 1.923, 2.191, 1.881, 1.965, 1.703, 1.87, 1.734, 1.548, 1.44, 1.331,
    1.444, 1.411, 1.576, 1.189, 1.148, 1.055, 1.114, 0.801, 0.853, 0.852, 0.918, 1.069, 0.76, 0.883, 0.567, 0.612,
    1.066, 0.815, 0.575, 0.862, 0.52, 0.574, 0.552, 0.827, 0.625, 0.994, 0.418, 0.474, 0.667, 0.389, 0.546, 0.56,
    0.494, 0.632, 0.4, 0.413, 0.294, 0.468, 0.33, 0.421, 0.401, 0.332, 0.359, 0.362, 0.375, 0.451, 0.304, 0.254,
    0.325, 0.236, 0.35, 0.297, 0.387, 0.346, 0.413, 0.378, 0.394, 0.309, 0.281, 0.241, 0.259, 0.319, 0.218, 0.2,
    0.327, 0.293, 0.257, 0.309, 0.359, 0.358, 0.281, 0.196, 0.263, 0.207, 0.223, 0.328, 0.193, 0.203, 0.215, 0.18,
    0.181, 0.198, 0.22, 0.174, 0.174,
]  # fmt: skip
Curve = Callable[[float], float]


def told(losses: Iterable[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": loss, "losses": {"forward_kl": loss}, "learning_rate": 1e-4, "grad_norm": 1.0, **more}
        for step, loss in enumerate(losses, 1)
    ]


def scored(step: int, cross_entropy: float | None, kl: float | None = None) -> dict[str, Any]:
    return {"step": step, "evaluation": {"cross_entropy": cross_entropy, "kl": kl, "accuracy": 0.5}}


def noisy(curve: Curve, lines: int = 60, noise: float = 0.1, seed: int = 0) -> list[float]:
    chance = random.Random(seed)
    return [curve(index / lines) * math.exp(chance.gauss(0, noise)) for index in range(lines)]


def names(lines: Sequence[dict[str, Any]], **more: Any) -> list[str]:
    return [trouble.name for trouble in find_troubles(lines, **more)]


def with_scores(losses: Sequence[float], before: float, after: float) -> list[dict[str, Any]]:
    return [scored(0, before, before), *told(losses), scored(len(losses), after, after)]


def test_a_run_that_went_well_shows_none() -> None:
    lines = [scored(0, 3.5, 2.33), *told(QUICKSTART), scored(101, 1.49, 0.51)]
    assert find_troubles(lines) == ()
    assert find_troubles(lines, ended=False) == ()


def test_of_losses_that_fall_and_settle_next_to_none_is_called_a_trouble() -> None:
    """Noise can look like a trend; of 6,000 such curves 18 did."""
    chance, alarms = random.Random(0), 0
    for _ in range(1000):
        rate, floor = chance.uniform(3.5, 12), chance.uniform(0, 1)
        lines, noise = chance.randint(1, 120), chance.uniform(0, 0.4)
        curve = [floor + 2 * math.exp(-rate * index / lines) for index in range(lines)]
        losses = [value * math.exp(chance.gauss(0, noise)) for value in curve]
        alarms += bool(names(with_scores(losses, 2.0, 1.0)))
    assert alarms <= 5


@given(seed=st.integers(0, 10_000), noise=st.floats(0.01, 0.12))
def test_a_loss_that_rises_is_unstable(seed: int, noise: float) -> None:
    losses = noisy(lambda done: 2 + 3 * done, noise=noise, seed=seed)
    (found,) = find_troubles(told(losses))
    assert found.name == "instability"
    assert "the loss rose from 2." in found.seen
    assert "`training.learning_rate`" in found.remedy


def test_spikes_are_unstable_and_one_is_an_accident() -> None:
    losses = noisy(lambda done: 2 * math.exp(-4 * done))
    for place in (20, 35, 50):
        assert find_troubles(told(losses)) == ()
        losses[place] *= 20
    (found,) = find_troubles(told(losses))
    assert found.name == "instability"
    assert f"jumped 3 times, up to {losses[20]:.4g}" in found.seen


def test_a_student_that_training_made_worse_is_unstable() -> None:
    chaos = [2.0, *noisy(lambda _: 6.0, 50, 0.6)]  # too high from the second line on
    (found,) = find_troubles(with_scores(chaos, 2.0, 6.5))
    assert found.name == "instability"
    assert "cross-entropy 2 → 6.5 and KL to the teacher 2 → 6.5 on held-out rows" in found.seen
    assert names(with_scores(chaos, 2.0, 1.5)) == []


@given(seed=st.integers(0, 10_000), noise=st.floats(0, 0.05), warmup=st.integers(0, 30))
def test_a_loss_that_stands_still_where_it_began_is_a_plateau(seed: int, noise: float, warmup: int) -> None:
    losses = [2.0, *noisy(lambda _: 1.99, 60, noise, seed)]
    lines = with_scores(losses, 3.0, 2.99)
    for line in lines[1 : 1 + warmup]:
        line["learning_rate"] = 1e-6
    found = find_troubles(lines)
    if noise < 0.01:  # above, thirds of few steps differ by chance
        assert [trouble.name for trouble in found] == ["plateau"]
        assert "cross-entropy 3 → 2.99" in found[0].seen
    assert names(with_scores(losses, 3.0, 1.0)) == []  # held-out rows know better
    assert names(told(losses)) == []


def test_before_the_learning_rate_has_risen_nothing_is_a_plateau() -> None:
    lines = with_scores([2.0] * 40, 3.0, 3.0)
    for index, line in enumerate(lines[1:-1]):
        line["learning_rate"] = index * 1e-6
    assert names(lines) == []


@given(seed=st.integers(0, 10_000), noise=st.floats(0, 0.01))
def test_a_loss_that_falls_as_fast_at_the_end_as_before_is_slow(seed: int, noise: float) -> None:
    lines = told(noisy(lambda done: 3 - 1.5 * done, 90, noise, seed))
    (found,) = find_troubles(lines)
    assert found.name == "slow convergence"
    assert "`distillation.alpha: {schedule: linear, start: 0.9, end: 0.1}`" in found.remedy
    assert names(lines, ended=False) == []


def overfitted(evaluations: Sequence[float], losses: Sequence[float] | None = None) -> list[dict[str, Any]]:
    falling = losses or [2 * math.exp(-index / 15) for index in range(60)]
    lines: list[dict[str, Any]] = told(falling)
    every = len(falling) // len(evaluations)
    lines += [scored(every * (index + 1), value) for index, value in enumerate(evaluations)]
    return [scored(0, 3.0), *sorted(lines, key=lambda line: (line["step"], "evaluation" in line))]


def test_held_out_rows_that_get_worse_while_training_goes_on_are_overfitting() -> None:
    (found,) = find_troubles(overfitted([1.5, 1.0, 1.1, 1.3, 1.6]))
    assert found.name == "overfitting"
    assert "rose from 1 at step 24 to 1.6 at step 60" in found.seen


@pytest.mark.parametrize(
    "evaluations", [[1.5, 1.0, 1.02, 1.05], [1.5, 1.2, 1.0, 1.5], [1.5, 1.0], [0.001, 0.0012, 0.0013, 0.0015]]
)
def test_little_or_once_is_not_overfitting(evaluations: list[float]) -> None:
    assert "overfitting" not in names(overfitted(evaluations))


def test_where_training_does_not_fall_either_it_is_not_overfitting() -> None:
    assert "overfitting" not in names(overfitted([1.0, 1.2, 1.5, 2.0], [2.0] * 60))


def test_the_best_weights_are_no_overfitted_ones() -> None:
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    lines = overfitted([1.5, 1.0, 1.1, 1.3, 1.6])
    assert [text.partition(":")[0] for text in troubles(parse_config(values), lines)] == ["overfitting"]
    best = parse_config(values | {"training": {"select": "best", "eval_every": 5}})
    assert list(troubles(best, lines)) == []


def vectors(step: int, average: float, correlation: float | None = 0.5) -> dict[str, Any]:
    scores = {"cross_entropy": None, "accuracy": 0.5, "mean_average_precision": average}
    return {"step": step, "evaluation": scores | {"rank_correlation": correlation}}


def test_of_a_sentence_encoder_the_average_precision_that_falls_is_overfitting() -> None:
    def lines(averages: Sequence[float]) -> list[dict[str, Any]]:
        found = overfitted([1.0] * len(averages))
        scores = iter(
            [
                vectors(line["step"], value)
                for line, value in zip([line for line in found if "evaluation" in line], [0.2, *averages], strict=True)
            ]
        )
        return [next(scores) if "evaluation" in line else line for line in found]  # fmt: skip

    (found,) = find_troubles(lines([0.4, 0.5, 0.47, 0.45, 0.4]))
    assert found.name == "overfitting"
    seen = "on held-out rows mean average precision fell from 0.5 at step 24 to 0.4 at step 60, while the loss in "
    assert found.seen.startswith(seen + "training fell from ")
    for averages in ([0.4, 0.5, 0.48, 0.46], [0.4, 0.45, 0.5, 0.3], [0.4, 0.3], [0.05, 0.06, 0.045, 0.041]):
        assert names(lines(averages)) == [], averages
    best = {"training": {"select": "best", "eval_every": 5}}
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    assert list(troubles(parse_config(values | best), lines([0.4, 0.5, 0.47, 0.45, 0.4]))) == []


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (vectors(61, 0.31, 0.51), ["plateau"]),
        (vectors(61, 0.31, None), ["plateau"]),
        (vectors(61, 0.33, 0.51), []),  # it finds more
        (vectors(61, 0.31, 0.6), []),  # it agrees more with its teacher
    ],
)
def test_of_a_sentence_encoder_both_scores_must_stand_still(after: dict[str, Any], expected: list[str]) -> None:
    lines = [vectors(0, 0.3), *told([2.0, *noisy(lambda _: 1.99, 60, 0.01)]), after]
    found = find_troubles(lines)
    assert [trouble.name for trouble in found] == expected
    if found:
        assert "on held-out rows mean average precision 0.3 → 0.31" in found[0].seen
        assert "temperature" not in found[0].remedy


def test_of_a_sentence_encoder_that_training_made_worse_the_scores_are_told() -> None:
    chaos = [2.0, *noisy(lambda _: 6.0, 50, 0.6)]
    (found,) = find_troubles([vectors(0, 0.5, 0.6), *told(chaos), vectors(51, 0.3, -0.1)])
    assert found.name == "instability"
    figures = "mean average precision 0.5 → 0.3 and rank correlation with the teacher 0.6 → -0.1"
    assert f"training made the student worse: {figures} on held-out rows" in found.seen
    assert names([vectors(0, 0.5, 0.6), *told(chaos), vectors(51, 0.45, -0.1)]) == ["plateau"]


def test_what_a_sentence_encoder_has_no_setting_for_is_no_remedy() -> None:
    (found,) = find_troubles([*told(noisy(lambda done: 3 - 1.5 * done, 90, 0.01)), vectors(90, 0.5)])
    assert (found.name, found.remedy) == ("slow convergence", "raise `training.epochs` or `training.learning_rate`")


def with_term(values: Sequence[float], label: str) -> list[dict[str, Any]]:
    lines = told(noisy(lambda done: 2 * math.exp(-4 * done), len(values)))
    for line, value in zip(lines, values, strict=True):
        line["losses"][label] = value
    return lines


@pytest.mark.parametrize("values", [[0.0] * 40, [3.0] * 20 + [1e-7] * 20, [1e-12] * 40])
def test_a_term_that_is_nothing_has_vanished(values: list[float]) -> None:
    (found,) = find_troubles(with_term(values, "hidden_mse"))
    assert (found.name, found.subject) == ("vanished loss", "hidden_mse")
    assert found.seen.startswith("`hidden_mse` was ")


@pytest.mark.parametrize(
    ("values", "label"),
    [([3.0] * 20 + [1e-4] * 20, "hidden_mse"), ([0.0] * 15, "hidden_mse"), ([0.0, 2.0] * 20, "hidden_mse"),
     ([0.0] * 40, "cross_entropy"), ([0.0] * 40, "cross_entropy_2")],
)  # fmt: skip
def test_a_term_that_is_small_or_has_no_labels_has_not(values: list[float], label: str) -> None:
    assert names(with_term(values, label)) == []


def test_a_loss_that_vanished_is_no_plateau() -> None:
    """Nothing moves because nothing teaches: a plateau's remedies would be of no use."""
    before, after = ({"step": step, "evaluation": {"cross_entropy": 1.2, "kl": 0.5}} for step in (0, 42))
    still = [
        {"step": step, "loss": 0.0, "losses": {"forward_kl": 0.0}, "learning_rate": 1e-3, "grad_norm": 0.0}
        for step in range(1, 43)
    ]
    assert plateau([before, *still, after]) is not None
    assert names([before, *still, after]) == ["vanished loss"]


def test_a_vanished_divergence_named_like_the_labels_is_told() -> None:
    assert names(with_term([0.0] * 40, "cross_entropy_hard")) == ["vanished loss"]


def looked(step: int, norms: dict[str, float | None] | None = None, **more: Any) -> dict[str, Any]:
    found = {"gradient_norms": norms or {"layer 0": 0.5, "layer 1": 1.0}, **more}
    return {"step": step, "diagnostics": found}


@pytest.mark.parametrize(
    ("group", "name"), [("projections of hidden_mse", "dead projection"), ("layer 3", "dead gradient")]
)
def test_a_group_without_a_gradient_is_dead_after_three_looks(group: str, name: str) -> None:
    norms: dict[str, float | None] = {"layer 0": 0.5, "layer 1": 1.0, group: 1e-9}
    lines = [looked(step, norms) for step in (1, 10)]
    assert find_troubles(lines) == ()
    (found,) = find_troubles([*lines, looked(20, norms)])
    assert (found.name, found.subject) == (name, group)
    assert found.seen == f"the gradient of {group} is 1e-09, that of the others 0.75"
    assert names([*lines, looked(20, {**norms, group: 1e-3})]) == []
    assert names([*lines, looked(20, {"layer 0": 0.5, "layer 1": 1.0})]) == []


def test_gradients_that_are_all_zero_are_not_dead_beside_each_other() -> None:
    assert names([looked(step, {"layer 0": 0.0, "layer 1": 0.0}) for step in (1, 2, 3)]) == []


def test_what_is_no_number_is_named() -> None:
    (found,) = find_troubles([scored(0, 1.0), scored(5, None)])
    assert (found.name, found.seen) == ("no number", "the evaluation after step 5 gave no finite cross-entropy")
    (found,) = find_troubles([looked(7, {"layer 0": 1.0, "layer 1": None, "head": math.nan})])
    assert found.seen == "at step 7 the gradient of layer 1, head is not finite"
    assert "`training.mixed_precision: no`" in found.remedy
    lines = told([2.0] * 12)
    for line in lines[-6:]:
        del line["grad_norm"]
    assert "overflowed in 6 of the last 10 steps" in find_troubles(lines)[0].seen
    lines[-1]["grad_norm"] = 1.0
    assert find_troubles(lines) == ()


def test_of_what_does_not_converge_the_speed_is_not_told() -> None:
    lines = [*told(noisy(lambda done: 3 - 1.5 * done, 90, 0.01)), scored(91, None)]
    assert names(lines) == ["no number"]


def test_a_temperature_that_flattens_a_teacher_is_named() -> None:
    most = math.log(50)
    (found,) = flatness({1.0: 0.5 * most, 4.0: 0.9 * most, 40.0: 0.99 * most}, 50)
    assert (found.name, found.subject) == ("flat temperature", "40")
    assert found.seen.startswith("at temperature 40 the teacher's mean entropy is 3.873 nats of at most 3.912")
    (found,) = flatness({1.0: 0.99 * most, 4.0: most}, 50)
    assert found.name == "undecided teacher"
    assert list(flatness({1.0: 0.96 * most, 4.0: 0.99 * most}, 50)) == []
    assert list(flatness({1.0: 0.0}, 1)) == []
    looks = [looked(1, classes=50, teacher_entropy={"1": 1.0, "40": 3.9}), looked(2, classes=50)]
    assert names(looks) == ["flat temperature"]


@given(st.lists(st.floats(0.1, 10), min_size=20, max_size=40), st.floats(0.01, 100))
def test_what_is_recognised_does_not_hang_on_the_unit_of_the_loss(losses: list[float], unit: float) -> None:
    def found(scale: float) -> list[str]:
        return [trouble.name for trouble in find_troubles(told([scale * value for value in losses]))]

    # a power of two scales to the bit
    assert found(1.0) == found(2.0 ** round(math.log2(unit)))


def test_where_a_schedule_moves_the_loss_a_term_that_stays_is_looked_at() -> None:
    lines = told([5.0] * 25)
    for index, line in enumerate(lines):
        line["losses"] = {"forward_kl": 1.0, "cross_entropy": float(index)}
        line["schedules"] = {"forward_kl.weight": 0.5, "forward_kl.temperature": 2.0}
    assert comparable_losses(lines) == [float(index) for index in range(25)]
    lines[3]["schedules"] = {"cross_entropy.temperature": 1.0}
    assert comparable_losses(lines) == []
    assert comparable_losses([]) == []


def test_levels_are_medians_with_their_errors() -> None:
    first, middle, last = thirds([1.0, 2.0, 9.0, 4.0, 4.0, 4.0, 4.0, 5.0, 6.0, 7.0])
    assert (first.value, middle.value, last.value) == (2.0, 4.0, 6.0)
    assert middle.error == 0.0
    assert first.error == pytest.approx(1.2533 * 1.4826 * 1.0 / math.sqrt(3))
    assert list(spikes([1.0] * 30 + [1.4, 1.6, 1.0])) == [31]
    with pytest.raises(ValueError, match="no level"):
        level([])
    with pytest.raises(ValueError, match="no thirds"):
        thirds([1.0, 2.0])


def test_a_trouble_reads_as_a_sentence() -> None:
    assert str(Trouble("plateau", "it stands still", "lower it")) == "plateau: it stands still; lower it"


def test_what_is_seen_of_single_losses_and_gradients_is_told_in_full() -> None:
    lines = told([2.0] * 6 + [1e-7] * 30)
    (found,) = vanished_losses(lines)
    assert found == Trouble(
        "vanished loss",
        "`forward_kl` was 1e-07 or less over the last third, from 2",
        "it teaches nothing: look at its `top_k`, `entropy_threshold` and `layers`, or take it out",
        "forward_kl",
    )
    norms: dict[str, float | None] = {
        "layer 0": 2.0,
        "layer 1": 4.0,
        "projections of hidden_mse": 1e-9,
        "embeddings": 1e-8,
    }
    projection, embeddings = dead_gradients([looked(step, norms) for step in (1, 2, 3)])
    assert projection == Trouble(
        "dead projection",
        "the gradient of projections of hidden_mse is 1e-09, that of the others 2",
        "it does not learn: look at the layers of its loss and at its `projection`, or take the loss out",
        "projections of hidden_mse",
    )
    assert embeddings == Trouble(
        "dead gradient",
        "the gradient of embeddings is 1e-08, that of the others 2",
        "it does not learn: is it frozen, or cut off from every loss?",
        "embeddings",
    )
    assert list(dead_gradients([looked(step, norms) for step in (1, 2)])) == []


def test_what_is_seen_of_temperatures_is_told_in_full() -> None:
    most = math.log(10)
    assert list(flatness({1.0: 0.99 * most, 4.0: most}, 10)) == [
        Trouble(
            "undecided teacher",
            "its mean entropy at temperature 1 is 2.28 nats, and 2.303 is knowing nothing",
            "fit it to the labels (`teacher.finetune`), or take another one",
        )
    ]
    assert list(flatness({0.5: most, 1.0: 0.5 * most, 4.0: 0.99 * most, 2.0: 0.97 * most}, 10)) == [
        Trouble(
            "flat temperature",
            "at temperature 4 the teacher's mean entropy is 2.28 nats of at most 2.303: all 10 look alike, and at "
            "temperature 1 it is 1.151",
            "lower `distillation.temperature`; `entrenar-distill diagnose` shows where it says most",
            "4",
        )
    ]
    assert list(flatness({1.0: 0.95 * most, 4.0: most}, 10)) == [], "it says little at 1 as well"
    assert list(flatness({1.0: 0.0}, 1)) == []
    assert list(flatness({1.0: math.nan, 4.0: most}, 10)) == []
