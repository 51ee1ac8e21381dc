"""layouts.toml against transformers: every row names tensors that it writes, and all that it writes has a row."""

from collections.abc import Mapping
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import SETTINGS, checkpoint
from entrenar_core.architectures import families
from entrenar_core.architectures.detection import detect
from entrenar_core.architectures.fitting import matched
from entrenar_core.architectures.layouts import Layout, anywhere, expressions, layouts, variants
from entrenar_core.architectures.naming import numbered

WANTED = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3", "phi3", "gpt2",
    "gpt_neox", "falcon", "starcoder2", "bert", "roberta", "distilbert", "albert", "deberta", "deberta-v2", "electra",
    "t5", "bart", "whisper", "vit", "clip", "gemma",
)  # fmt: skip
CAUSAL = "AutoModelForCausalLM"
TEXT = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering")
MASKED = ("AutoModelForMaskedLM", "AutoModelForMultipleChoice", *TEXT)
# Further heads, each under a model of `checkpoints.SETTINGS`; all have a body and, if they predict, an output layer.
KINDS: dict[str, tuple[str, ...]] = {
    "gpt2": (CAUSAL, "GPT2DoubleHeadsModel", *TEXT),
    "bert": ("AutoModelForPreTraining", "AutoModelForNextSentencePrediction", *MASKED),
    "albert": ("AutoModelForPreTraining", *MASKED),
    "electra": ("AutoModelForPreTraining", *MASKED),
    "electra without projection": (),
    "deberta": ("AutoModelForMaskedLM", *TEXT),
    "t5": ("AutoModelForSeq2SeqLM", "T5EncoderModel", *TEXT),
    "t5 with gates": ("T5EncoderModel",),
    "bart": ("AutoModelForSeq2SeqLM", CAUSAL, TEXT[0], TEXT[2]),
    "whisper": ("AutoModelForSpeechSeq2Seq", "AutoModelForAudioClassification", "WhisperForCausalLM"),
    "vit": ("AutoModelForImageClassification", "AutoModelForMaskedImageModeling"),
    "clip": ("AutoModelForImageClassification",),
    "clip_text_model": ("CLIPTextModelWithProjection",),
    "clip_vision_model": ("CLIPVisionModelWithProjection",),
    "gemma": (CAUSAL, *TEXT[:2]),
    "gemma2": (CAUSAL, *TEXT[:2]),
    "gemma3_text": (CAUSAL, *TEXT[:1]),
    "phi3": (CAUSAL, *TEXT[:2]),
    "starcoder2": (CAUSAL, *TEXT[:2]),
}
UNTIED = (CAUSAL, "AutoModelForMaskedLM", "WhisperForCausalLM")
ENCODERS = ("roberta", "xlm-roberta", "distilbert", "deberta-v2")
# Written by other programs, or by older versions.
NOT_WRITTEN = {
    "t5": {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"},
    "bart": {"encoder.embed_tokens.weight"},
}


def kinds_of(name: str) -> tuple[str, ...]:
    if name in KINDS:
        return ("AutoModel", *KINDS[name])
    if " " in name:
        return ("AutoModel", "AutoModelForMaskedLM") if name.startswith("deberta") else ("AutoModel",)
    return ("AutoModel", *(MASKED if name.startswith(ENCODERS) else (CAUSAL, *TEXT)))


@cache
def written() -> Mapping[str, set[str]]:
    """The rows of each layout whose tensors some model was saved with. None of all these models is misread."""
    rows: dict[str, set[str]] = {layout.name: set() for layout in layouts()}
    by_name = {layout.name: layout for layout in layouts()}
    for name in SETTINGS:
        for kind in kinds_of(name):
            for tied in (True, False) if kind in UNTIED else (None,):
                shapes = dict(checkpoint(name, kind, tied).shapes)
                found = detect(shapes)
                assert found is not None, (name, kind)
                assert (found.missing, found.extra, found.mismatched) == ((), (), ()), (name, kind, tied)
                fitted = matched(numbered(shapes), by_name[found.layout], found.prefix)
                rows[found.layout] |= {template.name for template in fitted.found}
    return rows


def test_every_row_is_a_tensor_that_transformers_writes_and_every_tensor_has_a_row() -> None:
    for layout in layouts():
        idle = {template.name for template in layout.templates} - written()[layout.name]
        assert idle == NOT_WRITTEN.get(layout.name, set()), layout.name


def test_every_wanted_family_has_a_layout_and_so_has_every_row_of_the_families() -> None:
    known = {family for layout in layouts() for family in layout.families}
    assert set(WANTED) | set(families()) <= known


@pytest.mark.parametrize("layout", layouts(), ids=lambda layout: layout.name)
def test_a_table_names_only_what_it_has(layout: Layout) -> None:
    names = [template.name for template in layout.templates]
    assert len(names) == len(set(names)), "twice"
    body = {template.name for group in layout.groups if group.kind != "head" for template in group.templates}
    heads = {template.name for group in layout.groups if group.kind == "head" for template in group.templates}
    sizes = {size for template in layout.templates for made in template.dimensions for size, _ in made.terms}
    sizes |= set(layout.counts)
    groups = {group.name for group in layout.groups}
    assert set(layout.embeddings) <= body
    assert set(layout.tied) <= heads
    assert {name for others in layout.tied.values() for name in others} <= body | heads
    assert {name for either in layout.distinguishing for name in either} <= body
    assert not layout.never & set(layout.body)
    assert not layout.buffers & set(layout.body)
    assert set(layout.only) | set(layout.bridges) <= groups
    assert {family for limited in layout.only.values() for family in limited} <= set(layout.families)
    assert {size for pair in (*layout.unequal, *layout.bridges.values()) for size in pair} | set(layout.usual) <= sizes
    assert all(axis in layout.counts for template in layout.templates for axis in template.axes)
    assert len(set(layout.prefixes)) == len(layout.prefixes)
    in_parts = {size for part in layout.parts.values() for size in part}
    assert set(layout.config) <= sizes | in_parts
    assert in_parts <= sizes | set(layout.config) | {"heads"}
    assert set(layout.images) <= sizes
    assert all(len(widths) == 2 for widths in layout.images.values())
    assert all(len(part) == 4 and part[0] in layout.counts for part in layout.parts.values())
    assert {*layout.shared, *layout.shared.values()} <= body
    assert set(layout.implied) <= groups


@pytest.mark.parametrize("layout", layouts(), ids=lambda layout: layout.name)
def test_a_choice_is_between_tensors_of_the_same_layers(layout: Layout) -> None:
    first: dict[str, tuple[str, ...]] = {}
    for group in layout.groups:
        if group.kind == "one_of":
            for template in group.templates:
                assert template.axes[:1] == first.setdefault(group.name, template.axes[:1])


def test_variants_are_of_families_that_have_their_sizes() -> None:
    for variant in variants():
        layout = next(layout for layout in layouts() if variant.family in layout.families)
        assert set(variant.sizes) <= {
            size for row in layout.templates for made in row.dimensions for size, _ in made.terms
        }


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ("", ()),
        ("hidden", (24,)),
        ("queries + 2*keys hidden", (48, 24)),
        ("3*hidden 2", (72, 2)),
        ("positions + 2 hidden", (99, 24)),
        ("1 patches + 1 hidden", (1, 17, 24)),
        ("2*distances", (None,)),
    ],
)
def test_shapes_are_read_as_they_are_written(shape: str, lengths: tuple[int | None, ...]) -> None:
    sizes = {"hidden": 24, "queries": 24, "keys": 12, "positions": 97, "patches": 16}
    assert tuple(made.value(sizes) for made in expressions(shape)) == lengths


@given(
    terms=st.dictionaries(st.sampled_from(["hidden", "keys", "head_dim"]), st.integers(1, 9), min_size=1),
    constant=st.integers(0, 9),
)
def test_a_dimension_is_the_sum_of_its_terms(terms: dict[str, int], constant: int) -> None:
    sizes = {"hidden": 7, "keys": 11, "head_dim": 13}
    text = " + ".join(f"{number}*{size}" if number > 1 else size for size, number in terms.items())
    (made,) = expressions(f"{text} + {constant}" if constant else text)
    assert made.value(sizes) == constant + sum(number * sizes[size] for size, number in terms.items())


def test_a_template_has_its_numbers_and_its_indices() -> None:
    t5 = next(layout for layout in layouts() if layout.name == "t5")
    (row,) = (row for row in t5.templates if row.name == "encoder.block.*.layer.1.DenseReluDense.wo.weight")
    assert (row.pattern, row.numbers, row.axes) == (
        "encoder.block.*.layer.*.DenseReluDense.wo.weight",
        (None, 1),
        ("layers",),
    )
    assert row.at((5,)) == "encoder.block.5.layer.1.DenseReluDense.wo.weight"


def test_endings_that_are_looked_for_are_found_by_their_last_part() -> None:
    known = anywhere()
    assert {ending.rpartition(".")[2] for ending in (*known.companions, *known.packed)} == known.last_parts
    assert not known.last_parts & {"weight", "bias"}
    assert {name.rpartition(".")[2] for name in known.hiding} <= known.last_parts
