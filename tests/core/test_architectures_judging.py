"""What is of no known layout is nothing, also where it shares many names; what is of two is both."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from checkpoints import checkpoint
from entrenar_core.architectures.detection import detect
from entrenar_core.architectures.layouts import layouts

Shapes = dict[str, tuple[int, ...]]
WIDTHS = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 56}
TEXT = WIDTHS | {"vocab_size": 131, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STACKS = {"d_model": 24, "encoder_layers": 3, "decoder_layers": 3, "vocab_size": 131, "pad_token_id": 0}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 56, "decoder_ffn_dim": 56}
# Of no family of the table, with names of one that is.
OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 24, "n_layer": 3, "n_head": 4, "vocab_size": 131},
    "gpt_bigcode": {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 131},
    "olmo2": TEXT,
    "olmoe": TEXT | {"num_experts": 3},
    "cohere": TEXT,
    "stablelm": TEXT,
    "glm4_moe": TEXT | {"n_routed_experts": 4, "moe_intermediate_size": 20, "first_k_dense_replace": 1},
    "diffllama": TEXT,
    "opt": TEXT | {"ffn_dim": 56, "word_embed_proj_dim": 24},
    "mbart": STACKS | HEADS,
    "pegasus": STACKS | HEADS,
    "layoutlm": TEXT,
    "roformer": TEXT,
    "rembert": TEXT | {"input_embedding_size": 16, "output_embedding_size": 20},
    "umt5": {"d_model": 24, "num_layers": 3, "num_heads": 4, "d_kv": 6, "d_ff": 56, "vocab_size": 131},
    "deit": WIDTHS | {"image_size": 16, "patch_size": 4},
    "yolos": WIDTHS | {"image_size": [16, 16], "patch_size": 4},
    "videomae": WIDTHS | {"image_size": 16, "patch_size": 4},
    "siglip_vision_model": WIDTHS | {"image_size": 16, "patch_size": 4},
    "siglip": {"text_config": TEXT, "vision_config": WIDTHS | {"image_size": 16, "patch_size": 4}},
}


def shapes_of(model_type: str, made: Any) -> Shapes:
    with torch.device("meta"):
        model = made.from_config(CONFIG_MAPPING[model_type](**OTHERS[model_type]))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("model_type", OTHERS)
def test_a_model_of_another_family_is_none_of_these(model_type: str) -> None:
    assert detect(shapes_of(model_type, AutoModel)) is None


def test_nor_is_the_text_tower_of_a_siglip() -> None:
    shapes = {name: shape for name, shape in shapes_of("siglip", AutoModel).items() if name.startswith("text_model.")}
    assert len(shapes) == 54
    assert detect(shapes) is None


@pytest.mark.parametrize("model_type", ["bloom", "gpt_bigcode", "olmo2", "stablelm", "opt"])
def test_nor_is_it_with_a_head(model_type: str) -> None:
    assert detect(shapes_of(model_type, AutoModelForCausalLM)) is None


@pytest.mark.parametrize("model_type", ["mbart", "pegasus", "umt5"])
def test_nor_is_one_with_two_stacks(model_type: str) -> None:
    assert detect(shapes_of(model_type, AutoModelForSeq2SeqLM)) is None


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("llama", "mistral", "AutoModel"),
        ("llama", "mistral", "AutoModelForCausalLM"),
        ("llama", "mistral", "AutoModelForTokenClassification"),
        ("roberta", "xlm-roberta", "AutoModelForMaskedLM"),
    ],
)
def test_families_that_share_a_layout_are_saved_alike(one: str, other: str, kind: str) -> None:
    first, second = (dict(checkpoint(name, kind).shapes) for name in (one, other))
    assert first == second
    found = detect(first)
    assert found is not None
    assert (found.mismatched, found.missing, found.extra) == ((), (), ())


def test_every_shared_layout_is_proved() -> None:
    shared = {layout.name: layout.families for layout in layouts() if len(layout.families) > 1}
    assert shared.pop("llama") == ("llama", "mistral", "gemma")
    # The towers of a CLIP are the models of these names, alone.
    assert shared == {"clip_text": ("clip", "clip_text_model"), "clip_vision": ("clip", "clip_vision_model")}


def test_biases_are_no_mistrals() -> None:
    detection = detect(dict(checkpoint("llama with biases", "AutoModel").shapes))
    assert detection is not None
    assert detection.families == ("llama",)


def test_an_electra_as_wide_as_its_embeddings_is_a_bert_without_a_pooler() -> None:
    electra = dict(checkpoint("electra without projection", "AutoModel").shapes)
    bert = {name: shape for name, shape in checkpoint("bert", "AutoModel").shapes.items() if "pooler" not in name}
    assert electra == bert
    detection = detect(electra)
    assert detection is not None
    assert detection.families == ("bert", "electra")


def test_token_types_tell_a_roberta_from_a_bert() -> None:
    shapes = dict(checkpoint("bert", "AutoModel").shapes)
    types = "embeddings.token_type_embeddings.weight"
    for rows, families in ((2, ("bert",)), (1, ("roberta",)), (5, ("bert", "roberta"))):
        detection = detect(shapes | {types: (rows, 24)})
        assert detection is not None
        assert detection.families == families


names = st.lists(st.text("abc.0123*é٣ \n", max_size=12), max_size=30)


@given(names=names, shape=st.lists(st.integers(0, 2**62), max_size=5).map(tuple))
def test_any_names_are_no_model_and_no_error(names: list[str], shape: tuple[int, ...]) -> None:
    assert detect(dict.fromkeys(names, shape)) is None


@given(data=st.data())
def test_any_shapes_are_no_error(data: st.DataObject) -> None:
    saved = checkpoint("t5", "AutoModel").shapes
    shape = st.lists(st.sampled_from([0, 1, 2, 3, 24, 2**62]), max_size=4).map(tuple)
    shapes = {name: data.draw(shape) if data.draw(st.booleans()) else own for name, own in saved.items()}
    detection = detect(shapes)
    assert detection is None or {mismatch.name for mismatch in detection.mismatched} <= set(shapes)


def test_a_head_of_ones_own_beside_a_known_body_is_extra() -> None:
    shapes = dict(checkpoint("bert", "AutoModelForMaskedLM").shapes)
    detection = detect(shapes | {"my_head.weight": (7, 24), "my_head.bias": (7,)})
    assert detection is not None
    assert (detection.families, detection.extra) == (("bert",), ("my_head.weight", "my_head.bias"))


@pytest.mark.parametrize("module", ["self_attn.gate", "mlp.router", "third_layernorm"])
def test_what_is_new_in_every_layer_makes_it_another_model(module: str) -> None:
    shapes = dict(checkpoint("llama", "AutoModelForCausalLM").shapes)
    once = {f"model.layers.0.{module}.weight": (24,)}
    detection = detect(shapes | once)
    assert detection is not None
    assert detection.extra == tuple(once)
    assert detect(shapes | {f"model.layers.{layer}.{module}.weight": (24,) for layer in range(3)}) is None


@pytest.mark.parametrize("number", [999, 10**8, 10**12])
def test_a_layer_of_any_number_costs_no_time(number: int) -> None:
    shapes = dict(checkpoint("qwen3_moe", "AutoModelForCausalLM").shapes)
    started = time.process_time()
    for name in ("model.layers.{}.self_attn.q_proj.weight", "model.layers.2.mlp.experts.{}.up_proj.weight"):
        detection = detect(shapes | {name.format(number): (40, 24)})
        assert detection is None or len(detection.missing) < 200_000
    assert time.process_time() - started < 10


def test_names_that_only_look_like_numbers_are_no_layers() -> None:
    shapes = dict(checkpoint("llama", "AutoModelForCausalLM").shapes)
    for odd in ("01", "*", "٣", "²", "-1", "1_0", "+1"):
        detection = detect(shapes | {f"model.layers.{odd}.mlp.up_proj.weight": (56, 24)})
        assert detection is not None
        assert detection.extra == (f"model.layers.{odd}.mlp.up_proj.weight",)
        assert detection.sizes["layers"] == 3
