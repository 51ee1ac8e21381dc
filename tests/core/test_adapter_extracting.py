"""An adapter out of two models: as near to the tuned one as its rank allows, and loaded by peft."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from entrenar_core.adapters.extracting import Extraction, extract
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.adapters.results import AdapterReport
from entrenar_core.errors import EntrenarError
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from lora_models import answers, load, merged, shake, train
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama


def extracted(base: Path, tuned: Path, output: Path, how: Extraction) -> AdapterReport:
    with open_model(PathReference(str(base))) as one, open_model(PathReference(str(tuned))) as other:
        return extract(one, other, output, how)


def with_adapter(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return answers(model.double().eval())


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_fc"])])
def test_what_was_merged_is_found_again(tmp_path: Path, family: str, targets: list[str]) -> None:
    base = (tiny_llama if family == "llama" else tiny_gpt2)(tmp_path / "base")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": targets, "fan_in_fan_out": family == "gpt2"}
    adapter = train(base, tmp_path / "adapter", **lora)
    merged(base, [adapter], tmp_path / "tuned")
    report = extracted(base, tmp_path / "tuned", tmp_path / "found", Extraction(rank=4))
    assert (with_adapter(base, tmp_path / "found") - answers(load(tmp_path / "tuned"))).abs().max() <= 1e-5
    assert len(report.modules) == 4
    assert report.kept == pytest.approx(1.0, abs=1e-6)
    assert all(module.exact for module in report.modules)
    assert report.left_out == ()
    by_energy = extracted(base, tmp_path / "tuned", tmp_path / "energy", Extraction(energy=0.999))
    assert by_energy.ranks[1] <= 4, "more directions than the change has are not kept"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of which every weight moved."""
    folder = tmp_path_factory.mktemp("tuned")
    base = tiny_llama(folder / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    shake(model, seed=3, size=0.02)
    model.save_pretrained(folder / "tuned")
    return base, folder / "tuned"


def test_each_matrix_is_cut_as_its_dense_decomposition_is(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = tuned
    report = extracted(base, other, tmp_path / "found", Extraction(rank=6, targets=("attention",)))
    before, after = load_file(base / "model.safetensors"), load_file(other / "model.safetensors")
    written = load_file(tmp_path / "found" / "adapter_model.safetensors")
    squares, kept = 0.0, 0.0
    for module in report.modules:
        change = (after[f"{module.module}.weight"].double() - before[f"{module.module}.weight"].double()).numpy()
        values = np.linalg.svd(change, compute_uv=False)
        name = f"base_model.model.{module.module}.lora"
        product = written[f"{name}_B.weight"].double() @ written[f"{name}_A.weight"].double()
        assert np.linalg.norm(change - product.numpy()) ** 2 == pytest.approx((values[6:] ** 2).sum(), rel=1e-4)
        assert module.kept == pytest.approx((values[:6] ** 2).sum() / (values**2).sum(), rel=1e-5)
        squares, kept = squares + (values**2).sum(), kept + (values[:6] ** 2).sum()
    assert len(report.modules) == 8
    assert report.kept == pytest.approx(kept / squares, rel=1e-5)
    told = {one.name: one for one in report.left_out}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(told)
    norm = float((after["model.norm.weight"] - before["model.norm.weight"]).norm() / before["model.norm.weight"].norm())
    assert told["model.norm.weight"].relative == pytest.approx(norm, rel=1e-4)


def test_a_share_of_the_energy_gives_each_matrix_its_rank(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = tuned
    report = extracted(base, other, tmp_path / "found", Extraction(energy=0.8))
    assert all(module.kept >= 0.8 for module in report.modules)
    assert len(report.modules) == 14
    with open_adapter(PathReference(str(tmp_path / "found"))) as adapter:
        assert {pair.module: pair.rank for pair in adapter.pairs} == {one.module: one.rank for one in report.modules}
        assert {pair.scale for pair in adapter.pairs} == {1.0}
    ranks = {one.rank for one in report.modules}
    config = json.loads((tmp_path / "found" / "adapter_config.json").read_text())
    assert len(ranks) > 1
    assert config["rank_pattern"] == config["alpha_pattern"]
    with_adapter(base, tmp_path / "found")  # which peft loads, with each rank in its place


def test_whole_modules_make_it_the_tuned_model(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = tuned
    save = ("embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm")
    report = extracted(base, other, tmp_path / "found", Extraction(rank=64, save=save))
    assert report.left_out == ()
    assert (with_adapter(base, tmp_path / "found") - answers(load(other))).abs().max() <= 1e-4


def test_a_new_head_is_told_or_saved(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    shake(model.bert.encoder, seed=1, size=0.05)
    model.save_pretrained(tmp_path / "tuned")
    how = Extraction(rank=64, targets=("query", "key", "value", "dense"))
    report = extracted(base, tmp_path / "tuned", tmp_path / "without", how)
    told = [one.name for one in report.left_out if one.reason.startswith("the base has none")]
    assert told == ["classifier.bias", "classifier.weight"]
    assert json.loads((tmp_path / "without" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    saving = Extraction(rank=64, targets=how.targets, save=("classifier",))
    assert set(extracted(base, tmp_path / "tuned", tmp_path / "with", saving).saved) == set(told)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either a rank or"),
        ({"rank": 4, "energy": 0.5}, "either a rank or"),
        ({"rank": 0}, "no rank"),
        ({"energy": 1.5}, "no share"),
        ({"rank": 4, "targets": ("q_porj",)}, "q_porj"),
        ({"rank": 4, "save": ("classifier",)}, "no module classifier"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tuned: tuple[Path, Path], tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(EntrenarError, match=said):
        extracted(*tuned, tmp_path / "found", Extraction(**settings))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_differ_or_do_not_match_are_refused(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = tuned
    with pytest.raises(EntrenarError, match=r"differs from .* in no matrix"):
        extracted(base, base, tmp_path / "found", Extraction(rank=4))
    wide = tiny_llama(tmp_path / "wide", hidden_size=48, num_attention_heads=4)
    with pytest.raises(EntrenarError, match=r"not of one architecture|is 320 × 48"):
        extracted(base, wide, tmp_path / "found", Extraction(rank=4))
