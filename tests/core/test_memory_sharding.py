"""Memory of each device that shares a training: published figures of ZeRO, identities, and measured processes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.errors import ModelError
from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Sharding, Spreading, Strategy, Teaching, TrainingJob
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.sharding import ShardedTrace, divided, sharded
from entrenar_core.memory.spreading import spread
from entrenar_core.memory.steps import trace_training
from entrenar_core.memory.units import Facts, Unit, Units, facts_of, unit_sizes
from sharded_memory import alone, job_of, peaks

STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero1", "zero2", "fsdp")
DISTILLED = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def llama(layers: int = 4, **sizes: Any) -> HeldModel:
    sizes = {**SMALL, "vocab_size": 320, "num_hidden_layers": layers, "max_position_embeddings": 64, **sizes}
    return HeldModel("small", AutoConfig.for_model("llama", pad_token_id=0, **sizes), "causal-lm")


def whole_bytes(held: HeldModel) -> int:
    return sum(tensor.nbytes for tensor in (*empty_model(held).parameters(), *empty_model(held).buffers()))


def on(job: TrainingJob, trace: Trace, devices: int, strategy: Strategy, *, offload: bool = False) -> ShardedTrace:
    return sharded(trace, facts_of(job), Sharding(devices, strategy, offload))


@pytest.fixture(scope="module")
def job() -> TrainingJob:
    return TrainingJob(llama(), batch_size=2, length=16, padded=False)


@pytest.fixture(scope="module")
def trace(job: TrainingJob) -> Trace:
    return predict(job).trace


@pytest.mark.parametrize(("strategy", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("fsdp", 1.9)])
def test_agrees_with_the_figures_of_the_zero_paper(strategy: Strategy, gigabytes: float) -> None:
    """Figure 1: 7.5 billion parameters, 64 devices, Adam in mixed precision with K = 12."""
    parameters = 7_500_000_000
    held = {
        ("student weights", "float16"): 2 * parameters,
        ("gradients", "float16"): 2 * parameters,
        ("optimizer", "float32"): 12 * parameters,
    }
    shares = divided(Moment("optimizer", None, held), Sharding(64, strategy))
    assert sum(shares.values()) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_device_has_all_of_it(job: TrainingJob, trace: Trace, strategy: Strategy) -> None:
    assert on(job, trace, 1, strategy) == ShardedTrace(trace)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_devices_never_take_more(job: TrainingJob, trace: Trace, strategy: Strategy) -> None:
    found = [on(job, trace, devices, strategy).trace.peak.total_bytes for devices in (2, 3, 4, 8, 64)]
    assert found == sorted(found, reverse=True)


def test_every_stage_of_zero_takes_less_than_the_one_before(trace: Trace) -> None:
    shares = [sum(divided(trace.phases["optimizer"], Sharding(8, strategy)).values()) for strategy in STRATEGIES]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares)


def test_shares_of_all_devices_are_the_whole(job: TrainingJob, trace: Trace) -> None:
    """Between steps nothing is gathered, and the sizes of the model can be divided by four."""
    whole, part = (one.phases["optimizer"].components for one in (trace, on(job, trace, 4, "fsdp").trace))
    buffers = sum(buffer.nbytes for buffer in empty_model(job.student).buffers())
    assert 4 * (part["student weights"] - buffers) == whole["student weights"] - buffers
    assert 4 * part["gradients"] == whole["gradients"]
    assert 4 * part["optimizer"] == pytest.approx(whole["optimizer"], abs=4 * 4)


def test_ddp_has_the_gradients_once_more(job: TrainingJob, trace: Trace) -> None:
    gradients = sum(parameter.nbytes for parameter in empty_model(job.student).parameters())
    more = [
        shared.total_bytes - one.total_bytes
        for shared, one in zip(on(job, trace, 2, "ddp").trace.moments, trace.moments, strict=True)
    ]
    assert set(more) == {gradients}


@given(devices=st.integers(2, 9), rows=st.integers(1, 4), layers=st.integers(2, 6), width=st.integers(1, 1000))
def test_what_is_not_divided_stays(devices: int, rows: int, layers: int, width: int) -> None:
    unit = Unit({"float32": 4 * width}, {"float32": 4 * width})
    facts = Facts(Units((unit,) * layers, unit))
    held = {
        ("student weights", "float32"): 4 * width * (layers + 1),
        ("activations", "float32"): rows,
        ("cache", "int8"): 3,
    }
    made = sharded(Trace((Moment("loaded", None, held),), 0, 0, 0), facts, Sharding(devices, "fsdp"))
    assert made.trace.peak.components == {
        "student weights": -(-4 * width * (layers + 1) // devices),
        "activations": rows,
        "cache": 3,
    }


def test_units_are_the_layers_and_what_encloses_them(job: TrainingJob) -> None:
    model = empty_model(job.student)
    units = unit_sizes(model)
    layers: Any = model.get_submodule("model.layers")
    assert [unit.size_bytes for unit in units.layers] == [
        sum(one.nbytes for one in layer.parameters()) for layer in layers
    ]
    assert sum(units.weights.values()) == sum(parameter.nbytes for parameter in model.parameters())
    assert units.root.size_bytes == (2 * 320 * 64 + 64) * 4


def test_tied_weights_are_counted_once() -> None:
    assert unit_sizes(empty_model(llama(tie_word_embeddings=True))).root.size_bytes == (320 * 64 + 64) * 4


@pytest.mark.parametrize(("strategy", "teachers"), [("ddp", 1.0), ("zero2", 1.0), ("fsdp", 0.25)])
def test_a_teacher_is_divided_where_weights_are(job: TrainingJob, strategy: Strategy, teachers: float) -> None:
    taught = replace(job, teachers=(Teaching(llama(6)),))
    trace = predict(taught).trace
    whole, part = (
        one.moments[0].components["teacher weights"] for one in (trace, on(taught, trace, 4, strategy).trace)
    )
    assert part / whole == pytest.approx(teachers, rel=0.01)
    assert any("teacher" in sentence for sentence in on(taught, trace, 4, strategy).assumptions)


def test_offloading_moves_weights_and_states_to_main_memory(job: TrainingJob, trace: Trace) -> None:
    weights = sum(parameter.nbytes for parameter in empty_model(job.student).parameters())
    made = on(job, trace, 2, "fsdp", offload=True)
    assert made.host_bytes == pytest.approx(4 * weights, rel=0.01)  # with gradients and two moments
    assert all("optimizer" not in moment.components for moment in made.trace.moments)
    assert made.trace.peak.total_bytes < on(job, trace, 2, "fsdp").trace.peak.total_bytes
    assert on(job, trace, 2, "ddp", offload=True).host_bytes == 2 * made.host_bytes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_deep_model_told_from_few_layers_takes_what_all_of_them_take(strategy: Strategy) -> None:
    deep = TrainingJob(llama(9), batch_size=1, length=8, padded=False)
    told, seen = predict(deep), trace_training(deep, [None])
    assert told.method == "extrapolated"
    peaks_found = [on(deep, one, 2, strategy).trace.peak.total_bytes for one in (told.trace, seen)]
    assert peaks_found[0] == pytest.approx(peaks_found[1], rel=0.005)


def test_devices_take_about_as_much_and_all_of_it() -> None:
    held = llama(8)
    found = spread(held, Spreading("auto", 2, 10**9))
    whole = whole_bytes(held)
    assert sum(found.size_bytes.values()) == whole
    assert max(found.size_bytes.values()) <= 0.6 * whole
    assert set(found.size_bytes) == {0, 1}


def test_quantised_layers_are_counted_as_stored() -> None:
    pytest.importorskip("bitsandbytes")
    held = replace(llama(8), load_in="nf4")
    found = spread(held, Spreading("auto", 2, 10**9))
    kept = sum(parameter.nbytes for name, parameter in empty_model(held).named_parameters() if "proj" not in name)
    numbers = sum(parameter.numel() for name, parameter in empty_model(held).named_parameters() if "proj" in name)
    layers = 8 * 7
    expected = kept + numbers // 2 + 4 * numbers // 64 + layers * 16 * 4 + 64 // 4 // 2 * 4
    assert sum(found.size_bytes.values()) == pytest.approx(expected, rel=0.001)
    with pytest.raises(ModelError, match="does not fit on 2 devices"):
        spread(held, Spreading("auto", 2, 30_000))


def test_what_fits_nowhere_is_where_transformers_puts_it(tmp_path: Any) -> None:
    held = llama(6)
    AutoModelForCausalLM.from_config(held.config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    room = sum(parameter.nbytes for parameter in empty_model(held).parameters()) // 2
    real = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path, dtype=torch.float32
    )
    found = spread(held, Spreading("auto", 0, 0, room))
    assert found.modules == real.hf_device_map
    assert set(found.size_bytes) == {"cpu", "disk"}
    assert found.size_bytes["cpu"] <= room


@pytest.mark.parametrize("how", ["auto", {"": 0}, {"": 1}, {"": "cuda:1"}, {"": "cpu"}, "cpu"])
def test_a_teacher_is_where_it_is_said_to_be(how: Any) -> None:
    """Beside a student whose training takes more than any part of the teacher."""
    student, teacher = llama(4), llama(8)
    one = TrainingJob(student, 4, 16, teachers=(Teaching(teacher),), terms=DISTILLED, device="cuda")
    alone = predict(one)
    spreading = Spreading(how, 2, 10**9)
    made = predict(replace(one, teachers=(Teaching(teacher, spreading=spreading),)))
    whole = alone.trace.moments[0].components["teacher weights"]
    there = {0: whole, 1: 0} | {0: spread(teacher, spreading).size_bytes.get(0, 0)}
    assert made.trace.phases["loaded"].components.get("teacher weights", 0) == there[0]
    assert made.host_bytes == (whole if how in ("cpu", {"": "cpu"}) else 0)
    assert alone.peak_bytes - made.peak_bytes <= whole - there[0]
    assert "device map" in made.assumptions[-2]


def test_a_fuller_second_device_is_the_one_that_is_told() -> None:
    teacher = llama(8)
    one = TrainingJob(llama(1), 1, 2, terms=DISTILLED, device="cuda")
    made = predict(replace(one, teachers=(Teaching(teacher, spreading=Spreading({"": 1}, 2, 10**9)),)))
    assert set(made.trace.phases) == {"teacher"}
    assert made.trace.peak.components["teacher weights"] == whole_bytes(teacher)


def test_a_generation_has_a_share_of_layers_and_of_what_they_keep_on_each_device() -> None:
    job = InferenceJob(llama(8), 2, 64, device="cuda")
    alone, spread_ = predict(job), predict(replace(job, spreading=Spreading("auto", 2, 10**9)))
    for component in ("student weights", "KV cache"):
        share = spread_.trace.peak.components[component] / alone.trace.peak.components[component]
        assert 0.5 <= share <= 0.65


RUNS = [
    {"strategy": "ddp", "devices": 2, "lora": True, "rows": 8},
    {"strategy": "ddp", "devices": 2, "precision": "bf16", "rows": 4},
    {"strategy": "fsdp", "devices": 2},
    {"strategy": "fsdp", "devices": 4},
    {"strategy": "fsdp", "devices": 2, "rows": 16},
    {"strategy": "fsdp", "devices": 2, "rows": 16, "checkpointing": True},
    {"strategy": "fsdp", "devices": 2, "lora": True, "rows": 8},
    {"strategy": "fsdp", "devices": 2, "precision": "bf16", "rows": 4},
    {"strategy": "fsdp", "devices": 2, "sizes": {"vocab_size": 32000}},
    {"strategy": "fsdp", "devices": 2, "sizes": {"vocab_size": 32000, "tie_word_embeddings": True}},
]


def agrees(spec: dict[str, Any]) -> None:
    job = job_of(spec)
    predicted = sharded(predict(alone(job)).trace, facts_of(job), job.sharding).trace.peak.total_bytes
    assert predicted == pytest.approx(max(peaks(spec)), rel=0.1)


@pytest.mark.slow
def test_two_processes_of_ddp_take_what_is_predicted() -> None:
    agrees({"strategy": "ddp", "devices": 2, "rows": 1, "sizes": {"num_hidden_layers": 4, "intermediate_size": 2048}})


@pytest.mark.nightly
@pytest.mark.parametrize("spec", RUNS, ids=str)
def test_processes_take_what_is_predicted(spec: dict[str, Any]) -> None:
    agrees(spec)
