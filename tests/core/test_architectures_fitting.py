"""What lies beside weights is told apart from them: buffers, older spellings, and what comes with quantised weights."""

import re
from pathlib import Path

import pytest
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from checkpoints import checkpoint, saved_shapes
from entrenar_core.architectures.detection import Detection, detect

Shapes = dict[str, tuple[int, ...]]
LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight")


def found(shapes: Shapes) -> Detection:
    detection = detect(shapes)
    assert detection is not None
    assert (detection.missing, detection.extra, detection.mismatched) == ((), (), ())
    return detection


def llama() -> Shapes:
    return dict(checkpoint("llama", "AutoModelForCausalLM", False).shapes)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("llama", {"model.layers.{}.self_attn.rotary_emb.inv_freq": (3,), "model.rotary_emb.inv_freq": (3,)}),
        ("gpt2", {"transformer.h.{}.attn.bias": (1, 1, 97, 97), "transformer.h.{}.attn.masked_bias": ()}),
        ("gpt_neox", {"gpt_neox.layers.{}.attention.bias": (97, 97), "gpt_neox.layers.{}.attention.masked_bias": ()}),
        ("gpt_neox", {"gpt_neox.layers.{}.attention.rotary_emb.inv_freq": (3,)}),
    ],
)
def test_buffers_that_older_files_hold_are_no_weights(name: str, buffers: Shapes) -> None:
    more = {key.format(layer): shape for key, shape in buffers.items() for layer in range(3)}
    shapes = dict(checkpoint(name, "AutoModelForCausalLM").shapes)
    before, after = found(shapes), found(shapes | more)
    assert set(after.buffers) == set(more)
    assert (before.sizes, before.architecture) == (after.sizes, after.architecture)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForMaskedLM"])
def test_positions_are_a_buffer_of_a_bert_with_or_without_a_head(kind: str) -> None:
    shapes = dict(checkpoint("bert", kind).shapes)
    prefix = "bert." if kind != "AutoModel" else ""
    assert found(shapes | {f"{prefix}embeddings.position_ids": (1, 97)}).buffers == (
        f"{prefix}embeddings.position_ids",
    )


def test_norms_may_have_the_names_that_tensorflow_gave_them() -> None:
    shapes = dict(checkpoint("bert", "AutoModelForPreTraining").shapes)
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    older = {re.sub(r"LayerNorm\.(weight|bias)", lambda part: new[part[0]], name): shapes[name] for name in shapes}
    assert len(set(older) - set(shapes)) == 16
    assert found(older).sizes == found(shapes).sizes
    del older["bert.encoder.layer.1.output.LayerNorm.gamma"]
    detection = detect(older)
    assert detection is not None
    assert detection.missing == ("bert.encoder.layer.1.output.LayerNorm.weight",)
    both = detect(shapes | {"bert.embeddings.LayerNorm.gamma": (24,)})
    assert both is not None
    assert both.extra == ("bert.embeddings.LayerNorm.gamma",)


def quantised(shapes: Shapes, **endings: tuple[int, ...]) -> Shapes:
    """The linear layers' weights with companions, or replaced: `weight` is dropped where `qweight` comes."""
    changed: Shapes = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if not LINEAR.fullmatch(name):
            changed[name] = shape
            continue
        if not {"qweight", "weight_packed"} & set(endings):
            changed[name] = shape
        changed |= {f"{module}.{ending}": own for ending, own in endings.items()}
    return changed


@pytest.mark.parametrize(
    "endings",
    [
        {"qweight": (3, 24), "qzeros": (1, 3), "scales": (1, 24), "g_idx": (24,)},  # GPTQ
        {"qweight": (24, 3), "qzeros": (1, 3), "scales": (1, 24)},  # AWQ
        {"weight_packed": (24, 3), "weight_scale": (24, 1), "weight_shape": (2,)},  # compressed-tensors
    ],
)
def test_packed_weights_stand_for_weights(endings: Shapes) -> None:
    shapes = quantised(llama(), **endings)
    detection = found(shapes)
    assert detection.families == ("llama", "mistral", "gemma")
    packed = {"qweight", "weight_packed"}
    assert {name.rpartition(".")[2] for name in detection.companions} == set(endings) - packed
    assert (detection.sizes["hidden"], detection.sizes["layers"]) == (24, 3)
    assert "intermediate" not in detection.sizes, "packed shapes do not tell it"
    assert detection.architecture.num_parameters is None
    lost = next(name for name in shapes if name.endswith(("2.mlp.up_proj.qweight", "2.mlp.up_proj.weight_packed")))
    without = detect({name: shape for name, shape in shapes.items() if name != lost})
    assert without is not None
    assert without.missing == ("model.layers.2.mlp.up_proj.weight",)


@pytest.mark.parametrize("ending", ["weight_scale", "weight_scale_inv", "input_scale", "SCB"])
def test_scales_beside_weights_leave_their_shapes(ending: str) -> None:
    shapes = quantised(llama(), **{ending: (1,)})
    detection = found(shapes)
    assert len(detection.companions) == 21
    assert detection.architecture == found(llama()).architecture
    wrong = detect(shapes | {"model.layers.1.mlp.up_proj.weight": (55, 24)})
    assert wrong is not None
    assert [mismatch.name for mismatch in wrong.mismatched] == ["model.layers.1.mlp.up_proj.weight"]


def test_scales_of_nothing_are_extra() -> None:
    detection = detect(llama() | {"model.layers.1.mlp.gone_proj.weight_scale": (1,)})
    assert detection is not None
    assert (detection.companions, detection.extra) == ((), ("model.layers.1.mlp.gone_proj.weight_scale",))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_bitsandbytes_writes_is_told_from_weights(bits: int, tmp_path: Path) -> None:
    checkpoint("llama", "AutoModelForCausalLM", False).model.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4"
    )
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu")
    assert isinstance(model, PreTrainedModel)
    assert (bits == 4) is isinstance(model.model.layers[0].mlp.up_proj, Linear4bit)
    shapes = saved_shapes(model)
    detection = found(shapes)
    assert len(detection.companions) == 21 * (5 if bits == 4 else 2)
    assert set(shapes) - set(detection.companions) == set(llama())
    assert (detection.sizes["hidden"], detection.sizes["layers"], detection.sizes["vocab"]) == (24, 3, 131)
    assert detection.sizes.get("intermediate") == (None if bits == 4 else 56)
