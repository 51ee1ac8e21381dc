"""`calibrate` at the command line: what is measured and kept, how it is shown again, what is refused, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from entrenar_core.memory.calibration import kept_calibration
from entrenar_core.memory.constants import constants_of
from entrenar_core.memory.machine import this_machine
from entrenar_core.memory.timing import time_of
from entrenar_inspect.calibrating import calibrate
from entrenar_inspect.reports.calibration import CalibrationReport

Check = Callable[..., dict[str, Any]]
PRECISIONS = ("fp32", "bf16")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CalibrationReport, Path]]:
    """This machine, measured with a model of a few thousand weights and one thread, for several wait for each other."""
    folder, threads = tmp_path_factory.mktemp("home"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTRENAR_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield calibrate("cpu", ["tiny"]), folder
    torch.set_num_threads(threads)


def test_a_machine_is_measured_and_what_was_found_is_used(measured: tuple[CalibrationReport, Path]) -> None:
    report, folder = measured
    assert report.file.parent == folder / "calibrations"
    assert [one.name for one in report.file.parent.iterdir()] == [report.file.name]
    assert (report.device, report.torch_version) == ("cpu", torch.__version__)
    assert report.threads == 1
    assert 200e6 < report.process_bytes < psutil.virtual_memory().total
    kinds = [("training", "FLOP"), ("update", "parameters"), ("reading", "FLOP"), ("decoding", "bytes")]
    expected = {(kind, precision, unit) for kind, unit in kinds for precision in PRECISIONS}
    assert {(rate.kind, rate.precision, rate.unit) for rate in report.rates} == expected
    for rate in report.rates:
        assert 0 < rate.slowest_per_second <= rate.per_second <= rate.fastest_per_second
        assert rate.rounds >= 1
    constants = constants_of("cpu")
    assert constants.calibrated
    assert constants.process.size_bytes == report.process_bytes
    found = time_of(10**9, "fp32", this_machine("cpu"), kept_calibration("cpu").calibration)
    training = next(rate for rate in report.rates if (rate.kind, rate.precision) == ("training", "fp32"))
    assert found.seconds == pytest.approx(1e9 / training.per_second)


def test_what_was_measured_is_shown_in_all_forms(
    measured: tuple[CalibrationReport, Path], program: Any, check_output: Check
) -> None:
    report, _ = measured
    check_output(
        program,
        ["calibrate", "--show", "--device", "cpu"],
        values={
            "device": "cpu",
            "name": report.name,
            "process_bytes": report.process_bytes,
            "rounding_bytes": None,
            "file": str(report.file),
            "notes": list(report.notes),
        },
        shows=["training, forward and backward", "writing a token", "FLOP", "! measured with a tiny model alone"],
        lines=["Device\tcpu", f"Process\t{report.process_bytes}"],
        quiet=[str(report.file)],
    )


def test_nothing_measured_is_told(home: Path, program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["calibrate", "--show", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "was not calibrated" in err
    assert "hint: run `entrenar-inspect calibrate --device cpu`" in err


def test_a_damaged_file_is_told_without_a_traceback(
    measured: tuple[CalibrationReport, Path], home: Path, program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "calibrations" / measured[0].file.name
    file.parent.mkdir()
    file.write_text(measured[0].file.read_text()[:200])
    assert program(["--json", "calibrate", "--show", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert error["message"] == f"the calibration {file} is damaged: it is not JSON"
    assert error["hint"] == "calibrate again: `entrenar-inspect calibrate`"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_a_usage_error(home: Path, program: Any, capsys: Any) -> None:
    assert program(["calibrate", "--device", "cuda"]) == 2
    assert "error: torch finds no CUDA device here" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_ctrl_c_leaves_neither_a_file_nor_a_process(home: Path) -> None:
    command = [sys.executable, "-m", "entrenar_inspect", "calibrate", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        while not (children := psutil.Process(process.pid).children()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert not any(child.is_running() for child in children)
    assert list(home.iterdir()) == []


@pytest.mark.nightly
def test_a_calibration_tells_how_long_another_training_takes(home: Path, program: Any, capsys: Any) -> None:
    from entrenar_core.memory.timed_steps import Size, Training, rounds, training_flops

    assert program(["calibrate", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {rate["model"] for rate in report["rates"]} == {"small", "medium"}
    other = Size("small", width=512, inner=1376, heads=8, layers=6, vocabulary=8000, rows=4, length=128)
    job = other.training("cpu", "fp32")
    step = Training(job)
    seconds = sorted(sum(one) for one in rounds(step, least=3, most=5, budget_s=10))
    trained = sum(one.numel() for one in step.model.parameters())
    calibration = kept_calibration("cpu").calibration
    found = time_of(training_flops(job)[0], "fp32", this_machine("cpu"), calibration, trained_parameters=trained)
    assert found.seconds == pytest.approx(seconds[len(seconds) // 2], rel=0.5)
