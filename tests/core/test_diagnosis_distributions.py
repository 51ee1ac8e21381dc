"""What is measured of a teacher's distributions, against numpy and scipy in float64 and by hand."""

import math
from typing import Any

import numpy
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.diagnosis.calibration import NUM_BINS, Bins
from entrenar_core.diagnosis.comparing import Beside, shared_top_k
from entrenar_core.diagnosis.distributions import GRID, TILE, TOPS, TeacherStudy, moments
from entrenar_core.diagnosis.grid import crossing
from entrenar_core.losses.head import Head
from entrenar_core.losses.targets import HeadRows, Logits

SHAPES = {"rows": st.integers(1, 40), "classes": st.integers(2, 150), "seed": st.integers(0, 999)}


def draw(rows: int, classes: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(rows, classes, generator=generator) * scale
    labels_N = torch.multinomial((logits_NV / 2).softmax(-1), 1, generator=generator)[:, 0]
    return logits_NV, labels_N


def studied(logits_NV: torch.Tensor, labels_N: torch.Tensor, *temperatures: float, tile: int = 10**6) -> TeacherStudy:
    study = TeacherStudy(temperatures)
    for logits, labels in zip(logits_NV.split(tile), labels_N.split(tile), strict=True):
        study.add(Logits(logits), labels)
    return study


def entropy_at(logits_NV: torch.Tensor, temperature: float) -> float:
    p = scipy.special.softmax(logits_NV.double().numpy() / temperature, -1)
    return float(scipy.special.entr(p).sum(-1).mean())


def cross_entropy_at(logits_NV: torch.Tensor, labels_N: torch.Tensor, temperature: float) -> float:
    log_p = scipy.special.log_softmax(logits_NV.double().numpy() / temperature, -1)
    return float(-log_p[numpy.arange(len(labels_N)), labels_N.numpy()].mean())


@given(**SHAPES, temperature=st.sampled_from([0.1, 0.5, 1.0, 3.0, 20.0, 500.0]))
def test_the_moments_are_those_of_the_softened_distribution(
    rows: int, classes: int, seed: int, temperature: float
) -> None:
    logits_NV, _ = draw(rows, classes, seed)
    (found,) = moments(logits_NV, [temperature])
    z = logits_NV.double().numpy() - logits_NV.double().numpy().max(-1, keepdims=True)
    p = scipy.special.softmax(z / temperature, -1)
    mean = (p * z).sum(-1)
    variance = (p * (z - mean[:, None]) ** 2).sum(-1)
    assert found.log_partition_N.numpy() == pytest.approx(scipy.special.logsumexp(z / temperature, -1), abs=1e-5)
    assert found.mean_N.numpy() == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert found.variance_N.numpy() == pytest.approx(variance, rel=1e-3, abs=1e-3)


@given(**SHAPES)
def test_a_study_agrees_with_scipy(rows: int, classes: int, seed: int) -> None:
    logits_NV, labels_N = draw(rows, classes, seed)
    study = studied(logits_NV, labels_N, 3.0, tile=7)
    for at in study.by_temperature():
        assert at.entropy == pytest.approx(entropy_at(logits_NV, at.temperature), rel=1e-4, abs=1e-5)
        assert at.effective_support == pytest.approx(math.exp(at.entropy))
        sure = -numpy.sort(-scipy.special.softmax(logits_NV.double().numpy() / at.temperature, -1), -1)
        assert at.top_mass == pytest.approx(
            {top: sure[:, :top].sum(-1).mean() for top in TOPS if top < classes}, abs=1e-5
        )
    assert [at.temperature for at in study.by_temperature()] == [1, 2, 3, 4, 8]
    found = study.on_labels()
    assert found is not None
    assert (found.labels, study.targets, study.classes) == (rows, rows, classes)
    assert found.accuracy == pytest.approx((logits_NV.argmax(-1) == labels_N).double().mean().item())
    assert found.cross_entropy == pytest.approx(cross_entropy_at(logits_NV, labels_N, 1.0), rel=1e-4, abs=1e-6)


@given(rows=st.integers(20, 200), classes=st.integers(2, 40), seed=st.integers(0, 99), scale=st.floats(0.5, 8))
def test_the_calibration_temperature_is_where_the_cross_entropy_is_least(
    rows: int, classes: int, seed: int, scale: float
) -> None:
    logits_NV, labels_N = draw(rows, classes, seed, scale)
    found = studied(logits_NV, labels_N).on_labels()
    assert found is not None
    least = scipy.optimize.minimize_scalar(
        lambda log_t: cross_entropy_at(logits_NV, labels_N, math.exp(log_t)),
        bounds=(math.log(GRID[0]), math.log(GRID[-1])),
        method="bounded",
        options={"xatol": 1e-7},
    )
    if found.calibration_temperature is None:  # it falls, or rises, all the way
        assert min(abs(least.x - math.log(end)) for end in (GRID[0], GRID[-1])) < 1e-3
    else:
        assert found.calibration_temperature == pytest.approx(math.exp(least.x), rel=5e-3)


def test_a_teacher_that_is_twice_as_sure_as_it_should_be_is_calibrated_at_two() -> None:
    logits_NV, labels_N = draw(20_000, 4, 0)  # labels are drawn at temperature 2
    found = studied(logits_NV, labels_N).on_labels()
    assert found is not None
    assert found.calibration_temperature == pytest.approx(2.0, rel=0.03)
    rightly = studied(logits_NV / 2, labels_N).on_labels()
    assert rightly is not None
    assert rightly.calibration_temperature == pytest.approx(1.0, rel=0.03)
    assert rightly.calibration_error < 0.02 < 0.1 < found.calibration_error


@given(**SHAPES)
def test_the_advised_temperature_has_the_effective_support_that_was_asked_for(
    rows: int, classes: int, seed: int
) -> None:
    logits_NV, labels_N = draw(rows, classes, seed)
    advice = studied(logits_NV, labels_N).advice()
    assert advice.target_support == pytest.approx(math.sqrt(classes))
    assert advice.temperature is not None
    entropy = entropy_at(logits_NV, advice.temperature)
    if advice.temperature == 1:
        assert entropy >= math.log(classes) / 2 - 1e-4
    else:
        assert advice.temperature > 1
        assert entropy == pytest.approx(math.log(classes) / 2, abs=1e-2)


def test_no_temperature_is_advised_where_none_is_enough() -> None:
    logits_NV = torch.tensor([[0.0, 1e4, 0.0, 0.0]])
    study = studied(logits_NV, torch.tensor([1]))
    assert study.advice().temperature is None
    found = study.on_labels()
    assert found is not None
    assert found.calibration_temperature is None  # it is right: the surer the better


@given(tile=st.integers(1, 30), seed=st.integers(0, 99))
def test_neither_batches_nor_tiles_nor_rows_without_a_label_change_what_is_found(tile: int, seed: int) -> None:
    logits_NV, labels_N = draw(23, 9, seed)
    whole, cut = studied(logits_NV, labels_N), studied(logits_NV, labels_N, tile=tile)
    assert whole.entropies() == pytest.approx(cut.entropies(), rel=1e-5)
    labelled = torch.cat([labels_N, torch.tensor([-1, -100])])
    more = studied(torch.cat([logits_NV, logits_NV[:2]]), labelled, tile=tile).on_labels()
    found = whole.on_labels()
    assert found is not None
    assert more is not None
    assert (more.labels, more.accuracy) == (found.labels, found.accuracy)
    assert more.calibration_error == pytest.approx(found.calibration_error, abs=1e-6)
    assert more.calibration_temperature == pytest.approx(found.calibration_temperature, rel=1e-4)


def test_logits_that_are_made_when_asked_for_say_the_same_in_several_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_NH, weight_VH = torch.randn(TILE + 5, 8, generator=generator), torch.randn(12, 8, generator=generator)
    labels_N = torch.randint(10, (TILE + 5,), generator=generator)
    made = TeacherStudy([2.0])
    made.add(HeadRows(hidden_NH, Head(weight_VH), 10), labels_N)
    ready = studied(hidden_NH @ weight_VH[:10].T, labels_N, 2.0)
    assert made.entropies() == pytest.approx(ready.entropies(), rel=1e-5)
    assert made.classes == 10
    assert made.targets == TILE + 5


def test_a_token_that_the_teacher_rules_out_has_no_share_at_any_temperature() -> None:
    logits_NV = torch.tensor([[1.0, 0.0, -math.inf], [0.5, 2.0, -math.inf]])
    study, without = (studied(x, torch.tensor([0, 1]), 30.0) for x in (logits_NV, logits_NV[:, :2]))
    assert study.entropies() == pytest.approx(without.entropies(), abs=1e-6)
    ruled_out = studied(logits_NV[:1], torch.tensor([2])).on_labels()
    assert ruled_out is not None
    assert ruled_out.cross_entropy == math.inf


def test_half_precision_is_computed_in_single() -> None:
    logits_NV, labels_N = draw(30, 50, 1)
    half = studied(logits_NV.bfloat16(), labels_N)
    assert half.entropies() == pytest.approx(studied(logits_NV.bfloat16().float(), labels_N).entropies(), rel=1e-6)


def test_without_a_label_nothing_is_said_of_labels() -> None:
    assert studied(torch.randn(3, 4), torch.tensor([-1, -100, -1])).on_labels() is None


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        list(moments(torch.zeros(1, 2), [0.0]))


def test_the_calibration_error_by_hand() -> None:
    bins = Bins()
    # two rows in (9/15, 10/15], one right: |1 − 1.3|; one in (14/15, 1], right: |1 − 0.95|; one at 0.2 in (2/15, 3/15]
    bins.add(torch.tensor([0.64, 0.66]), torch.tensor([True, False]))
    bins.add(torch.tensor([0.95, 0.2]), torch.tensor([True, False]))
    assert bins.error == pytest.approx((0.3 + 0.05 + 0.2) / 4)
    assert (bins.rows, bins.accuracy) == (4, 0.5)
    assert (Bins().error, Bins().accuracy, Bins().rows) == (0.0, 0.0, 0)


@given(confidence=st.lists(st.floats(0, 1), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_the_calibration_error_is_that_of_its_definition(confidence: list[float], seed: int) -> None:
    right = numpy.random.default_rng(seed).random(len(confidence)) < 0.5
    bins = Bins()
    bins.add(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right))
    expected = 0.0
    for b in range(NUM_BINS):
        inside = [
            index
            for index, value in enumerate(confidence)
            if max(math.ceil(value * NUM_BINS) - 1, 0) == b
        ]  # fmt: skip
        if inside:
            accuracy = sum(bool(right[index]) for index in inside) / len(inside)
            sure = sum(confidence[index] for index in inside) / len(inside)
            expected += len(inside) / len(confidence) * abs(accuracy - sure)
    assert bins.error == pytest.approx(expected, abs=1e-9)


@given(root=st.floats(-0.95, 0.95), scale=st.floats(0.1, 10))
def test_a_crossing_of_a_cubic_is_exact(root: float, scale: float) -> None:
    def cubic(x: float) -> float:
        return scale * (x - root) * ((x - root) ** 2 + 1)

    places = [-1.0, -0.3, 0.5, 1.0]
    slopes = [scale * (3 * (x - root) ** 2 + 1) for x in places]
    assert crossing(places, [cubic(x) for x in places], slopes, 0.0) == pytest.approx(root, abs=1e-9)


def test_a_crossing_that_is_not_there_is_none_and_one_at_an_end_is_found() -> None:
    assert crossing([0, 1, 2], [1, 2, 3], [1, 1, 1], 5) is None
    assert crossing([0, 1, 2], [1, 2, 3], [1, 1, 1], 3) == 2
    assert crossing([0, 1, 2], [1, 2, 3], [1, 1, 1], 1) == pytest.approx(0, abs=1e-12)
    assert crossing([], [], [], 0) is None
    with pytest.raises(ValueError, match="2 values"):
        crossing([1], [1, 2], [1], 0)


def beside(student_NV: torch.Tensor, teacher_NV: torch.Tensor, **more: Any) -> Any:
    found = Beside()
    found.add(Logits(student_NV), Logits(teacher_NV), **more)
    return found.found()


@given(**SHAPES)
def test_a_student_beside_its_teacher_agrees_with_scipy(rows: int, classes: int, seed: int) -> None:
    student_NV, teacher_NV = draw(rows, classes, seed)[0], draw(rows, classes, seed + 1)[0]
    q, p = (scipy.special.softmax(x.double().numpy(), -1) for x in (student_NV, teacher_NV))
    found = beside(student_NV, teacher_NV)
    m = (p + q) / 2
    js = (scipy.special.rel_entr(p, m) + scipy.special.rel_entr(q, m)).sum(-1).mean() / 2
    k = min(10, classes // 2)
    shared = [
        len(set(numpy.argsort(-a)[:k]) & set(numpy.argsort(-b)[:k])) / k
        for a, b in zip(student_NV.numpy(), teacher_NV.numpy(), strict=True)
    ]
    assert (found.rows, found.top_k) == (rows, k)
    assert found.kl == pytest.approx(scipy.special.rel_entr(p, q).sum(-1).mean(), rel=1e-3, abs=1e-5)
    assert found.js == pytest.approx(js, rel=1e-3, abs=1e-5)
    assert found.agreement == pytest.approx((student_NV.argmax(-1) == teacher_NV.argmax(-1)).double().mean().item())
    assert found.top_k_agreement == pytest.approx(numpy.mean(shared))


def test_a_student_that_is_its_teacher_is_at_no_distance() -> None:
    logits_NV, _ = draw(700, 30, 0)
    found = beside(logits_NV + 5.0, logits_NV)
    assert (found.rows, found.agreement, found.top_k_agreement) == (700, 1.0, 1.0)
    assert abs(found.kl) < 1e-5
    assert abs(found.js) < 1e-5


@pytest.mark.parametrize("step", [2, 3, 700])
def test_every_so_many_rows_are_a_sample(step: int) -> None:
    student_NV, teacher_NV = draw(600, 12, 0)[0], draw(600, 12, 1)[0]
    assert beside(student_NV, teacher_NV, step=step) == beside(student_NV[::step], teacher_NV[::step])


def test_as_many_likeliest_as_there_are_classes_at_most() -> None:
    with pytest.raises(ValueError, match="from 1 to 3, got 4"):
        shared_top_k(torch.zeros(1, 3), torch.zeros(1, 3), 4)
