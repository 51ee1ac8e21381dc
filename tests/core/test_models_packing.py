"""Examples that share a row give the logits and gradients that each gives alone, or their model is refused."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification

from entrenar_core.architectures import families
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.errors import ModelError
from entrenar_core.models.calling import logits_of
from entrenar_core.models.output_layer import output_layer_of
from entrenar_core.models.packing import require_packable
from entrenar_core.models.recording import recording
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.models.token_map import MappedTeacher, TokenMap
from family_models import family_model

Side = Literal["left", "right"]
WINDOW = 4
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
}
OF_KIND = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM}
KINDS = {
    model_type: family.kind
    for family in families().values()
    for model_type in family.model_types
    if family.kind != "encoder-decoder"
}
VOCABULARY = 131


def rows(causal: bool = True) -> list[list[dict[str, Any]]]:
    """Two rows of three examples: some longer than a window, one of one token, one with RoBERTa's pad token in it."""
    chance = torch.Generator().manual_seed(0)
    found = []
    for index, length in enumerate([9, 3, 14, 1, 6, 2]):
        ids = torch.randint(5, VOCABULARY, (length,), generator=chance).tolist()
        if length == 14:
            ids[4] = 1
        example: dict[str, Any] = {"input_ids": ids, "labels": ids, "row": index}
        found.append(example if causal else example | {"targets": [True] * length})
    return [found[:3], found[3:]]


def apart(examples: list[list[dict[str, Any]]]) -> list[Batch]:
    return [Collator(0)([example]) for row in examples for example in row]


def of_real(model: nn.Module, batch: Batch) -> Tensor:
    return logits_of(model, batch.input_ids_BT, batch.attention_mask_BT, batch.packed)[batch.real]


def gradients(model: nn.Module, logits_NV: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum in which every logit has a weight of its own."""
    weights = torch.randn(logits_NV.shape, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((logits_NV * weights).sum(), parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", KINDS)
def test_packed_logits_and_gradients_of_every_family_are_those_of_each_example_alone(
    model_type: str, implementation: str
) -> None:
    if (model_type, implementation) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa for gemma2")
    settings = SLIDING.get(model_type, {}) | {"attn_implementation": implementation}
    model = family_model(model_type, OF_KIND[KINDS[model_type]], **settings)
    expected_NV = torch.cat([of_real(model, batch) for batch in apart(rows())])
    expected, scale = gradients(model, expected_NV), float(expected_NV.detach().abs().max())
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        logits_NV = of_real(model, Collator(0, side).packed(rows()))
        assert float((logits_NV - expected_NV).detach().abs().max()) <= 1e-5 * scale
        found = gradients(model, logits_NV)
        assert found.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= 1e-5 * largest
    assert model.config._attn_implementation == implementation, "it is as it was"


@pytest.mark.parametrize("model_type", [name for name, kind in KINDS.items() if kind == "encoder"])
@torch.no_grad()
def test_packed_taggers_of_every_family_are_those_of_each_example_alone(model_type: str) -> None:
    model = family_model(model_type, AutoModelForTokenClassification, num_labels=5)
    expected_NV = torch.cat([of_real(model, batch) for batch in apart(rows())])
    found_NV = of_real(model, Collator(0).packed(rows()))
    assert float((found_NV - expected_NV).abs().max()) <= 1e-5 * float(expected_NV.abs().max())


@pytest.mark.parametrize("model_type", KINDS)
def test_every_family_passes_the_check(model_type: str) -> None:
    causal = KINDS[model_type] == "decoder"
    model = family_model(model_type, OF_KIND[KINDS[model_type]], **SLIDING.get(model_type, {})).train()
    state = torch.get_rng_state()
    require_packable(model, "student", rows(causal), Collator(0), Counting(shifted=causal))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_without_positions_and_a_mask_of_its_own_a_packed_row_would_not_be_its_examples() -> None:
    """What the check compares is there to be seen: the same rows read as one text."""
    for model_type, kind in KINDS.items():
        model = family_model(model_type, OF_KIND[kind]).requires_grad_(False)
        expected_NV = torch.cat([of_real(model, batch) for batch in apart(rows())])
        batch = Collator(0).packed(rows())
        as_one_NV = logits_of(model, batch.input_ids_BT, batch.attention_mask_BT)[batch.real]
        assert float((as_one_NV - expected_NV).abs().max()) > 1e-2 * float(expected_NV.abs().max())


MIXING: dict[str, tuple[bool, dict[str, Any]]] = {
    "mamba": (True, {}),  # a running state
    "rwkv": (True, {"attention_hidden_size": 24}),
    "convbert": (False, {}),  # convolutions
    "fnet": (False, {}),  # Fourier transforms
    "falcon": (True, {}),  # masks of their own
    "deberta-v2": (False, {"relative_attention": True}),
    "mpnet": (False, {}),  # biases by the place in a row
    "xlm": (False, {"emb_dim": 24, "n_layers": 2, "n_heads": 4}),
}


@pytest.mark.parametrize("model_type", MIXING)
def test_a_model_that_mixes_examples_is_refused_by_name(model_type: str) -> None:
    """Also with weights as a new student has them, which hardly look at other tokens."""
    causal, further = MIXING[model_type]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 96,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model = auto.from_config(CONFIG_MAPPING[model_type](**sizes, **further))
    with pytest.raises(ModelError, match=rf"the teacher \({type(model).__name__}\) does not keep the examples") as told:
        require_packable(model, "teacher", rows(causal), Collator(0), Counting(shifted=causal))
    assert told.value.hint == "remove `dataset.packing`"


class Stubborn(nn.Module):
    """Code of its own that takes a mask of rows and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is not None:
            raise ValueError("no positions, please")
        return self.table(input_ids)  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_called_so_is_refused_with_what_it_says() -> None:
    with pytest.raises(ModelError, match=r"the student \(Stubborn\) cannot read packed rows: no positions, please"):
        require_packable(Stubborn(), "student", rows(), Collator(0), Counting(shifted=True))


def test_another_implementation_of_attention_is_refused() -> None:
    model = family_model("llama", AutoModelForCausalLM)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="`flex_attention`, which cannot keep packed examples apart"):
        require_packable(model, "student", rows(), Collator(0), Counting(shifted=True))


@torch.no_grad()
def test_a_teacher_of_another_order_of_tokens_reads_packed_rows() -> None:
    """RoBERTa counts positions from its own pad token, whatever the student calls it."""
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2)).tolist()
    model = MappedTeacher(family_model("roberta", AutoModelForMaskedLM), TokenMap.of(order), over_tokens=True)
    require_packable(model, "teacher", rows(causal=False), Collator(0), Counting(shifted=False))


@torch.no_grad()
def test_what_the_output_layer_reads_is_of_each_example_alone() -> None:
    model, counting = family_model("llama", AutoModelForCausalLM), Counting(shifted=True)
    ids = torch.tensor([[5, 6, 7]])
    output = output_layer_of(model, ids, torch.ones_like(ids))
    assert output is not None
    packed = read_rows(model, Collator(0).packed(rows()), counting, output)
    alone = torch.cat([read_rows(model, batch, counting, output).of(slice(None)) for batch in apart(rows())])
    torch.testing.assert_close(packed.of(slice(None)), alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_recorded_layers_of_packed_rows_are_those_of_each_example_alone() -> None:
    """Recording and packing both stand at the attention interface, and do not get in each other's way."""
    model = family_model("mistral", AutoModelForCausalLM, sliding_window=WINDOW)
    packed, hidden, keys = Collator(0).packed(rows()), [], []
    with recording(model, hidden_layers=[1], attention_layers=[1]) as record:
        logits_NV = of_real(model, packed)
        found_NC, keys_NGd = record.hidden[1][packed.real], record.attention[1].keys_BGTd.transpose(1, 2)[packed.real]
        for batch in apart(rows()):
            of_real(model, batch)
            hidden.append(record.hidden[1][0])
            keys.append(record.attention[1].keys_BGTd[0].transpose(0, 1))
    torch.testing.assert_close(found_NC, torch.cat(hidden), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(keys_NGd, torch.cat(keys), rtol=1e-5, atol=1e-5)
    assert torch.equal(of_real(model, packed), logits_NV), "recorded or not, to the bit"
