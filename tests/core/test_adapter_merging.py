"""Merged models answer as peft's base and adapter do, in float64, for every kind of LoRA that peft saves."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.combining import Combination
from entrenar_core.adapters.merging import write_merged
from entrenar_core.adapters.planning import plan_merge
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from lora_models import answers, by_peft, load, merged, train
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]
CLASSIFIES = {"num_labels": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": tiny_llama(folder / "llama"),
        "untied": tiny_llama(folder / "untied", tie_word_embeddings=False),
        "gpt2": tiny_gpt2(folder / "gpt2"),
        "bert": tiny_bert(folder / "bert"),
        "classifier": tiny_bert(folder / "classifier", num_labels=3),
    }


def lora(*targets: str, **more: Any) -> dict[str, Any]:
    return {"r": 4, "lora_alpha": 8, "target_modules": list(targets), **more}


USUAL = {
    "patterns and the root of the rank": (
        "llama", "causal",
        lora(*ATTENTION, use_rslora=True, rank_pattern={"layers.0.self_attn.q_proj": 8}, alpha_pattern={"v_proj": 3}),
    ),
    "DoRA of transposed layers and a tied head": (
        "gpt2", "causal", lora(*CONV1D, "lm_head", use_dora=True, fan_in_fan_out=True),
    ),
    "DoRA of tied embeddings alone": ("llama", "causal", lora("q_proj", "embed_tokens", use_dora=True)),
    "a head of its own below a bare body": ("bert", "classifies", lora("query", task_type="SEQ_CLS", bias="all")),
    "a bias of B": ("bert", "body", lora("query", lora_bias=True)),
    "PiSSA of transposed layers": (
        "gpt2", "causal", lora("c_attn", init_lora_weights="pissa", fan_in_fan_out=True, use_rslora=True),
    ),
    "OLoRA": ("llama", "causal", lora("q_proj", init_lora_weights="olora")),
    "whole embeddings of which the head is a copy": (
        "llama", "causal", lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
}  # fmt: skip
RARE = {
    "plain": ("llama", "causal", lora(*ATTENTION)),
    "DoRA": ("llama", "causal", lora(*ATTENTION, use_dora=True)),
    "transposed": ("gpt2", "causal", lora(*CONV1D, fan_in_fan_out=True)),
    "transposed, and not said to be": ("gpt2", "causal", lora("c_attn")),
    "a tied head alone": ("llama", "causal", lora("q_proj", "lm_head")),
    "a transposed model's head": ("gpt2", "causal", lora("c_attn", "lm_head", fan_in_fan_out=True)),
    "tied embeddings alone": ("llama", "causal", lora("q_proj", "embed_tokens")),
    "embeddings and a head of its own": ("untied", "causal", lora("q_proj", "embed_tokens", "lm_head")),
    "embeddings and a tied head": ("llama", "causal", lora("q_proj", "embed_tokens", "lm_head")),
    "both, kept tied": ("llama", "causal", lora("q_proj", "embed_tokens", "lm_head", ensure_weight_tying=True)),
    "a whole head, tied before": ("llama", "causal", lora("q_proj", modules_to_save=["lm_head"])),
    "whole embeddings, tied before": ("llama", "causal", lora("q_proj", modules_to_save=["embed_tokens"])),
    "whole embeddings and head": ("llama", "causal", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    "a whole norm": ("llama", "causal", lora("q_proj", modules_to_save=["norm"])),
    "an encoder": ("bert", "body", lora("query", "value", "dense")),
    "biases": ("bert", "body", lora("query", bias="lora_only")),
    "a head that the base has": ("classifier", "classifies", lora("query", task_type="SEQ_CLS")),
    "a decoder that is to classify": ("llama", "classifies", lora("q_proj", task_type="SEQ_CLS")),
    "PiSSA": ("llama", "causal", lora(*ATTENTION, init_lora_weights="pissa")),
    # of others than squares peft's own do not fit
    "OLoRA of transposed layers": ("gpt2", "causal", lora("attn.c_proj", init_lora_weights="olora")),
    "an orthogonal start of transposed layers": ("gpt2", "causal", lora("c_attn", init_lora_weights="orthogonal")),
}


@pytest.mark.parametrize(
    "case",
    [*USUAL.values(), *(pytest.param(case, marks=pytest.mark.nightly) for case in RARE.values())],
    ids=[*USUAL, *RARE],
)
def test_a_merged_model_answers_as_base_and_adapter_in_peft(
    models: dict[str, Path], tmp_path: Path, case: tuple[str, str, dict[str, Any]]
) -> None:
    name, kind, settings = case
    init = settings.get("init_lora_weights")
    adapter = train(models[name], tmp_path / "adapter", kind, size=0.02 if init else 0.2, **settings)
    head = CLASSIFIES if kind == "classifies" else {}
    wanted = by_peft(models[name], adapter, kind, **head)
    report = merged(models[name], [adapter], tmp_path / "merged")
    found = answers(load(tmp_path / "merged", kind))
    before = answers(load(models[name], kind, **head))
    assert (found - wanted).abs().max() <= 1e-5
    assert (before - wanted).abs().max() > 1e-3, "the adapter changes nothing, and so neither would a merge"
    assert report.loss is None or report.loss.overall < 1e-6, "float32 keeps an update"


@pytest.mark.parametrize("method", ["linear", "cat"])
def test_several_adapters_add_up_as_peft_activates_them_together(
    models: dict[str, Path], tmp_path: Path, method: Any
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    base = models["llama"]
    one = train(base, tmp_path / "one", seed=1, **lora("q_proj", "v_proj"))
    two = train(base, tmp_path / "two", seed=2, **{**lora("q_proj", "o_proj"), "r": 7})
    merged(base, [one, two], tmp_path / "merged", (0.7, -0.3), Combination(method))
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one, adapter_name="one")
    both.load_adapter(two, adapter_name="two")
    both.base_model.set_adapter(["one", "two"])
    for module in both.modules():
        for name, weight in (("one", 0.7), ("two", -0.3)):
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    assert (answers(load(tmp_path / "merged")) - answers(both.double().eval())).abs().max() <= 1e-5


def test_a_scaled_dora_adapter_is_between_the_base_and_the_whole_of_it(models: dict[str, Path], tmp_path: Path) -> None:
    base = models["llama"]
    adapter = train(base, tmp_path / "adapter", **lora("q_proj", use_dora=True))
    for weight in (0.0, 0.25, 1.0):
        merged(base, [adapter], tmp_path / f"{weight}", (weight,))
    none, quarter, whole = (load_file(tmp_path / f"{one}" / "model.safetensors") for one in (0.0, 0.25, 1.0))
    before = load_file(base / "model.safetensors")
    for name, tensor in before.items():
        assert torch.allclose(none[name], tensor, atol=1e-7)
        assert torch.allclose(quarter[name], tensor + 0.25 * (whole[name] - tensor), atol=1e-6)


DTYPES = {"F32": (torch.float32, 24), "F16": (torch.float16, 11), "BF16": (torch.bfloat16, 8)}


@given(
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 50),
    rank=st.integers(1, 9),
    alpha=st.floats(0.25, 64),
    scale=st.floats(0.05, 2) | st.floats(-2, -0.05),
    root=st.booleans(),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 999),
)
def test_every_value_is_the_sum_rounded_once(
    tmp_path_factory: pytest.TempPathFactory, outputs: int, inputs: int, rank: int, alpha: float, scale: float,
    root: bool, dtype: str, seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("sums")
    generator = torch.Generator().manual_seed(seed)
    kind, bits = DTYPES[dtype]
    weight = torch.randn(outputs, inputs, generator=generator).to(kind)
    down, up = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((rank, inputs), (outputs, rank)))
    save_file({"layers.0.w.weight": weight, "norm.weight": torch.ones(3)}, folder / "base.safetensors")
    names = {"base_model.model.layers.0.w.lora_A.weight": down, "base_model.model.layers.0.w.lora_B.weight": up}
    save_file(names, folder / "lora.safetensors")
    with (
        open_model(PathReference(str(folder / "base.safetensors"))) as model,
        open_adapter(PathReference(str(folder / "lora.safetensors")), alpha=alpha, rslora=root) as adapter,
    ):
        report = write_merged(plan_merge(model, [(adapter, scale)]), folder / "merged.safetensors")
    found = load_file(folder / "merged.safetensors")["layers.0.w.weight"]
    factor = scale * alpha / (math.sqrt(rank) if root else rank)
    added = factor * (up.double() @ down.double())
    exact = weight.double() + added
    half_step = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - bits - 1).clamp(min=2.0**-25)
    sums = 1e-6 * (weight.double().abs() + abs(factor) * (up.double().abs() @ down.double().abs()))
    assert found.dtype == kind
    assert bool(((found.double() - exact).abs() <= half_step + sums).all())
    if report.loss is not None and dtype != "F32":
        lost = float((found.double() - exact).norm() / added.norm())
        of_sums = 2.0**-24 * float(exact.norm() / added.norm())  # float32's own, of updates that are tiny
        assert report.loss.overall == pytest.approx(lost, rel=1e-2, abs=1e-4 + of_sums)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_what_bfloat16_loses_of_an_update_is_told(tmp_path: Path, size: float) -> None:
    """A matrix as of a trained model, and B of a size: the smaller the update, the more of it is below a step."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(512, 512, generator=generator) * 0.02).bfloat16()
    down, up = (
        torch.randn(16, 512, generator=generator) / 512**0.5 * 4,
        torch.randn(512, 16, generator=generator) * size,
    )
    save_file({"layers.0.w.weight": weight}, tmp_path / "base.safetensors")
    module = "base_model.model.layers.0.w"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    with (
        open_model(PathReference(str(tmp_path / "base.safetensors"))) as model,
        open_adapter(PathReference(str(tmp_path / "lora.safetensors")), alpha=16) as adapter,
    ):
        plan = plan_merge(model, [(adapter, 1.0)])
        report = write_merged(plan, tmp_path / "merged.safetensors")
        wide = write_merged(plan, tmp_path / "wide.safetensors", dtype="F32")
    found = load_file(tmp_path / "merged.safetensors")["layers.0.w.weight"].double().numpy()
    added = up.double().numpy() @ down.double().numpy()
    measured = np.linalg.norm(found - weight.double().numpy() - added) / np.linalg.norm(added)
    assert report.loss is not None
    assert wide.loss is not None
    assert report.loss.overall == pytest.approx(measured, rel=1e-3)
    assert 0.3 * 1e-4 / size < report.loss.overall <= 1.0, "what is lost of an update grows as it shrinks"
    assert (report.advice is not None) == (measured > 0.05)
    assert wide.loss.overall < 1e-3
    assert wide.advice is None
