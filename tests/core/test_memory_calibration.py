"""Calibrations: what is counted and timed, what is kept and found again, what is refused, and what an end leaves."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from entrenar_core.errors import EntrenarError, OutputError, UsageError
from entrenar_core.memory.calibrating import calibrate, said_of_load
from entrenar_core.memory.calibration import (
    Calibration,
    Precision,
    Rate,
    calibrations_folder,
    file_of,
    keep_calibration,
    kept_calibration,
    read_calibration,
    setting_of,
)
from entrenar_core.memory.constants import constants_of, constants_with
from entrenar_core.memory.real_steps import RealTraining
from entrenar_core.memory.timed_steps import TINY, Reading, Writing, reading_flops, rounds, training_flops
from entrenar_core.user_folder import user_folder

CHILD = "entrenar_core.memory.calibration_process"
ATTENTION = TINY.layers * 2 * 2 * TINY.rows * TINY.width * TINY.length**2
"""Operations of both products of attention, which torch's counter leaves out on a CPU."""


def in_place_product(_: Any, left: torch.Size, right: torch.Size, **__: Any) -> int:
    """Operations of a product that is added in place, as some CPUs are given it; torch's counter does not know it."""
    return 2 * left[0] * left[1] * right[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def measured(**changes: Any) -> Calibration:
    rates = (
        Rate("training", "fp32", "medium", 10**11, (2.0, 2.5)),
        Rate("training", "fp32", "small", 10**9, (0.03, 0.01, 0.02)),
    )
    made = Calibration(setting_of("cpu"), "2026-05-04T10:00:00+00:00", 612_000_000, None, 0, rates, ("a note",))
    return replace(made, **changes)


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if CHILD in " ".join(one.cmdline())]


def test_the_users_folder_is_where_the_environment_says(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert user_folder() == home
    monkeypatch.delenv("ENTRENAR_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "entrenar"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert user_folder() == tmp_path / "me/.cache/entrenar"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_operations_are_counted_as_torch_counts_those_of_a_real_step(precision: Precision) -> None:
    job = TINY.training("cpu", precision)
    training = RealTraining(job)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_product}) as counter:
        training.timed_step()
    flops, size_bytes = training_flops(job)
    assert flops == counter.get_total_flops() + ATTENTION + ATTENTION * 5 // 2
    assert size_bytes > 12 * sum(one.numel() for one in training.trained)


def test_operations_of_a_forward_pass_too() -> None:
    job = TINY.reading("cpu", "bf16")
    with FlopCounterMode(display=False) as counter:
        Reading(job)()
    assert reading_flops(job)[0] == counter.get_total_flops() + ATTENTION


def test_a_timed_step_is_a_step_of_training() -> None:
    training = RealTraining(TINY.training("cpu", "fp32"))
    before = [one.detach().clone() for one in training.trained]
    passed, updated = training.timed_parts()
    assert updated > 0
    assert passed > 0
    assert all(not torch.equal(one, other) for one, other in zip(training.trained, before, strict=True))
    assert all(one.grad is None for one in training.trained)


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_a_token_reads_all_weights_but_one_table_and_what_is_kept(precision: Precision, width: int) -> None:
    writing = Writing(TINY.reading("cpu", precision))
    assert writing() > 0
    weights = sum(one.numel() for one in writing.model.parameters()) - TINY.vocabulary * TINY.width
    kept = TINY.layers * 2 * (TINY.length + 1) * TINY.width // 2
    assert writing.size_bytes == width * (weights + kept)


def test_rounds_end_when_there_are_enough_or_the_time_is_over() -> None:
    calls: list[int] = []

    def act(pause_s: float) -> int:
        time.sleep(pause_s)
        calls.append(0)
        return len(calls)

    assert rounds(lambda: act(0), least=2, most=5, budget_s=60) == [2, 3, 4, 5, 6]
    assert len(rounds(lambda: act(0), least=2, most=5, budget_s=1e-9)) == 1
    assert len(rounds(lambda: act(0.02), least=2, most=50, budget_s=0.01)) == 2


def test_what_is_kept_is_found_again() -> None:
    assert kept_calibration("cpu").calibration is None
    file = keep_calibration(measured())
    assert file.parent == calibrations_folder()
    assert [one.name for one in calibrations_folder().iterdir()] == [file.name]
    found = kept_calibration("cpu")
    assert found.calibration == measured()
    assert found.ignored == ()
    assert kept_calibration("mps").calibration is None
    keep_calibration(measured(process_bytes=7))
    assert read_calibration(file).process_bytes == 7


def test_rates_are_medians_and_begin_with_the_smallest_model() -> None:
    small, medium = measured().rates_of("training", "fp32")
    assert (small.model, medium.model) == ("small", "medium")
    assert (small.slowest, small.per_second, small.fastest) == pytest.approx((1e9 / 0.03, 1e9 / 0.02, 1e9 / 0.01))
    assert measured().rates_of("training", "bf16") == ()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"torch_version": "1.0.0"}, "it is of torch 1.0.0, and this is"),
        ({"name": "Another"}, "it is of Another, and this is"),
        ({"threads": 999}, "it is of 999 threads, and these are"),
    ],
)
def test_a_calibration_of_something_else_is_not_used_and_said_so(changes: dict[str, Any], why: str) -> None:
    keep_calibration(measured(setting=replace(setting_of("cpu"), **changes)))
    found = kept_calibration("cpu")
    assert found.calibration is None
    (note,) = found.ignored
    assert note.startswith("the calibration of 2026-05-04 is not used: ")
    assert why in note
    assert constants_of("cpu").notes == (note,)


def test_another_one_that_is_damaged_is_not_used_either() -> None:
    file_of(replace(setting_of("cpu"), threads=999)).parent.mkdir(parents=True)
    file_of(replace(setting_of("cpu"), threads=999)).write_text("{")
    assert "damaged; it is not used" in kept_calibration("cpu").ignored[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_constants_of_a_device_that_is_not_here_are_those_of_the_table() -> None:
    keep_calibration(measured(setting=replace(setting_of("cpu"), device="cuda", threads=0)))
    found = constants_of("cuda")
    assert not found.calibrated
    assert found.notes == ("calibrations of cuda are not used: torch finds no CUDA device here",)


def damaged(text: str) -> list[str]:
    stored = json.loads(text)
    unmeasured = {**stored["rates"][0], "seconds": []}
    backwards = {**stored["rates"][0], "seconds": [-1.0]}
    return [
        "",
        text[: len(text) // 2],
        "[]",
        "\xff\x00",
        "[" * 100_000,
        json.dumps({**stored, "format": 2}),
        json.dumps({key: value for key, value in stored.items() if key != "process_bytes"}),
        json.dumps({**stored, "process_bytes": "much"}),
        json.dumps({**stored, "process_bytes": -1}),
        json.dumps({**stored, "rates": [unmeasured]}),
        json.dumps({**stored, "rates": [backwards]}),
        json.dumps({**stored, "rates": [{**backwards, "seconds": [math.nan]}]}),
        json.dumps({**stored, "rates": [{**stored["rates"][0], "kind": "dreaming"}]}),
        json.dumps({**stored, "setting": {**stored["setting"], "name": "Another"}}),
    ]


def test_a_damaged_file_is_told_and_what_to_do() -> None:
    file = keep_calibration(measured())
    for text in damaged(file.read_text()):
        file.write_text(text, encoding="latin-1")
        for ask in (lambda: kept_calibration("cpu"), lambda: constants_of("cpu")):
            with pytest.raises(EntrenarError, match="is damaged: ") as caught:
                ask()
            assert caught.value.hint == "calibrate again: `entrenar-inspect calibrate`"


def test_what_cannot_be_kept_is_told(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        keep_calibration(measured())


def test_constants_come_from_the_table_and_say_from_where() -> None:
    for device, rounding in (("cpu", 64), ("cuda", 512)):
        found = constants_with(device, None)  # type: ignore[arg-type]
        assert not found.calibrated
        assert found.rounding.size_bytes == rounding
        assert all(one.source for one in (found.rounding, found.process, found.workspace))
    assert constants_with("cuda", None).beside_bytes == 500_000_000 + 32 * 2**20
    assert not constants_with("cuda", None).process.measured
    assert constants_of("cpu") == constants_with("cpu", None)


def test_what_was_measured_lies_over_the_table() -> None:
    keep_calibration(measured())
    found, table = constants_of("cpu"), constants_with("cpu", None)
    assert found.calibrated
    assert found.calibrated_at == "2026-05-04T10:00:00+00:00"
    assert found.torch_version == torch.__version__
    assert found.process.size_bytes == 612_000_000
    assert found.process.source.startswith("measured here on 2026-05-04, with torch ")
    assert found.rounding == table.rounding
    assert f"process: 612 MB ({found.process.source})" in found.assumptions


def test_the_table_is_read_without_torch() -> None:
    asks = "from entrenar_core.memory.constants import constants_of; constants_of('cpu')"
    code = f"import sys; {asks}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_not_measured() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        calibrate("cuda")


def test_a_busy_machine_is_told() -> None:
    assert said_of_load(0.9, 2) == ()
    (note,) = said_of_load(1.4, 2)
    assert note.startswith("other programs were at work (a load of 1.4 on 2 cores)")


def test_a_process_that_is_killed_is_told_and_leaves_nothing(home: Path) -> None:
    def kill(done: int, total: int, doing: str) -> None:
        assert (done, total, doing) == (0, 1, "memory of the process")
        for child in children():
            child.kill()

    with pytest.raises(EntrenarError, match="signal 9 ended its process, perhaps for want of memory"):
        calibrate("cpu", kill, ["tiny"])
    assert not home.exists()


def test_an_interrupt_ends_the_process_and_leaves_nothing(home: Path) -> None:
    def interrupt(_done: int, _total: int, _doing: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate("cpu", interrupt, ["tiny"])
    assert children() == []
    assert not home.exists()


def test_the_process_ends_with_the_one_that_started_it() -> None:
    code = """
import os, psutil, time
from entrenar_core.memory.calibrating import calibrate, said_of_load
def tell(done, total, doing):
    print(psutil.Process().children()[0].pid, flush=True)
    time.sleep(60)
calibrate("cpu", tell, ["tiny"])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    assert child.wait(30) is None
