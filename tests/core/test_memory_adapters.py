"""Predictions of every method of adapting: against the same steps done, real peaks, and what peft makes of a model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from entrenar_core.config.adapters import (
    AdaptionPromptAdapter,
    AnyAdapter,
    BiasAdapter,
    Ia3Adapter,
    LoraAdapter,
    PrefixAdapter,
    PromptAdapter,
    Quantization,
)
from entrenar_core.errors import ModelError
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import HeldModel, TrainingJob
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.quantised import quantize_
from entrenar_core.memory.steps import trace_training
from memory_process import FIXED
from memory_twins import counted, held, really

ADAPTERS: dict[str, AnyAdapter] = {
    "dora": LoraAdapter(rank=2, dora=True),
    "rslora": LoraAdapter(rank=2, rslora=True, target_modules="all-linear"),
    "biases": LoraAdapter(rank=2, biases="all", modules_to_save=("lm_head",)),
    "some layers": LoraAdapter(rank=2, layers=(0,), rank_pattern={"q_proj": 4}),
    "ia3": Ia3Adapter(method="ia3"),
    "prompt": PromptAdapter(method="prompt", virtual_tokens=5),
    "prefix": PrefixAdapter(method="prefix", virtual_tokens=5),
    "bias": BiasAdapter(method="bias"),
    "adaption-prompt": AdaptionPromptAdapter(method="adaption-prompt", virtual_tokens=3),
}
SEVEN_LAYERS = {"num_hidden_layers": 7}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_step_with_an_adapter_is_as_it_is_done(name: str) -> None:
    """The most of it, which is what is asked about; and the operations."""
    job = counted(TrainingJob(held("llama"), 3, 12, adapters=ADAPTERS[name]))
    guessed, done = trace_training(job, [None]), really(job)
    assert guessed.peak.total_bytes == pytest.approx(done.peak.total_bytes, rel=0.01)
    assert (guessed.flops, guessed.trainable_parameters) == (done.flops, done.trainable_parameters)


def parameters_by_peft(name: str) -> int:
    """What trains of a Llama, as peft counts it."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from entrenar_core.models.peft_settings import peft_settings

    config = held("llama").config
    settings = peft_settings(ADAPTERS[name], config.to_dict(), "causal-lm", "llama")
    model = get_peft_model(AutoModelForCausalLM.from_config(config), settings)
    return int(model.get_nb_trainable_parameters()[0])


@pytest.mark.parametrize("name", ADAPTERS)
def test_as_many_parameters_train_as_peft_says(name: str) -> None:
    assert predict(TrainingJob(held("llama"), 2, 8, adapters=ADAPTERS[name])).trace.trainable_parameters == (
        parameters_by_peft(name)
    )


@pytest.mark.parametrize("name", ["dora", "some layers", "prompt", "prefix", "adaption-prompt"])
def test_a_deep_model_is_told_from_a_few_layers(name: str) -> None:
    job = TrainingJob(held("llama", **SEVEN_LAYERS), 2, 8, adapters=ADAPTERS[name])
    found, whole = predict(job), trace_training(job, [None])
    assert found.method == "extrapolated"
    assert (found.peak_bytes, found.trace.trainable_parameters) == (whole.peak.total_bytes, whole.trainable_parameters)


def test_adapters_of_the_uppermost_layers_are_traced_as_a_whole() -> None:
    adapter = AdaptionPromptAdapter(method="adaption-prompt", virtual_tokens=3, layers=2)
    found = predict(TrainingJob(held("llama", **SEVEN_LAYERS), 2, 8, adapters=adapter))
    assert found.method == "traced"
    assert found.trace.trainable_parameters == 2 * (3 * 32 + 1)


def test_virtual_tokens_make_rows_longer() -> None:
    job = TrainingJob(held("llama"), 2, 8)
    few, many = (replace(job, adapters=PromptAdapter(method="prompt", virtual_tokens=tokens)) for tokens in (4, 40))
    assert (few.positions, many.positions, job.positions) == (12, 48, 8)
    longer, shorter = (predict(one).trace.phases["forward"].components["activations"] for one in (many, few))
    alone = predict(replace(job, length=48)).trace.phases["forward"].components["activations"]
    assert shorter < longer < 1.2 * alone


@pytest.mark.parametrize("bits", [4, 8])
def test_dora_on_quantised_weights_is_followed(bits: Any) -> None:
    plain = held("llama", hidden_size=64, intermediate_size=128)
    quantised = plain.quantised(Quantization(bits=bits))
    assert (quantised.load_in, quantised.double_quantized) == (("nf4", True) if bits == 4 else ("int8", False))
    found, other = (predict(TrainingJob(one, 2, 8, adapters=ADAPTERS["dora"])) for one in (quantised, plain))
    assert found.method == other.method == "traced"
    before = [one.trace.moments[0].components["student weights"] for one in (found, other)]
    assert before[0] < before[1]


def test_what_quantised_layers_compute_in_is_heeded() -> None:
    plain = held("llama", hidden_size=64, intermediate_size=128)
    wide, narrow = (plain.quantised(Quantization(compute_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    for model, dtype in ((wide, torch.float32), (narrow, torch.bfloat16)):
        made = empty_model(model)
        quantize_(made, model)
        layers: list[Any] = [one for one in made.modules() if type(one).__name__ == "Linear4bit"]
        assert len(layers) == 14
        assert {layer.compute_dtype for layer in layers} == {dtype}
        assert {layer.read_from for layer in layers} == {torch.float32}


def test_a_prefix_and_checkpoints_exclude_each_other() -> None:
    job = TrainingJob(held("llama"), 2, 8, adapters=ADAPTERS["prefix"], gradient_checkpointing=True)
    with pytest.raises(ModelError, match="would drop it") as found:
        predict(job)
    assert "prompt" in str(found.value.hint)


def test_a_family_that_peft_does_not_know_is_refused() -> None:
    with pytest.raises(ModelError, match="peft has no bias for gpt2"):
        predict(TrainingJob(held("gpt2"), 2, 8, adapters=ADAPTERS["bias"]))


REAL = {
    "dora": LoraAdapter(rank=16, dora=True),
    "ia3": ADAPTERS["ia3"],
    "prompt": PromptAdapter(method="prompt", virtual_tokens=64),
    "prefix": PrefixAdapter(method="prefix", virtual_tokens=64),
    "bias": ADAPTERS["bias"],
    "adaption-prompt": ADAPTERS["adaption-prompt"],
}


def real_job(name: str, *, tiny: bool = False) -> TrainingJob:
    sizes: dict[str, Any] = {
        "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8,
        "num_hidden_layers": 5, "vocab_size": 4000, "max_position_embeddings": 512,
    }  # fmt: skip
    model: HeldModel = held("llama") if tiny else held("llama", **sizes)
    return TrainingJob(model, 1 if tiny else 4, 8 if tiny else 192, adapters=REAL[name])


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("name", REAL)
def test_real_steps_take_what_was_predicted(name: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **FIXED, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=300,
    )
    measured = int(done.stdout.splitlines()[-1])
    assert predict(real_job(name)).peak_bytes == pytest.approx(measured, rel=0.1)


if __name__ == "__main__":
    from entrenar_core.memory.real_steps import measure

    torch.set_num_threads(1)
    measure(real_job(sys.argv[1], tiny=True), 2)
    print(measure(real_job(sys.argv[1]), 2).peak_bytes)  # noqa: T201 - the answer
