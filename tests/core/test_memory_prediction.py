"""Predictions against figures that are known, real optimisers, real quantised models, and what must grow with what."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.schema import OptimizerName
from entrenar_core.errors import EntrenarError, ModelError
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import CachedSignals, DeviceType, HeldModel, Teaching, TrainingJob
from entrenar_core.memory.optimizers import traced_optimizer
from entrenar_core.memory.predicting import predict
from memory_twins import held

# meta-llama/Llama-2-7b-hf and meta-llama/Llama-2-70b-hf, config.json
LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA_2_70B = {
    **LLAMA_2_7B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
}  # fmt: skip
PARAMETERS_7B = 6_738_415_616
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@cache
def seven_billion(rank: int | None = None, optimizer: OptimizerName = "adamw", load_in: Any = None) -> Estimate:
    model = HeldModel("llama-2-7b", LlamaConfig(**LLAMA_2_7B), "causal-lm", load_in=load_in, double_quantized=True)
    adapters = None if rank is None else LoraAdapter(rank=rank, target_modules=ATTENTION)
    return predict(TrainingJob(model, 1, 128, adapters=adapters, optimizer=optimizer))


def test_llama_2_7b_has_its_weights() -> None:
    found = seven_billion()
    assert found.method == "extrapolated"
    assert found.trace.parameters == found.trace.trainable_parameters == PARAMETERS_7B
    weights = found.trace.peak.components["student weights"]
    assert 4 * PARAMETERS_7B <= weights < 4 * PARAMETERS_7B + 1000  # and the frequencies of positions
    assert weights == pytest.approx(26.95e9, rel=1e-3)
    assert found.trace.phases["optimizer"].components["gradients"] == 4 * PARAMETERS_7B


@pytest.mark.parametrize(("rank", "trained"), [(16, 16_777_216), (64, 67_108_864)])
def test_adapters_of_llama_2_7b_train_what_is_known(rank: int, trained: int) -> None:
    trace = seven_billion(rank).trace
    assert trace.trainable_parameters == trained
    assert trace.parameters == PARAMETERS_7B + trained
    assert trace.phases["optimizer"].components["gradients"] == 4 * trained
    assert trace.peak.components["optimizer"] == pytest.approx(8 * trained, rel=1e-4)


@pytest.mark.parametrize(("name", "each"), [("adamw", 8.0), ("adamw-8bit", 2 + 8 / 256), ("sgd", 0.0)])
def test_optimisers_keep_what_is_known_of_a_parameter(name: OptimizerName, each: float) -> None:
    kept = seven_billion(optimizer=name).trace.peak.components.get("optimizer", 0)
    assert kept / PARAMETERS_7B == pytest.approx(each, rel=1e-3, abs=1e-6)


def test_four_bits_of_llama_2_7b_take_what_qlora_says() -> None:
    """Dettmers et al. 2023: 0.5 + 0.127 / 8 bytes a weight with double quantisation; the rest at 32 bits."""
    quantised = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    others = PARAMETERS_7B - quantised
    adapters = 67_108_864
    weights = seven_billion(64, load_in="nf4").trace.peak.components["student weights"]
    assert weights == pytest.approx(quantised * (0.5 + 0.127 / 8) + 4 * (others + adapters), rel=1e-4)


def quantised_model(load_in: str, *, double: bool, folder: Path) -> Any:
    config = held("llama", hidden_size=256, intermediate_size=320, num_hidden_layers=2).config
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_8bit=load_in == "int8",
        load_in_4bit=load_in != "int8",
        bnb_4bit_quant_type="nf4" if load_in == "int8" else load_in,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32)


def _bytes(tensors: Any) -> int:
    return sum(one.untyped_storage().nbytes() for one in tensors if isinstance(one, Tensor))


def stored_bytes(model: Any) -> int:
    """Of all tensors of a model whose layers bitsandbytes quantised."""
    total = _bytes([*model.parameters(), *model.buffers()])
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            total += _bytes([state.absmax, state.code, state.offset])
            if state.nested:
                total += _bytes([state.state2.absmax, state.state2.code])
        if type(module).__name__ == "Linear8bitLt":
            total += _bytes([module.weight.SCB if module.weight.SCB is not None else module.state.SCB])
    return total


@pytest.mark.parametrize(("load_in", "double"), [("nf4", False), ("nf4", True), ("fp4", True), ("int8", False)])
def test_quantised_weights_are_those_of_bitsandbytes(load_in: Any, *, double: bool, tmp_path: Path) -> None:
    real = quantised_model(load_in, double=double, folder=tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    model = HeldModel("tiny", config, "causal-lm", load_in=load_in, double_quantized=double)
    job = TrainingJob(model, 1, 8, adapters=LoraAdapter(rank=1))
    guessed = predict(job)
    adapters = guessed.trace.trainable_parameters * 4
    assert guessed.method == "traced"
    assert guessed.trace.moments[0].components["student weights"] - adapters == stored_bytes(real)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_states_are_those_of_real_optimisers(name: OptimizerName) -> None:
    made: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
        "sgd": torch.optim.SGD,
        "adafactor": torch.optim.Adafactor,
    }
    model = held("gpt2")
    real = AutoModelForCausalLM.from_config(model.config)
    optimizer = made[name](real.parameters())
    ids_BT = torch.randint(0, 96, (2, 8))
    real(input_ids=ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    kept = _bytes(value for state in optimizer.state.values() for value in state.values())
    found = predict(TrainingJob(model, 2, 8, optimizer=name))
    assert found.method == "traced"
    assert found.trace.peak.components.get("optimizer", 0) == kept


def test_states_of_8_bits_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.optim import AdamW8bit

    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 64), (63, 64), (100, 99), (7,))]
    real = AdamW8bit(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    try:
        real.step()
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"bitsandbytes has no step for this machine: {error}")
    kept = {
        value.untyped_storage().data_ptr(): value
        for state in real.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    assert _bytes(traced_optimizer("adamw-8bit", parameters).states()) == _bytes(kept.values())


def test_a_step_of_8_bits_needs_five_copies_of_a_parameter_at_a_time_on_a_cpu() -> None:
    """Of the largest, as bitsandbytes' backend for CPUs has them; the kernels of GPUs need none."""
    model = held("llama", vocab_size=4096)
    largest = max(one.numel() for one in empty_model(model).parameters())
    job = TrainingJob(model, 1, 4, optimizer="adamw-8bit")
    needed = {}
    devices: tuple[DeviceType, ...] = ("cpu", "cuda")
    for device in devices:
        moment = predict(replace(job, device=device)).trace.phases["optimizer"]
        needed[device] = moment.components.get("workspace", 0)
    assert needed["cpu"] == 5 * 4 * largest
    assert needed["cuda"] < largest


SIZES = st.integers(1, 4)
SEVERAL = max(2, min(50, settings.default.max_examples // 50))  # a prediction takes half a second


def peak(job: TrainingJob) -> int:
    return predict(job).peak_bytes


def tiny(layers: int = 2, **changes: Any) -> TrainingJob:
    return replace(TrainingJob(held("llama", num_hidden_layers=layers), 2, 12), **changes)


@settings(max_examples=SEVERAL)
@given(batch=SIZES, more=SIZES, length=st.integers(4, 40))
def test_more_rows_take_more(batch: int, more: int, length: int) -> None:
    job = tiny(batch_size=batch, length=length)
    assert peak(job) < peak(replace(job, batch_size=batch + more))


@settings(max_examples=SEVERAL)
@given(length=st.integers(2, 60), more=st.integers(1, 60))
def test_longer_rows_take_more(length: int, more: int) -> None:
    assert peak(tiny(length=length)) < peak(tiny(length=length + more))


@settings(max_examples=SEVERAL)
@given(rank=st.integers(1, 8), more=SIZES)
def test_a_larger_rank_takes_more(rank: int, more: int) -> None:
    assert peak(tiny(adapters=LoraAdapter(rank=rank))) < peak(tiny(adapters=LoraAdapter(rank=rank + more)))


@settings(max_examples=SEVERAL)
@given(layers=st.integers(1, 9), more=SIZES)
def test_more_layers_take_more(layers: int, more: int) -> None:
    assert peak(tiny(layers)) < peak(tiny(layers + more))


@settings(max_examples=3)
@given(layers=st.integers(2, 12), batch=SIZES, length=st.integers(8, 64), kind=st.sampled_from(["llama", "gpt2"]))
def test_checkpoints_never_take_more_activations(layers: int, batch: int, length: int, kind: str) -> None:
    depth = {"n_layer" if kind == "gpt2" else "num_hidden_layers": layers}
    job = TrainingJob(held(kind, **depth), batch, length)
    plain, checkpointed = (predict(replace(job, gradient_checkpointing=given)).trace for given in (False, True))
    assert checkpointed.phases["forward"].components["activations"] < plain.phases["forward"].components["activations"]
    assert checkpointed.flops > plain.flops
    assert checkpointed.phases["optimizer"] == plain.phases["optimizer"]


def test_a_teacher_takes_more_live_than_cached() -> None:
    terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
    teacher = held("llama", num_hidden_layers=6)
    jobs = {
        kind: tiny(terms=terms, teachers=(Teaching(teacher, cached=cached),))
        for kind, cached in (
            ("live", None),
            ("hidden", CachedSignals("hidden")),
            ("topk", CachedSignals("topk", 8)),
        )
    }
    found = {kind: predict(job) for kind, job in jobs.items()}
    alone = peak(tiny())
    assert alone < found["topk"].peak_bytes < found["live"].peak_bytes
    assert alone < found["hidden"].peak_bytes < found["live"].peak_bytes
    live = found["live"].trace
    assert live.peak.components["teacher weights"] >= 4 * live.teacher_parameters > 0
    assert "teacher weights" not in found["hidden"].trace.peak.components
    assert found["hidden"].trace.peak.components["cache"] == 96 * 32 * 4, "the teacher's head"


def test_micro_batches_take_less_than_a_large_batch() -> None:
    whole, parts = tiny(batch_size=16, length=64), tiny(batch_size=4, length=64, gradient_accumulation=4)
    assert peak(parts) < peak(whole)
    gradients = predict(parts).trace.phases["forward"].components["gradients"]
    assert gradients == 4 * predict(parts).trace.trainable_parameters


def test_logits_all_at_once_take_more() -> None:
    model = held("llama", vocab_size=50_000)
    job = TrainingJob(model, 16, 128)
    assert peak(replace(job, all_logits=True)) > peak(job) + 16 * 127 * 50_000 * 4


def test_bytes_are_rounded_up_as_an_allocator_does() -> None:
    exact, rounded = predict(tiny()), predict(tiny(), 512)
    assert exact.peak_bytes < rounded.peak_bytes
    assert all(size_bytes % 512 == 0 for size_bytes in rounded.trace.peak.held.values())


SEVENTY = """
import json, sys, time
from transformers import LlamaConfig
import torch
from entrenar_core.memory import predicting
from entrenar_core.memory.jobs import HeldModel, TrainingJob
from transformers.models.llama import modeling_llama
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before, began = resident(), time.process_time()
config = LlamaConfig(**json.loads(sys.argv[1]))
found = predicting.predict(TrainingJob(HeldModel("70b", config, "causal-lm", dtype="bfloat16"), 1, 512))
print(json.dumps({"grown": resident() - before, "took_s": time.process_time() - began,
                  "parameters": found.trace.parameters, "method": found.method}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_seventy_billion_weights_are_not_allocated() -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-c", SEVENTY, json.dumps(LLAMA_2_70B)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    said = json.loads(done.stdout)
    assert said["method"] == "extrapolated"
    assert said["parameters"] == 68_976_648_192
    assert said["grown"] < 1e9
    assert said["took_s"] < 10, "of a processor that has other work"


def test_a_rank_that_a_matrix_cannot_have_is_refused() -> None:
    with pytest.raises(ModelError, match=r"rank of 17.*16 × 32") as found:
        predict(tiny(adapters=LoraAdapter(rank=17, target_modules=("k_proj",))))
    assert "at most 16" in str(found.value.hint)


def test_layers_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(ModelError, match=r"llama takes no adapters.*c_attn"):
        predict(tiny(adapters=LoraAdapter(rank=2, target_modules=("c_attn",))))


def test_more_layers_than_any_model_has_are_a_mistake() -> None:
    config = LlamaConfig(**{**held("llama").config.to_dict(), "num_hidden_layers": 100_000})
    with pytest.raises(ModelError, match="says that it has 100,000 layers"):
        predict(TrainingJob(HeldModel("deep", config, "causal-lm"), 1, 8))


def test_a_model_that_transformers_does_not_know_is_refused() -> None:
    from transformers import PreTrainedConfig

    unknown = PreTrainedConfig(model_type="nobody-knows-it", hidden_size=8)
    with pytest.raises(EntrenarError) as found:
        predict(TrainingJob(HeldModel("nobody/knows-it", unknown, "causal-lm"), 1, 8))
    assert found.value.hint
