"""The benchmarks still compute what they compare. How long it takes is for them to say, not for tests."""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("peers", "peers.losses", "peers.machine", "peers.measuring", "peers.runs", request.param):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark_named", ["loop"], indirect=True)
def test_the_loop_and_the_one_by_hand_have_the_same_losses(benchmark_named: ModuleType) -> None:
    *cases, real = benchmark_named.cases(quick=True)
    assert [case.causal for case in (*cases, real)] == [False, True, False]
    for case in cases:
        short = dataclasses.replace(case, training=case.training.model_copy(update={"max_steps": 4}))
        turns = benchmark_named.measure(short)
        assert turns.losses == pytest.approx(turns.by_hand.losses, rel=1e-4)
        assert len(turns.losses) == len(turns.ours_s) == len(turns.theirs_s) == 4


@pytest.mark.parametrize("benchmark_named", ["losses"], indirect=True)
@pytest.mark.parametrize("divergence", ["forward KL", "JSD"])
def test_our_side_of_the_losses_is_measured(benchmark_named: ModuleType, divergence: str) -> None:
    import torch

    threads = torch.get_num_threads()
    found = benchmark_named.work("entrenar", benchmark_named.Case(64, 16, 0.5, divergence, 1))
    torch.set_num_threads(threads)
    assert found["value"] > 0
    assert found["cpu_s"] > 0
    assert found["value_difference"] == found["gradient_difference"] == 0


@pytest.mark.nightly
@pytest.mark.parametrize("benchmark_named", ["end_to_end"], indirect=True)
def test_our_side_of_a_whole_distillation_is_measured(benchmark_named: ModuleType, tmp_path: Path) -> None:
    from peers.runs import Job, prepare

    prepare(Job(tmp_path, 6))
    found = benchmark_named.trained("entrenar", tmp_path, 6)
    assert len(found["losses"]) == 6
    assert found["tokens_per_cpu_s"] > 0
    assert found["peak_bytes"] > 0
