"""Logits made from hidden states are the model's own, for every family that predicts tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from entrenar_core.architectures import families
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.losses.targets import HeadRows
from entrenar_core.models.calling import logits_of
from entrenar_core.models.output_layer import hidden_states, instead_of_logits, output_layer_of
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.models.token_map import MappedTeacher, TokenMap
from family_models import WANTED, family_model

DECODERS = [
    model_type for family in families().values() if family.kind == "decoder" for model_type in family.model_types
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
MASK = torch.ones_like(IDS)


def made(model_type: str) -> Any:
    return family_model(model_type, AutoModelForCausalLM)


def batch() -> Batch:
    rows = [{"input_ids": row, "labels": row, "row": index} for index, row in enumerate(IDS.tolist())]
    return Collator(0)([rows[0], rows[1] | {"input_ids": rows[1]["input_ids"][:4], "labels": rows[1]["labels"][:4]}])


@pytest.mark.parametrize("model_type", DECODERS)
@torch.no_grad()
def test_every_family_makes_its_logits_in_this_way(model_type: str) -> None:
    model, counting = made(model_type), Counting(shifted=True, vocabulary=100)
    output = output_layer_of(model, IDS, MASK)
    assert output is not None
    rows = read_rows(model, batch(), counting, output)
    assert isinstance(rows, HeadRows)
    expected = read_rows(model, batch(), counting)
    assert len(rows) == len(expected) == 8
    torch.testing.assert_close(rows.of(slice(None)), expected.of(slice(None)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.of(slice(2, 5)), expected.of(slice(2, 5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
        ("gptj", {}),
    ],
)
@torch.no_grad()
def test_scale_cap_and_bias_are_found(model_type: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    common = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "rotary_dim": 4} if model_type == "gptj" else common
    heads = {"num_key_value_heads": 2, "head_dim": 6} if model_type != "gptj" else {}
    config = CONFIG_MAPPING[model_type](vocab_size=131, pad_token_id=0, **sizes, **heads, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    output = output_layer_of(model, IDS, MASK)
    assert output is not None
    if settings:
        assert (output.scale, output.softcap) != (1.0, None)
    else:
        assert output.head.bias_V is not None
    rows = read_rows(model, batch(), Counting(shifted=True), output).of(slice(None))
    torch.testing.assert_close(rows, read_rows(model, batch(), Counting(shifted=True)).of(slice(None)))


@torch.no_grad()
def test_the_head_of_a_teacher_is_put_in_the_order_of_the_student() -> None:
    model, token_map = made("llama"), TokenMap(torch.randperm(100, generator=torch.Generator().manual_seed(1)))
    reader, counting = MappedTeacher(model, token_map, over_tokens=True), Counting(shifted=True, vocabulary=100)
    output = output_layer_of(model, token_map.to_teacher(IDS), MASK)
    assert output is not None
    rows = read_rows(reader, batch(), counting, output.in_order_of(token_map))
    assert isinstance(rows, HeadRows)
    expected = read_rows(reader, batch(), counting)
    torch.testing.assert_close(rows.of(slice(None)), expected.of(slice(None)), rtol=1e-4, atol=1e-4)


class Doubled(nn.Module):
    """What a model's own code may do to its logits, and its configuration does not say."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        output.logits = output.logits * 2
        return output


def test_a_model_that_does_more_to_its_logits_is_found_out() -> None:
    assert output_layer_of(Doubled(made("llama")), IDS, MASK) is None  # type: ignore[arg-type]


def test_a_trial_leaves_mode_and_chance_as_they_were() -> None:
    model = made("gpt2").train()
    before = torch.get_rng_state()
    assert output_layer_of(model, IDS, MASK) is not None
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_after_an_error_the_model_makes_logits_again() -> None:
    model = made("llama")
    output = output_layer_of(model, IDS, MASK)
    assert output is not None
    expected = logits_of(model, IDS, MASK)

    def fails(_: Tensor) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), instead_of_logits(output, fails):
        logits_of(model, IDS, MASK)
    assert torch.equal(logits_of(model, IDS, MASK), expected)


def test_hidden_states_carry_a_graph_and_no_logits_are_made() -> None:
    model = made("llama")
    output = output_layer_of(model, IDS, MASK)
    assert output is not None
    hidden = hidden_states(model, output, IDS, MASK)
    assert hidden.shape == (2, 6, WANTED["hidden_size"])
    hidden.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert output.module.weight.grad is None
