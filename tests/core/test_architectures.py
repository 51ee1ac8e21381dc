"""Every row of families.toml against the real model: built from the row's keys, it must look as the row says."""

from importlib.resources import files
from typing import Any

import pytest
import torch
from gguf.constants import MODEL_ARCH_NAMES
from transformers import CONFIG_MAPPING, AutoModel

from entrenar_core.architectures import (
    SIZES,
    Architecture,
    architecture_of,
    architecture_of_gguf,
    families,
    family_of,
    known_families,
)
from entrenar_core.formats.gguf import SkippedArray
from family_models import FURTHER, WANTED

MODEL_TYPES = [model_type for family in families().values() for model_type in family.model_types]


def built(model_type: str) -> tuple[Any, Any]:
    """The configuration of a model with the wanted sizes, given under the row's keys, and its body."""
    family = family_of({"model_type": model_type})
    assert family is not None
    settings = {family.keys[size][0]: value for size, value in WANTED.items() if size != "num_kv_heads"}
    if family.keys["num_kv_heads"][0] not in settings:
        settings[family.keys["num_kv_heads"][0]] = WANTED["num_kv_heads"]
    config = CONFIG_MAPPING[model_type](**settings, **FURTHER.get(model_type, {}))
    with torch.device("meta"):
        return config, AutoModel.from_config(config)


def same_heads(architecture: Architecture) -> bool:
    keys = families()[str(architecture.family)].keys
    return keys["num_kv_heads"] == keys["num_heads"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_layers_are_where_the_row_says(model_type: str) -> None:
    family = family_of({"model_type": model_type})
    assert family is not None
    layers = built(model_type)[1].get_submodule(family.layers)
    assert isinstance(layers, torch.nn.ModuleList)
    assert len(layers) == WANTED["num_layers"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_keys_give_the_model_its_sizes_and_are_read_back(model_type: str) -> None:
    config, body = built(model_type)
    architecture = architecture_of(config.to_dict())
    expected = WANTED | ({"num_kv_heads": WANTED["num_heads"]} if same_heads(architecture) else {})
    assert {size: getattr(architecture, size) for size in SIZES} == expected
    assert body.get_input_embeddings().weight.shape[0] == WANTED["vocab_size"]
    family = families()[str(architecture.family)]
    layer = body.get_submodule(family.layers)[0]
    widths = {width for weight in layer.parameters() for width in weight.shape}
    assert WANTED["hidden_size"] in widths
    assert {WANTED["intermediate_size"], 2 * WANTED["intermediate_size"]} & widths
    assert family.kind == kind_of(config, body)


def kind_of(config: Any, body: torch.nn.Module) -> str:
    if config.is_encoder_decoder:
        return "encoder-decoder"
    attention = [module for module in body.modules() if hasattr(module, "is_causal")]
    return "decoder" if attention and all(module.is_causal for module in attention) else "encoder"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_grouped_heads_reach_the_key_projection(model_type: str) -> None:
    config, body = built(model_type)
    architecture = architecture_of(config.to_dict())
    weights = dict(body.get_submodule(families()[str(architecture.family)].layers)[0].named_parameters())
    keys = [weight.shape[0] for name, weight in weights.items() if "k_proj" in name and name.endswith("weight")]
    if same_heads(architecture) or not keys:  # phi3 has one projection for query, key and value
        return
    assert keys == [architecture.num_kv_heads * config.hidden_size // config.num_attention_heads]


# Of which only names and sizes are known, and which read tokens.
NAMED = ["falcon", "albert", "deberta", "deberta-v2", "bart", "whisper"]


@pytest.mark.parametrize("model_type", NAMED)
def test_sizes_of_families_whose_inside_is_not_known_are_read_all_the_same(model_type: str) -> None:
    family = known_families()[model_type]
    wanted = {size: value for size, value in WANTED.items() if size != "num_kv_heads"}
    config = CONFIG_MAPPING[model_type](
        **{family.keys[size][0]: value for size, value in wanted.items()}, **FURTHER.get(model_type, {})
    )
    with torch.device("meta"):
        body = AutoModel.from_config(config)
    architecture = architecture_of(config.to_dict())
    assert architecture.family == model_type
    assert {size: getattr(architecture, size) for size in wanted} == wanted
    assert architecture.num_kv_heads == (1 if model_type == "falcon" else WANTED["num_heads"])
    assert isinstance(body.get_submodule(family.layers), torch.nn.ModuleList)
    assert body.get_input_embeddings().weight.shape[0] == WANTED["vocab_size"]
    widths = {width for weight in body.get_submodule(family.layers).parameters() for width in weight.shape}
    assert {WANTED["hidden_size"], WANTED["intermediate_size"]} <= widths
    assert family.kind == kind_of(config, body)
    assert family_of(config.to_dict()) is None
    assert model_type not in families()


def test_a_clip_has_the_sizes_of_its_text_tower_and_each_tower_its_own() -> None:
    config = CONFIG_MAPPING["clip"](text_config={"num_hidden_layers": 5}, vision_config={"num_hidden_layers": 7})
    architecture = architecture_of(config.to_dict())
    assert (architecture.family, architecture.num_layers) == ("clip", 5)
    assert (architecture.vocab_size, architecture.max_positions) == (49_408, 77)
    for tower, layers in (("text_config", 5), ("vision_config", 7)):
        architecture = architecture_of(config.to_dict()[tower])
        assert (architecture.family, architecture.num_layers) == ("clip", layers)


def test_a_vit_has_no_vocabulary() -> None:
    architecture = architecture_of(CONFIG_MAPPING["vit"](num_hidden_layers=5, hidden_size=24).to_dict())
    assert (architecture.family, architecture.num_layers, architecture.hidden_size) == ("vit", 5, 24)
    assert (architecture.vocab_size, architecture.max_positions) == (None, None)


@pytest.mark.parametrize("name", known_families())
def test_the_gguf_spelling_exists(name: str) -> None:
    spelling = known_families()[name].gguf
    assert spelling is None or spelling in MODEL_ARCH_NAMES.values()


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_without_grouped_heads_in_the_config_there_are_as_many_as_heads(model_type: str) -> None:
    config = {"model_type": model_type, "num_attention_heads": 4}
    assert architecture_of(config).num_kv_heads == 4
    assert CONFIG_MAPPING[model_type](num_attention_heads=4, pad_token_id=0).num_key_value_heads == 4


def test_gpt2_without_an_inner_width_has_four_times_the_hidden_one() -> None:
    config = CONFIG_MAPPING["gpt2"](n_embd=24, n_head=4, n_layer=1)
    with torch.device("meta"):
        width = AutoModel.from_config(config).h[0].mlp.c_fc.weight.shape[1]
    assert architecture_of(config.to_dict()).intermediate_size == width == 96


def test_an_unknown_model_has_no_family_and_its_sizes_under_common_names() -> None:
    config = {"model_type": "newcomer", "architectures": ["NewcomerForCausalLM"], "n_layer": 5, "d_model": 64}
    architecture = architecture_of(config)
    assert architecture.family is None
    assert (architecture.model_type, architecture.classes) == ("newcomer", ("NewcomerForCausalLM",))
    assert (architecture.num_layers, architecture.hidden_size, architecture.num_heads) == (5, 64, None)


def test_a_model_that_wraps_a_text_model_has_its_sizes() -> None:
    config = CONFIG_MAPPING["gemma3"]().to_dict()
    architecture = architecture_of(config)
    assert architecture.family is None
    assert architecture.num_layers == config["text_config"]["num_hidden_layers"]


@pytest.mark.parametrize("nonsense", [None, "two", 2.0, True, -1, 0, [2, 3]])
def test_a_size_that_is_no_positive_integer_is_unknown(nonsense: object) -> None:
    config = {"model_type": "bert", "num_hidden_layers": nonsense, "architectures": nonsense}
    assert architecture_of(config).num_layers is None
    assert architecture_of({"model_type": nonsense}).model_type == (nonsense if isinstance(nonsense, str) else None)
    assert architecture_of_gguf({"general.architecture": "bert", "bert.block_count": nonsense}).num_layers is None


def test_gguf_metadata_gives_the_same_sizes() -> None:
    metadata: dict[str, Any] = {
        "general.architecture": "gptneox",
        "gptneox.block_count": 3,
        "gptneox.embedding_length": 32,
        "gptneox.attention.head_count": 4,
        "gptneox.feed_forward_length": 128,
        "gptneox.context_length": 2048,
        "tokenizer.ggml.tokens": SkippedArray("string", 5000),
    }
    architecture = architecture_of_gguf(metadata)
    assert architecture.family == "gpt_neox"
    assert tuple(getattr(architecture, size) for size in SIZES) == (3, 32, 4, 4, 128, 5000, 2048)
    assert architecture_of_gguf(metadata | {"tokenizer.ggml.tokens": ("a", "b")}).vocab_size == 2
    assert architecture_of_gguf({"general.architecture": "llama"}).family == "llama"
    assert architecture_of_gguf({}) == Architecture(None, None)


def test_no_model_type_belongs_to_two_families() -> None:
    model_types = [model_type for family in known_families().values() for model_type in family.model_types]
    assert len(model_types) == len(set(model_types))
    assert files("entrenar_core.architectures").joinpath("families.toml").is_file()
