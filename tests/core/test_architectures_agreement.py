"""Where a configuration and tensors differ is said in sentences, and only there."""

from dataclasses import replace
from typing import Any

import pytest

from checkpoints import checkpoint
from entrenar_core.architectures import Architecture, architecture_of
from entrenar_core.architectures.detection import Detection, constraints, detect, disagreements

CAUSAL = "AutoModelForCausalLM"


def both(name: str, kind: str = CAUSAL, tied: bool | None = None) -> tuple[Architecture, Detection]:
    """What the configuration says and what the tensors tell."""
    saved = checkpoint(name, kind, tied)
    detection = detect(dict(saved.shapes))
    assert detection is not None
    return architecture_of(saved.config.to_dict()), detection


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("llama", {"num_layers": 12}, "config.json says 12 layers, and the tensors have 3"),
        ("llama", {"hidden_size": 28}, "config.json says hidden size 28, and the tensors have 24"),
        ("llama", {"intermediate_size": 5600}, "config.json says intermediate size 5,600, and the tensors have 56"),
        ("llama", {"vocab_size": 132}, "config.json says a vocabulary of 132, and the tensors have 131"),
        ("gpt2", {"max_positions": 98}, "config.json says 98 positions, and the tensors have 97"),
        ("qwen3", {"num_heads": 8}, "config.json says 8 heads, and the tensors have 4"),
        ("qwen3", {"num_kv_heads": 4}, "config.json says 4 key-value heads, and the tensors have 2"),
        ("qwen3", {"head_dim": 12}, "config.json says heads of 12, and the tensors have 10"),
        (
            "llama",
            {"head_dim": 8},
            "config.json says 4 heads of 8, 32 wide in all, and the tensors have 24",
        ),
        (
            "gemma2",
            {"num_kv_heads": 4},
            "config.json says 4 key-value heads of 10, 40 wide in all, and the tensors have 20",
        ),
        (
            "phi3",
            {"num_kv_heads": 1},
            "config.json says 1 key-value head of 6, 6 wide in all, and the tensors have 12",
        ),
        ("llama", {"family": "qwen2"}, "config.json says qwen2, and the tensors are those of llama, mistral or gemma"),
        ("qwen2", {"family": "mistral"}, "config.json says mistral, and the tensors are those of qwen2"),
    ],
)
def test_a_difference_is_one_sentence(name: str, changes: dict[str, Any], sentence: str) -> None:
    architecture, detection = both(name)
    assert disagreements(architecture, detection) == ()
    assert sentence in disagreements(replace(architecture, **changes), detection)
    unknown = Architecture(None, None)
    assert disagreements(unknown, detection) == (), "what is not said is no difference"


def test_other_names_of_models_that_are_built_alike_are_no_difference() -> None:
    architecture, detection = both("llama")
    assert disagreements(replace(architecture, family=None, model_type="granite"), detection) == ()
    (sentence,) = disagreements(replace(architecture, family=None, model_type="falcon"), detection)
    assert sentence == "config.json says falcon, and the tensors are those of llama, mistral or gemma"


def test_a_roberta_may_have_as_many_token_types_as_a_bert() -> None:
    architecture, detection = both("bert", "AutoModel")
    assert (detection.families, detection.unusual) == (("bert",), ("roberta",))
    assert disagreements(replace(architecture, family="roberta"), detection) == ()
    assert disagreements(replace(architecture, family="distilbert"), detection) != ()


@pytest.mark.parametrize(
    ("tied", "said", "sentences"),
    [
        (True, True, ()),
        (False, False, ()),
        (True, None, ()),
        (False, None, ()),
        (True, False, ("config.json says that the embeddings are not tied, and the tensors have no lm_head.weight",)),
        (
            False,
            True,
            (
                "config.json says that the embeddings are tied, and the tensors have lm_head.weight beside "
                "model.embed_tokens.weight",
            ),
        ),
    ],
)
def test_ties_are_compared_where_there_is_a_head(tied: bool, said: bool | None, sentences: tuple[str, ...]) -> None:
    assert disagreements(*both("qwen2", tied=tied), tied=said) == sentences


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"), [("qwen2", "AutoModel"), ("qwen2", "AutoModelForTokenClassification"), ("t5", "AutoModel")]
)
def test_without_an_output_layer_nothing_is_tied(name: str, kind: str, tied: bool) -> None:
    assert disagreements(*both(name, kind), tied=tied) == ()


@pytest.mark.parametrize("said", [True, False])
def test_ties_of_a_masked_language_model(said: bool) -> None:
    sentences = disagreements(*both("bert", "AutoModelForMaskedLM"), tied=said)
    lacking = "config.json says that the embeddings are not tied, and the tensors have no {}"
    assert sentences == (() if said else (lacking.format("cls.predictions.decoder.weight"),))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("bert", {"num_heads": 5}, "5 heads do not divide the hidden size 24"),
        ("llama", {"num_kv_heads": 3}, "3 key-value heads do not divide 4 heads"),
        ("llama", {"num_heads": 2, "head_dim": 10}, "2 heads of 10 would be 20 wide in all, not 24"),
        ("llama", {"num_kv_heads": 4}, "4 key-value heads of 6 would be 24 wide in all, not 12"),
        ("llama", {"head_dim": 3}, "heads of 3 cannot be turned by position: that takes an even width"),
    ],
)
def test_sizes_that_no_model_has_are_told(name: str, changes: dict[str, Any], sentence: str) -> None:
    architecture, detection = both(name, "AutoModel")
    assert constraints(architecture, detection) == ()
    assert sentence in constraints(replace(architecture, **changes), detection)


def test_widths_of_tensors_must_be_whole_heads_and_groups() -> None:
    architecture, detection = both("qwen3")
    odd = replace(detection, sizes={**detection.sizes, "keys": 24})
    assert "keys that are 24 wide are no heads of 10" in constraints(architecture, odd)
    assert "queries that are 40 wide cannot share keys that are 24 wide" in constraints(architecture, odd)


def test_heads_with_a_width_of_their_own_need_not_divide_the_hidden_size() -> None:
    architecture, detection = both("qwen3")
    assert architecture.hidden_size == 24
    assert constraints(replace(architecture, num_heads=4), detection) == ()
    odd = replace(architecture, num_heads=5, num_kv_heads=5)
    assert "5 heads do not divide the hidden size 24" not in constraints(odd, detection)
