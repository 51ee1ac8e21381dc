"""Adapters as llama.cpp's GGUF and back: names, the order of rows, one alpha; and what such a file cannot say."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.converting import Form, convert_adapter
from entrenar_core.adapters.gguf_base import base_of_config
from entrenar_core.adapters.results import AdapterConversion
from entrenar_core.conversion import convert as convert_model
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama
from trained_adapters import last_log_probabilities, saved_adapter

ROWS = [[5, 9, 23, 42], [7, 88, 130]]
TARGETS = ["q_proj", "k_proj", "o_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


def convert(source: Path, form: Form, output: Path, *, base: Path | None = None, **settings: Any) -> AdapterConversion:
    with open_model(parse_reference(str(source))) as model:
        if base is None:
            return convert_adapter(model, form, output, **settings)
        with open_model(parse_reference(str(base))) as given:
            return convert_adapter(model, form, output, base=given, **settings)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its metadata, and its tensors as numpy has them."""
    reader = gguf.GGUFReader(file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: tensor.data for tensor in reader.tensors}


def test_names_metadata_and_rows_are_llama_cpps(base: Path, tmp_path: Path) -> None:
    source = saved_adapter(tmp_path / "adapter", base, target_modules=TARGETS)
    done = convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    metadata, tensors = read(tmp_path / "adapter.gguf")
    assert {key: metadata[key] for key in ("general.type", "general.architecture", "adapter.type")} == {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora",
    }  # fmt: skip
    assert metadata["adapter.lora.alpha"] == 8
    names = ("attn_q", "attn_k", "attn_output", "ffn_down")
    assert set(tensors) == {f"blk.{n}.{name}.weight.lora_{x}" for n in (0, 1) for name in names for x in "ab"}
    ours = tensors_of(source)
    query = ours["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].numpy()
    paired = query.reshape(4, 2, 4, 4).swapaxes(1, 2).reshape(32, 4)  # 4 heads of 8 rows: halves become neighbours
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"], paired)
    kept = ours["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].numpy()
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_a"], kept)
    assert (done.folded, done.cast, done.tensors) == (0, 0, 16)


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, 8.0),
        ({"use_rslora": True}, 16.0),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}}, 8.0),
        ({"base_dtype": torch.bfloat16}, 8.0),
    ],
)
def test_what_one_alpha_says_comes_back_bit_for_bit(
    settings: dict[str, Any], alpha: float, base: Path, tmp_path: Path
) -> None:
    dtype = settings.pop("base_dtype", torch.float32)
    source = saved_adapter(tmp_path / "adapter", base, target_modules=TARGETS, **settings)
    save_file({name: one.to(dtype) for name, one in tensors_of(source).items()}, source / "adapter_model.safetensors")
    convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    assert read(tmp_path / "adapter.gguf")[0]["adapter.lora.alpha"] == alpha
    convert(tmp_path / "adapter.gguf", "peft", tmp_path / "back")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert set(before) == set(after)
    assert all(torch.equal(one, after[name]) and one.dtype == after[name].dtype for name, one in before.items())
    assert json.loads((source / "adapter_config.json").read_text()) == json.loads(
        (tmp_path / "back" / "adapter_config.json").read_text()
    )


def test_several_scales_are_folded_into_b_and_act_the_same(base: Path, tmp_path: Path) -> None:
    settings = {"use_rslora": True, "rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"k_proj": 3}}
    source = saved_adapter(tmp_path / "adapter", base, target_modules=TARGETS, **settings)
    done = convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    assert done.folded == 6
    assert "multiplied into B of 6 of 8" in " ".join(done.notes)
    back = convert(tmp_path / "adapter.gguf", "peft", tmp_path / "back")
    assert "one of plain LoRA" in " ".join(back.notes)
    before, after = (last_log_probabilities(base, one, ROWS) for one in (source, tmp_path / "back"))
    assert np.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("known", ["folder", "gguf", "config alone"])
def test_a_file_of_llama_cpps_own_needs_the_base_for_its_heads(known: str, base: Path, tmp_path: Path) -> None:
    source = saved_adapter(tmp_path / "adapter", base, target_modules=TARGETS)
    convert(source, "gguf", tmp_path / "ours.gguf", base=base)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")  # what convert_lora_to_gguf.py writes
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for name, values in read(tmp_path / "ours.gguf")[1].items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="how many heads") as error:
        convert(tmp_path / "theirs.gguf", "peft", tmp_path / "none")
    assert "--base" in str(error.value.hint)
    if known == "config alone":
        facts = base_of_config(json.loads((base / "config.json").read_text()), "base")
        convert(tmp_path / "theirs.gguf", "peft", tmp_path / "back", gguf_base=facts)
    else:
        given = base
        if known == "gguf":
            given = tmp_path / "base.gguf"
            with open_model(parse_reference(str(base))) as model:
                convert_model(model, WeightFormat.GGUF, given)
        convert(tmp_path / "theirs.gguf", "peft", tmp_path / "back", base=given)
        config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
        assert config["target_modules"] == sorted(TARGETS)
    expected = last_log_probabilities(base, source, ROWS)
    assert last_log_probabilities(base, tmp_path / "back", ROWS) == expected


def test_gpt2_and_a_bare_encoder_come_back_too(tmp_path: Path) -> None:
    gpt2, bert = tiny_gpt2(tmp_path / "gpt2"), tiny_bert(tmp_path / "bert")
    made = {
        "one": (gpt2, saved_adapter(tmp_path / "one", gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
        "two": (bert, saved_adapter(tmp_path / "two", bert, auto="AutoModel", target_modules=["query", "dense"])),
    }
    for name, (base, source) in made.items():
        if name == "two":
            without_pooler = {key: one for key, one in tensors_of(source).items() if "pooler" not in key}
            save_file(without_pooler, source / "adapter_model.safetensors")
        convert(source, "gguf", tmp_path / f"{name}.gguf", base=base)
        convert(tmp_path / f"{name}.gguf", "peft", tmp_path / f"{name} back")
        before, after = tensors_of(source), tensors_of(tmp_path / f"{name} back")
        assert set(before) == set(after)
        assert all(torch.equal(one, after[key]) for key, one in before.items())


def test_a_pooler_that_llama_cpp_leaves_out_is_refused(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "bert")
    source = saved_adapter(tmp_path / "adapter", base, auto="AutoModel", target_modules=["dense"])
    with pytest.raises(ModelError, match=r"no tensor for pooler\.dense in a bert"):
        convert(source, "gguf", tmp_path / "adapter.gguf", base=base)


def test_embeddings_lie_turned_and_need_a_head_of_their_own(base: Path, tmp_path: Path) -> None:
    own = tiny_llama(tmp_path / "own", tie_word_embeddings=False)
    source = saved_adapter(tmp_path / "adapter", own, target_modules=["embed_tokens", "lm_head", "v_proj"])
    done = convert(source, "gguf", tmp_path / "adapter.gguf", base=own)
    assert "are as in the base: left out" in done.notes[0]
    tensors = read(tmp_path / "adapter.gguf")[1]
    assert tensors["token_embd.weight.lora_a"].shape == (320, 4)
    assert {"output.weight.lora_a", "token_embd.weight.lora_b"} <= set(tensors)
    convert(tmp_path / "adapter.gguf", "peft", tmp_path / "back")
    assert last_log_probabilities(own, tmp_path / "back", ROWS) == last_log_probabilities(own, source, ROWS)
    tied = saved_adapter(tmp_path / "tied", base, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="which is the head of its base too"):
        convert(tied, "gguf", tmp_path / "tied.gguf", base=base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"modules_to_save": ["norm"]}, "norm.weight as a whole"),
        ({"lora_bias": True}, "has biases"),
        ({"init_lora_weights": "pissa"}, "began with `init_lora_weights: pissa`"),
        ({"target_modules": ["lm_head"]}, "in its base is the embeddings|replaces lm_head"),
    ],
)
def test_what_llama_cpp_cannot_say_is_refused_with_the_way_out(
    settings: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    source = saved_adapter(tmp_path / "adapter", base, **({"target_modules": ["q_proj"]} | settings))
    with pytest.raises(ModelError, match=message) as error:
        convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    assert "entrenar-lora merge" in str(error.value.hint)
    assert not (tmp_path / "adapter.gguf").exists()


def test_an_adapter_of_activated_lora_keeps_its_tokens(base: Path, tmp_path: Path) -> None:
    source = saved_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    config = json.loads((source / "adapter_config.json").read_text()) | {"alora_invocation_tokens": [5, 7]}
    (source / "adapter_config.json").write_text(json.dumps(config))
    convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    assert read(tmp_path / "adapter.gguf")[0]["adapter.alora.invocation_tokens"] == [5, 7]


def test_a_gguf_is_not_what_else_it_might_be_taken_for(base: Path, tmp_path: Path) -> None:
    with open_model(parse_reference(str(base))) as model:
        convert_model(model, WeightFormat.GGUF, tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="without a LoRA adapter"):
        convert(tmp_path / "model.gguf", "peft", tmp_path / "out")
    source = saved_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    convert(source, "gguf", tmp_path / "adapter.gguf", base=base)
    with pytest.raises(UsageError, match="a GGUF already"):
        convert(tmp_path / "adapter.gguf", "gguf", tmp_path / "again.gguf")
    with pytest.raises(UsageError, match="says its scale itself"):
        convert(tmp_path / "adapter.gguf", "peft", tmp_path / "out", alpha=3.0)
    with pytest.raises(ModelError, match="adapter for a llama, and --base is a gpt2"):
        convert(tmp_path / "adapter.gguf", "peft", tmp_path / "out", base=tiny_gpt2(tmp_path / "gpt2"))


@pytest.mark.parametrize("broken", ["half", "nameless", "shapes", "nan", "alpha"])
def test_a_broken_file_is_refused(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", -1.0 if broken == "alpha" else 8.0)
    down, up = np.ones((4, 16), np.float32), np.ones((16, 3 if broken == "shapes" else 4), np.float32)
    if broken == "nan":
        up[0, 0] = np.nan
    name = "blk.0.unheard_of.weight" if broken == "nameless" else "blk.0.attn_v.weight"
    writer.add_tensor(f"{name}.lora_a", down)
    if broken != "half":
        writer.add_tensor(f"{name}.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    messages = {"half": "has half of", "nameless": "no name in transformers", "shapes": "no product",
                "nan": "not finite", "alpha": "its alpha is"}  # fmt: skip
    with pytest.raises(ModelError, match=messages[broken]):
        convert(file, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
