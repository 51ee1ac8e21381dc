"""Adapters in models, beside peft's own wrapping, and what is saved of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from entrenar_core.adapters.reading import LABELS
from entrenar_core.artifact import inspect_folder
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
from entrenar_core.config.schema import StudentConfig, TrainingConfig
from entrenar_core.errors import ModelError
from entrenar_core.models.adapted import adapt, save_adapter, trained_count, trained_tensors
from entrenar_core.models.adapter_targets import targets_of_group
from entrenar_core.models.calling import logits_of
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.loading import load_model, new_modules, seeded
from entrenar_core.models.student import build_student
from entrenar_core.training.optimizer import make_optimizer
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

IDS = torch.tensor([[5, 9, 12, 40, 7, 3], [8, 30, 22, 4, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_llama(folder / "llama", hidden_size=64, intermediate_size=128),
        "gpt2": tiny_gpt2(folder / "gpt2"),
        "bert": tiny_bert(folder / "bert", num_labels=3),
    }


def loaded(folders: dict[str, Path], name: str = "llama", task: str = "causal-lm", **more: Any) -> PreTrainedModel:
    return load_model(inspect_folder(folders[name]), task, **more)


def moved(model: torch.nn.Module, seed: int = 3) -> None:
    """Random values in place of what trains, so that every part of an adapter counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, {}),
        ({"rank": 4, "alpha": 8.0, "rslora": True, "dropout": 0.1}, {"use_rslora": True}),
        ({"rank": 4, "alpha": 8.0, "dora": True}, {"use_dora": True}),
        ({"rank": 4, "alpha": 8.0, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}, {}),
        ({"rank": 4, "alpha": 8.0, "init": "gaussian", "target_modules": ["q_proj", "embed_tokens"]}, {}),
        ({"rank": 4, "alpha": 8.0, "layers": [1], "target_modules": "all-linear"}, {}),
    ],
)
def test_a_model_is_adapted_as_peft_does_it(
    folders: dict[str, Path], settings: dict[str, Any], own: dict[str, Any]
) -> None:
    adapter = LoraAdapter.model_validate(settings)
    with seeded(1):
        model = adapt(loaded(folders), adapter, "causal-lm", "llama")
    targets = list(adapter.target_modules) if isinstance(adapter.target_modules, tuple) else None
    group = targets or list(targets_of_group({"model_type": "llama"}, adapter.target_modules) or ())  # type: ignore[arg-type]
    theirs = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha),
        target_modules=group,
        lora_dropout=adapter.dropout,
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern={name: int(alpha) for name, alpha in adapter.alpha_pattern.items()},
        layers_to_transform=None if adapter.layers is None else list(adapter.layers),
        task_type="CAUSAL_LM",
        **own,
    )
    with seeded(1):
        expected: Any = get_peft_model(loaded(folders), theirs).eval()
    moved(model)
    moved(expected)
    torch.testing.assert_close(
        logits_of(model, IDS, MASK), expected(input_ids=IDS, attention_mask=MASK).logits, rtol=0, atol=0
    )
    assert trained_count(model) == sum(p.numel() for p in expected.parameters() if p.requires_grad)


@pytest.mark.parametrize("init", ["default", "pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_is_an_adapter_for_the_whole_weights(
    folders: dict[str, Path], tmp_path: Path, init: Any, rslora: bool
) -> None:
    adapter = LoraAdapter(rank=4, init=init, rslora=rslora, rank_pattern={"v_proj": 2})
    model = adapt(loaded(folders), adapter, "causal-lm", "llama")
    before = loaded(folders)
    torch.testing.assert_close(logits_of(model, IDS, MASK), logits_of(before, IDS, MASK), rtol=0, atol=2e-5)
    moved(model)
    save_adapter(model, tmp_path, str(folders["llama"]))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["llama"]), str(tmp_path)).eval()
    found = again(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(found, logits_of(model, IDS, MASK), rtol=0, atol=1e-5)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["r"] == (4 if init == "default" else 8)
    assert said["init_lora_weights"] is True
    assert said["base_model_name_or_path"] == str(folders["llama"])


@pytest.mark.parametrize(
    "adapter",
    [
        Ia3Adapter(method="ia3"),
        BiasAdapter(method="bias"),
        PromptAdapter(method="prompt", virtual_tokens=3),
        PrefixAdapter(method="prefix", virtual_tokens=3),
        AdaptionPromptAdapter(method="adaption-prompt", virtual_tokens=3),
    ],
    ids=lambda adapter: adapter.method,
)
def test_other_methods_are_peft_s_and_come_back_from_their_files(
    folders: dict[str, Path], tmp_path: Path, adapter: AnyAdapter
) -> None:
    model = adapt(loaded(folders), adapter, "causal-lm", "llama")
    moved(model)
    logits_BTV = logits_of(model, IDS, MASK)
    assert logits_BTV.shape[:2] == IDS.shape
    assert 0 < trained_count(model) < 2_000
    save_adapter(model, tmp_path, str(folders["llama"]))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["llama"]), str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(again, IDS, MASK), logits_BTV, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapter", [LoraAdapter(rank=2), PrefixAdapter(method="prefix", virtual_tokens=2)])
def test_what_is_new_in_a_model_trains_with_the_adapter(
    folders: dict[str, Path], tmp_path: Path, adapter: AnyAdapter
) -> None:
    body = AutoModelForSequenceClassification.from_pretrained(folders["bert"]).bert
    body.pooler = None
    body.save_pretrained(tmp_path / "body")
    model = load_model(
        inspect_folder(tmp_path / "body"), "sequence-classification", label_names=("a", "b", "c"), seed=1
    )
    adapted = adapt(model, adapter, "sequence-classification", "bert")
    trained = {name.removeprefix("base_model.") for name in trained_tensors(adapted) if "modules_to_save" in name}
    assert {name.split(".modules_to_save")[0] for name in trained} == {"bert.pooler.dense", "classifier"}
    moved(adapted)
    save_adapter(adapted, tmp_path, str(tmp_path / "body"), label_names=("a", "b", "c"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body", num_labels=3)
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(again, IDS, MASK), logits_of(adapted, IDS, MASK), rtol=0, atol=1e-6)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()[LABELS]) == ["a", "b", "c"]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_a_new_head_of_several_layers_trains_as_a_whole_and_comes_back(tmp_path: Path, family: str) -> None:
    sizes = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    if family == "distilbert":
        sizes = {"vocab_size": 64, "n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 32}
    config = AutoConfig.for_model(family, **sizes, pad_token_id=1, max_position_embeddings=32)
    AutoModel.from_config(config).save_pretrained(tmp_path / "body")
    model = load_model(
        inspect_folder(tmp_path / "body"), "sequence-classification", label_names=("a", "b", "c"), seed=1
    )
    adapted = adapt(model, LoraAdapter(rank=2, target_modules="query-value"), "sequence-classification", family)
    logits_of(adapted.train(), IDS, MASK).square().sum().backward()
    assert [name for name, one in trained_tensors(adapted).items() if one.grad is None] == []
    trained = {name.replace(".modules_to_save.default", "").rpartition(".")[0] for name in trained_tensors(adapted)}
    assert new_modules(model) <= trained
    adapted.eval()
    moved(adapted)
    save_adapter(adapted, tmp_path, str(tmp_path / "body"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body", num_labels=3)
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(again, IDS, MASK), logits_of(adapted, IDS, MASK), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"layers": [0, 9]}, "has no layer 9", "0 to 1"),
        ({"init": "pissa", "target_modules": ["embed_tokens"]}, "is an embedding", "another `init`"),
        ({"target_modules": ["q_prj"]}, "no module q_prj", "q_proj"),
        ({"target_modules": ["q_proj", "wo"]}, "no module wo", "it has"),
        ({"modules_to_save": ["lm_hed"]}, "no module lm_hed", "lm_head"),
        ({"rank_pattern": {"qproj": 2}}, "no module qproj", "q_proj"),
        ({"rank": 65}, "a rank of 65 is more than model.layers.0.self_attn.q_proj", "at most 64"),
    ],
)
def test_what_does_not_fit_the_model_is_named(
    folders: dict[str, Path], settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        adapt(loaded(folders), LoraAdapter.model_validate(settings), "causal-lm", "llama")
    assert hint in str(caught.value.hint)


def test_a_group_that_no_table_knows_in_a_family_is_not_another_one() -> None:
    config = AutoConfig.for_model(
        "granite", vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="no table says which modules of a granite"):
        adapt(model, LoraAdapter(rank=2), "causal-lm", "./granite")
    everywhere = adapt(model, LoraAdapter(rank=2, target_modules="all-linear"), "causal-lm", "./granite")
    assert len(trained_tensors(everywhere)) == 2 * 7


def test_gpt2_s_transposed_matrices_get_adapters(folders: dict[str, Path]) -> None:
    model = adapt(loaded(folders, "gpt2"), LoraAdapter(rank=2), "causal-lm", "gpt2")
    names = {name.split(".lora_")[0] for name in trained_tensors(model)}
    assert {name.partition(".h.0.")[2] for name in names if ".h.0." in name} == {"attn.c_attn", "attn.c_proj"}
    assert all(".mlp." not in name for name in names)


def test_biases_and_whole_modules_train_beside_an_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for biases in ("none", "all", "lora_only"):
        adapter = LoraAdapter(rank=2, biases=biases, modules_to_save=("ln_f",))
        model = adapt(loaded(folders, "gpt2"), adapter, "causal-lm", "gpt2")
        found[biases] = {name for name in trained_tensors(model) if "lora_" not in name}
        assert {name for name in found[biases] if "ln_f" in name} >= {
            f"transformer.ln_f.modules_to_save.default.{part}" for part in ("weight", "bias")
        }
    beside = {kind: {name for name in names if "ln_f" not in name} for kind, names in found.items()}
    assert beside["none"] == set()
    assert all(".attn." in name and name.endswith("base_layer.bias") for name in beside["lora_only"])
    assert len(beside["lora_only"]) == 2 * 2
    assert len(beside["all"]) == 2 * 6

    moved(model)
    save_adapter(model, tmp_path, str(folders["gpt2"]))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["gpt2"]), str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(again, IDS, MASK), logits_of(model, IDS, MASK), rtol=0, atol=1e-6)


def _gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    logits_of(model, IDS, MASK).square().sum().backward()
    return {name: one.grad for name, one in trained_tensors(model).items() if one.grad is not None}


@pytest.mark.parametrize(
    ("quantization", "dtype", "off"),
    [
        (Quantization(), "float32", 0.35),
        (Quantization(type="fp4", double_quantization=False, compute_dtype="float32"), "bfloat16", 0.5),
        (Quantization(bits=8), "float32", 0.05),
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_gradients_go_through_quantised_layers_also_after_an_evaluation(
    folders: dict[str, Path], quantization: Quantization, dtype: Any, off: float
) -> None:
    """On some CPUs bitsandbytes packs weights in evaluation, for an operation that has no gradient."""
    pytest.importorskip("bitsandbytes")
    artifact = inspect_folder(folders["llama"])
    given = StudentConfig(model_id=str(folders["llama"]), quantization=quantization, dtype=dtype)
    made = []
    for config in (given, StudentConfig(model_id=str(folders["llama"]))):
        base = build_student(
            config, teacher_artifact=artifact, teacher_model=None, student_artifact=artifact, task="causal-lm",
            label_names=None, seed=1, vocab_size=320,
        )  # fmt: skip
        with seeded(1):
            made.append(adapt(base, LoraAdapter(rank=4), "causal-lm", "llama"))
        moved(made[-1])
    quantised, whole = made
    assert all(one.dtype == torch.float32 for one in trained_tensors(quantised).values())
    assert parameter_count(quantised) == parameter_count(whole)
    with torch.no_grad():
        logits_of(quantised, IDS, MASK)
    quantised.train()
    found, exact = _gradients(quantised), _gradients(whole.train())
    assert found.keys() == exact.keys()
    errors = [float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact]
    assert sum(errors) / len(errors) < off
    assert max(errors) > 0


def test_b_learns_faster_with_lora_plus(folders: dict[str, Path]) -> None:
    model = adapt(loaded(folders), LoraAdapter(rank=2, target_modules=("q_proj", "embed_tokens")), "causal-lm", "llama")
    groups = make_optimizer(model, TrainingConfig(), ratio_of_b=16.0).param_groups
    names = {id(parameter): name for name, parameter in trained_tensors(model).items()}
    faster = {names[id(one)] for group in groups if group.get("multiple") == 16.0 for one in group["params"]}
    assert faster == {name for name in trained_tensors(model) if "lora_B" in name or "lora_embedding_B" in name}
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize(
    ("model_type", "group", "names"),
    [
        ("llama", "attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("llama", "query-value", ("q_proj", "v_proj")),
        ("gpt2", "attention", ("c_attn", "attn.c_proj")),
        ("bert", "attention", ("query", "key", "value", "attention.output.dense")),
        ("bert", "all-linear", ("query", "key", "value", "output.dense", "intermediate.dense")),
        ("t5", "attention", ("q", "v")),
        ("nobody", "attention", None),
        ("nobody", "all-linear", "all-linear"),
    ],
)
def test_groups_of_modules_have_names_that_mean_nothing_else(model_type: str, group: Any, names: Any) -> None:
    assert targets_of_group({"model_type": model_type}, group) == names
