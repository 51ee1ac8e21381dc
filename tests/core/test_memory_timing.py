"""The time of a step: as measured, from rates, between and beyond what was measured, and why it is not known."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from entrenar_core.memory.calibration import Calibration, Kind, Precision, Rate, Setting
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Job, ReadingJob, TrainingJob
from entrenar_core.memory.machine import Machine, named_machine
from entrenar_core.memory.timing import StepTime, precision_of, time_of, time_of_token

HERE = Machine("cpu", "A Processor", 16 * 10**9, 8 * 10**9)
MODEL = HeldModel("a Llama", LlamaConfig(), "causal-lm", dtype="bfloat16")


def calibration(*rates: Rate) -> Calibration:
    setting = Setting("cpu", "A Processor", "2.13.0", 2)
    return Calibration(setting, "2026-05-04T10:00:00+00:00", 5 * 10**8, None, None, rates)


def rate(
    amount: int, seconds: Sequence[float], kind: Kind = "training", precision: Precision = "fp32", model: str = "small"
) -> Rate:
    return Rate(kind, precision, model, amount, tuple(seconds))


def test_measured_steps_say_more_than_anything_else() -> None:
    found = time_of(10**12, "fp32", HERE, None, steps=[2.0, 1.0, 4.0])
    assert found == StepTime(2.0, "measured on 3 steps", 1.0, 4.0)
    assert time_of(10**12, "fp32", HERE, None, steps=[2.0]).how == "measured on 1 step"


def test_without_a_calibration_it_is_not_known() -> None:
    found = time_of(10**12, "fp32", HERE, None)
    assert not found.known
    assert found == StepTime(None, "not known: run `entrenar-inspect calibrate`")
    assert found.times(100) == found


@pytest.mark.parametrize(
    ("machine", "precision", "why"),
    [
        (named_machine("16GB"), "fp32", "of a machine with 16.0 GB, only the memory is known"),
        (Machine("cpu", "Another", 1, 1), "fp32", "the calibration is of A Processor, and this is Another"),
        (Machine("cuda", "A Processor", 1, 1), "fp32", "the calibration is of A Processor"),
        (HERE, "fp16", "training in fp16 was not measured on 2026-05-04"),
    ],
)
def test_a_calibration_that_says_nothing_of_it_is_told(machine: Machine, precision: Precision, why: str) -> None:
    found = time_of(10**12, precision, machine, calibration(rate(10**9, [0.1])))
    assert found.seconds is found.low_s is found.high_s is None
    assert why in found.how


def test_what_was_measured_takes_what_it_took() -> None:
    measured = calibration(rate(10**9, [0.1, 0.2, 0.4]), rate(10**11, [2.0, 2.5, 2.4], model="medium"))
    assert time_of(10**9, "fp32", HERE, measured).seconds == pytest.approx(0.2)
    found = time_of(10**11, "fp32", HERE, measured)
    assert found.seconds == pytest.approx(2.4)
    assert found.low_s == pytest.approx(2.0)
    assert found.high_s == pytest.approx(40.0)  # at the slowest round of the small one
    assert found.how == (
        "estimated from counted operations and the rate that was measured on 2026-05-04, by the spread of 2 models"
    )


def test_beyond_what_was_measured_the_nearest_rate_holds() -> None:
    measured = calibration(rate(10**11, [2.0], model="medium"), rate(10**9, [0.1]))
    assert time_of(10**13, "fp32", HERE, measured).seconds == pytest.approx(200.0)
    assert time_of(10**7, "fp32", HERE, measured).seconds == pytest.approx(0.001)


def test_between_two_models_the_rate_is_between_theirs() -> None:
    measured = calibration(rate(10**9, [0.1]), rate(10**11, [2.5], model="medium"))
    assert time_of(10**10, "fp32", HERE, measured).seconds == pytest.approx(10**10 / math.sqrt(10**10 * 4 * 10**10))


def test_the_optimiser_takes_its_time_too() -> None:
    measured = calibration(rate(10**9, [0.1]), rate(10**6, [0.01, 0.02, 0.03], "update"))
    alone = time_of(10**9, "fp32", HERE, measured)
    whole = time_of(10**9, "fp32", HERE, measured, trained_parameters=5 * 10**6)
    assert whole.seconds == pytest.approx((alone.seconds or 0) + 0.1)
    assert whole.high_s == pytest.approx((alone.high_s or 0) + 0.15)
    assert "by the spread of rounds" in whole.how


def test_a_token_takes_the_reading_of_the_weights() -> None:
    measured = calibration(rate(10**8, [0.01], "decoding", "bf16"), rate(10**9, [0.1], "reading", "bf16"))
    found = time_of_token(14 * 10**9, "bf16", HERE, measured)
    assert found.seconds == pytest.approx(1.4)
    assert found.how.startswith("estimated from bytes and the rate")
    assert time_of(10**9, "bf16", HERE, measured, kind="reading").seconds == pytest.approx(0.1)


def test_many_steps_take_as_many_times_as_long() -> None:
    assert StepTime(2.0, "so", 1.0, 4.0).times(50) == StepTime(100.0, "so", 50.0, 200.0)


@given(
    small=st.lists(st.floats(1e-4, 1e-1), min_size=1, max_size=5),
    factors=st.lists(st.floats(1.0, 5.0), min_size=1, max_size=5),
    amounts=st.tuples(st.integers(1, 10**15), st.integers(1, 10**15)),
)
def test_more_operations_take_longer_and_stay_within_their_limits(
    small: list[float], factors: list[float], amounts: tuple[int, int]
) -> None:
    medium = [max(small) * factor for factor in factors]
    measured = calibration(rate(10**9, small), rate(10**11, medium, model="medium"))
    less, more = (time_of(amount, "fp32", HERE, measured) for amount in sorted(amounts))
    for found in (less, more):
        assert found.seconds is not None
        assert found.low_s is not None
        assert found.high_s is not None
        assert found.low_s <= found.seconds * (1 + 1e-9)
        assert found.seconds <= found.high_s * (1 + 1e-9)
    assert (less.seconds or 0) <= (more.seconds or 0) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("job", "precision"),
    [
        (TrainingJob(MODEL, 1, 8), "bf16"),
        (TrainingJob(HeldModel("m", LlamaConfig(), "causal-lm"), 1, 8), "fp32"),
        (TrainingJob(HeldModel("m", LlamaConfig(), "causal-lm"), 1, 8, mixed_precision="bf16"), "bf16"),
        (ReadingJob(MODEL, 1, 8, mixed_precision="fp16"), "fp16"),
        (InferenceJob(MODEL, 1, 8), "bf16"),
    ],
)
def test_a_job_multiplies_in_one_precision(job: Job, precision: Precision) -> None:
    assert precision_of(job) == precision
