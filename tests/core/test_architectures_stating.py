"""What config.json says of the sizes that only a layout has a name for, and what it says that is no size."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import SETTINGS, checkpoint
from entrenar_core.architectures import MAX_SIZE, architecture_of
from entrenar_core.architectures.detection import Detection, Part, constraints, detect, disagreements, parts_of
from entrenar_core.architectures.layouts import layout_named, layouts
from entrenar_core.architectures.stating import (
    stated_architecture,
    stated_experts,
    stated_sizes,
    unusable,
)

SEQ2SEQ = "AutoModelForSeq2SeqLM"
IMAGES = "AutoModelForImageClassification"
IMPLIED = "config.json says that the embeddings are not tied, and the tensors have no lm_head.weight"


def both(name: str, kind: str = "AutoModel") -> tuple[dict[str, Any], Detection]:
    """What is in config.json, and what the tensors tell."""
    saved = checkpoint(name, kind)
    detection = detect(dict(saved.shapes))
    assert detection is not None
    return saved.config.to_dict(), detection


def changed(config: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy with another value under a key such as `vision_config.patch_size`."""
    copy = deepcopy(dict(config))
    *outer, last = key.split(".")
    inner = copy
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return copy


def differences(config: Mapping[str, Any], detection: Detection) -> tuple[str, ...]:
    stated = stated_architecture(config, layout_named(detection.layout))
    return disagreements(stated, detection, config=config)


def test_every_key_of_a_layout_is_one_that_transformers_writes_and_that_the_tensors_agree_with() -> None:
    told = set()
    for name in SETTINGS:
        kinds = ("AutoModel", IMAGES) if name == "clip" else ("AutoModel",)
        for config, detection in (both(name, kind) for kind in kinds):
            assert differences(config, detection) == ()
            assert list(unusable(config, layout_named(detection.layout))) == []
            told |= {(detection.layout, size) for size, _, _ in stated_sizes(config, layout_named(detection.layout))}
    known = {(layout.name, size) for layout in layouts() for size in (*layout.config, *layout.images)}
    assert known - told == set()


@pytest.mark.parametrize(
    ("name", "kind", "key", "value", "said", "found"),
    [
        ("t5", SEQ2SEQ, "num_decoder_layers", 6, "num_decoder_layers 6", 4),
        ("t5", SEQ2SEQ, "relative_attention_num_buckets", 16, "relative_attention_num_buckets 16", 32),
        ("t5", SEQ2SEQ, "num_heads", 8, "8 heads", 4),
        ("bart", SEQ2SEQ, "decoder_layers", 12, "decoder_layers 12", 4),
        ("bart", SEQ2SEQ, "decoder_ffn_dim", 3072, "decoder_ffn_dim 3,072", 60),
        ("whisper", "AutoModel", "decoder_layers", 3, "decoder_layers 3", 4),
        ("whisper", "AutoModel", "encoder_layers", 4, "4 layers", 3),
        ("whisper", "AutoModel", "num_mel_bins", 80, "num_mel_bins 80", 10),
        ("whisper", "AutoModel", "max_source_positions", 31, "max_source_positions 31", 30),
        ("clip", "AutoModel", "text_config.hidden_size", 32, "hidden size 32", 24),
        ("clip", "AutoModel", "vision_config.num_hidden_layers", 9, "vision_config.num_hidden_layers 9", 4),
        ("clip", "AutoModel", "vision_config.patch_size", 8, "vision_config.patch_size 8", 4),
        ("clip", "AutoModel", "projection_dim", 512, "projection_dim 512", 14),
        ("clip", IMAGES, "vision_config.hidden_size", 24, "hidden size 24", 32),
        ("clip", IMAGES, "vision_config.num_channels", 1, "vision_config.num_channels 1", 3),
        ("vit", "AutoModel", "patch_size", 2, "patch_size 2", 4),
        ("vit", "AutoModel", "image_size", 32, "image_size 32 and patch_size 4, which makes 64 patches", 16),
        ("vit", "AutoModel", "image_size", [16, 32], "image_size 16 × 32 and patch_size 4, which makes 32 patches", 16),
        ("mixtral", "AutoModel", "num_local_experts", 8, "num_local_experts 8", 3),
        ("qwen2_moe", "AutoModel", "num_experts", 60, "num_experts 60", 3),
        ("qwen3_moe", "AutoModel", "moe_intermediate_size", 40, "moe_intermediate_size 40", 20),
        ("bert", "AutoModel", "type_vocab_size", 1, "type_vocab_size 1", 2),
        ("albert", "AutoModel", "num_hidden_groups", 1, "num_hidden_groups 1", 3),
        ("electra", "AutoModel", "embedding_size", 128, "embedding_size 128", 16),
        ("deberta with types", "AutoModel", "type_vocab_size", 0, "type_vocab_size 0", 3),
    ],
)  # fmt: skip
def test_sizes_of_the_layout_are_held_against_the_tensors(
    name: str, kind: str, key: str, value: object, said: str, found: int
) -> None:
    config, detection = both(name, kind)
    assert f"config.json says {said}, and the tensors have {found}" in differences(
        changed(config, key, value), detection
    )


@pytest.mark.parametrize("name", ["t5", "bart", "clip", "vit", "mixtral"])
def test_what_is_not_said_is_no_difference(name: str) -> None:
    detection = both(name)[1]
    assert differences({"model_type": name}, detection) == ()
    assert list(unusable({"model_type": name}, layout_named(detection.layout))) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-4, "-4"),
        (0, "0"),
        (24.0, "24.0"),
        ("24", '"24"'),
        (True, "true"),
        ([24, 24], "[24, 24]"),
        (MAX_SIZE + 1, str(MAX_SIZE + 1)),
        (10**100, "1" + "0" * 39 + "…"),
        ({}, "{}"),
        ("\x1b[31m", '"\\u001b[31m"'),
    ],
)
def test_what_is_no_size_is_told_and_says_nothing_else(value: object, shown: str) -> None:
    config, detection = both("bert")
    broken = changed(config, "hidden_size", value)
    assert list(unusable(broken)) == [f"config.json says hidden_size {shown}, which is no size"]
    assert architecture_of(broken).hidden_size is None
    assert differences(broken, detection) == ()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("t5", "num_decoder_layers", "many"),
        ("bart", "decoder_ffn_dim", -1),
        ("clip", "vision_config.hidden_size", [32]),
        ("clip", "text_config.num_hidden_layers", False),
        ("vit", "patch_size", [4, -4]),
        ("mixtral", "num_local_experts", 2**80),
        ("llama", "head_dim", -1),
    ],
)
def test_so_are_the_sizes_of_the_layout(name: str, key: str, value: object) -> None:
    config, detection = both(name)
    (sentence,) = unusable(changed(config, key, value), layout_named(detection.layout))
    assert sentence.startswith(f"config.json says {key} ")


def test_a_size_for_each_layer_is_fine_where_the_family_is_not_known() -> None:
    config = {"model_type": "newcomer", "intermediate_size": [8, 16], "head_dim": 0, "hidden_size": -1}
    assert list(unusable(config)) == ["config.json says hidden_size -1, which is no size"]
    inside = {"model_type": "newcomer", "text_config": {"model_type": "llama", "vocab_size": 0}}
    assert list(unusable(inside)) == ["config.json says text_config.vocab_size 0, which is no size"]


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("bart", SEQ2SEQ, (Part("encoder", 3, 24, 4, 56), Part("decoder", 4, 24, 6, 60))),
        ("bart", "AutoModelForCausalLM", (Part("decoder", 4, 24, 6, 60),)),
        ("whisper", "AutoModel", (Part("encoder", 3, 24, 4, 56), Part("decoder", 4, 24, 6, 60))),
        ("whisper", "AutoModelForAudioClassification", (Part("encoder", 3, 24, 4, 56),)),
        ("t5", SEQ2SEQ, (Part("encoder", 3, 24, 4, 56), Part("decoder", 4, 24, 4, 56))),
        ("clip", "AutoModel", (Part("text", 3, 24, 4, 56), Part("vision", 4, 32, 4, 60))),
        ("bert", "AutoModel", ()),
    ],
)
def test_each_stack_has_its_sizes(name: str, kind: str, parts: tuple[Part, ...]) -> None:
    config, detection = both(name, kind)
    assert parts_of(architecture_of(config), detection, config) == parts
    heads = [part.num_heads if name == "t5" else None for part in parts]
    by_tensors = parts_of(None, detection)
    assert [part.num_heads for part in by_tensors] == heads, "nothing in the other tensors tells them"
    assert [part.num_layers for part in by_tensors] == [part.num_layers for part in parts]


def test_heads_of_a_decoder_divide_its_hidden_size() -> None:
    config, detection = both("bart", SEQ2SEQ)
    stated = architecture_of(config)
    assert constraints(stated, detection, parts_of(stated, detection, config)) == ()
    odd = changed(config, "decoder_attention_heads", 5)
    assert constraints(stated, detection, parts_of(stated, detection, odd)) == (
        "5 heads of the decoder do not divide its hidden size 24",
    )


def test_a_t5_that_predicts_is_tied_unless_its_configuration_denies_it() -> None:
    config, detection = both("t5", SEQ2SEQ)
    predicts = {**config, "architectures": ["T5ForConditionalGeneration"]}
    encodes = {**config, "architectures": ["T5EncoderModel"]}
    assert disagreements(architecture_of(predicts), detection, tied=True) == ()
    assert disagreements(architecture_of(predicts), detection, tied=False) == (IMPLIED,)
    assert disagreements(architecture_of(encodes), detection, tied=False) == ()


def test_experts_of_an_unknown_model_are_found_under_any_of_their_names() -> None:
    assert stated_experts({"model_type": "deepseek_v3", "n_routed_experts": 256}) == ("n_routed_experts", 256)
    assert stated_experts({"text_config": {"num_local_experts": 16}}) == ("num_local_experts", 16)
    assert stated_experts({"num_experts": -1}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(
    {key for layout in layouts() for keys in (*layout.config.values(), *layout.images.values()) for key in keys}
    | {"hidden_size", "vision_config", "text_config", "num_hidden_layers", "num_heads"}
)


@given(
    said=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6),
    name=st.sampled_from(["t5", "bart", "clip", "vit", "mixtral", "clip_vision_model"]),
)
def test_no_configuration_is_an_error(said: dict[str, Any], name: str) -> None:
    detection = both(name)[1]
    config: dict[str, Any] = {"model_type": name}
    for key, value in said.items():
        outer, _, last = key.rpartition(".")
        inner = config.setdefault(outer, {}) if outer else config
        if isinstance(inner, dict):
            inner[last] = value
    layout = layout_named(detection.layout)
    lines = [*unusable(config, layout), *differences(config, detection)]
    assert all(line.startswith("config.json says ") and line.isprintable() for line in lines)
    stated = stated_architecture(config, layout)
    assert len(parts_of(stated, detection, config)) == len(layout.parts)
