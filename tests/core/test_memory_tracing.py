"""Steps on tensors without data against the same steps done: watched in the same way, and by torch's own allocator."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaForCausalLM
from transformers.utils import import_utils

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.desugaring import Term, terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.memory.fakes import taken_for_real
from entrenar_core.memory.jobs import CachedSignals, HeldModel, Teaching, TrainingJob
from entrenar_core.memory.ledger import Ledger
from entrenar_core.memory.steps import trace_training
from entrenar_core.memory.tracking import Tracking
from memory_twins import KINDS, SIZES, allocated, counted, held, most_allocated, really

RANDOM_STATE_BYTES = torch.get_rng_state().numel()
"""Which every checkpoint keeps, and no operation shows."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def terms(**settings: Any) -> tuple[Term, ...]:
    return terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5, **settings}))


def taught(student: HeldModel, *teachers: Teaching, **settings: Any) -> TrainingJob:
    losses = settings.pop("losses", {})
    return counted(TrainingJob(student, 8, 12, teachers, terms(**losses), evaluation_rows=8, **settings))


def assert_same(job: TrainingJob) -> None:
    """The largest moment of every place of a step, by component and dtype, and the operations."""
    guessed, done = trace_training(job, [None] * (1 + len(job.teachers))), really(job)
    assert guessed.phases == done.phases
    assert guessed.moments == done.moments
    assert guessed.flops == done.flops
    assert guessed.parameters == done.parameters


OTHERS = ("gpt2", "qwen2", "t5", "gemma2")
FAMILIES = ("llama", "gpt2", "bert", "qwen2", "t5", "gemma2")


@pytest.mark.parametrize(("padded", "checkpointing"), [(False, False), (True, True)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_training_is_as_it_is_done(kind: str, *, padded: bool, checkpointing: bool) -> None:
    attention: Any = "eager" if padded == (kind in ("bert", "llama")) else "sdpa"
    model = held(kind, attention=attention)
    assert_same(counted(TrainingJob(model, 3, 12, padded=padded, gradient_checkpointing=checkpointing)))


@pytest.mark.nightly
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_training_is_as_it_is_done(
    kind: str, attention: Any, *, padded: bool, checkpointing: bool
) -> None:
    job = counted(
        TrainingJob(held(kind, attention=attention), 4, 17, padded=padded, gradient_checkpointing=checkpointing)
    )
    assert_same(job)
    mixed: Any = "no" if kind == "bert" else "bf16"
    assert_same(replace(job, mixed_precision=mixed, adapters=LoraAdapter(rank=2), gradient_accumulation=2))


@pytest.mark.nightly
def test_statistics_of_norms_at_16_bits_are_told_with_too_few_bits() -> None:
    """A norm of 16 bits with weights of 32 keeps its means in 32 bits, and without data torch says 16."""
    job = counted(TrainingJob(held("bert"), 4, 17, padded=False, mixed_precision="bf16"))
    guessed, done = trace_training(job, [None]).peak.total_bytes, really(job).peak.total_bytes
    assert guessed == pytest.approx(done, rel=1e-3)
    assert done - guessed == 2 * 4 * 17 * 2


SMALL, LARGE = held("llama", num_hidden_layers=1), held("llama")
PAIR = held("bert", num_hidden_layers=1), held("bert")
CLASSIFIERS = [replace(one, task="sequence-classification") for one in PAIR]
TAGGERS = [replace(one, task="token-classification") for one in PAIR]
ENCODERS = [replace(one, task="embedding") for one in PAIR]
SEEN = [replace(one, attention="eager") for one in (SMALL, LARGE)]
EXPERTS = AutoConfig.for_model(
    "qwen3_moe",
    **SIZES, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
)  # fmt: skip
DROPPED = LoraAdapter(rank=3, target_modules=("q_proj", "down_proj"), dropout=0.1)
JOBS = {
    "adapters": TrainingJob(LARGE, 3, 12, adapters=LoraAdapter(rank=2)),
    "adapters with dropout": TrainingJob(
        LARGE, 3, 12, adapters=LoraAdapter(rank=3, target_modules=("q_proj", "down_proj"), dropout=0.1)
    ),
    "accumulation": TrainingJob(LARGE, 3, 12, gradient_accumulation=2),
    "mixed precision": TrainingJob(LARGE, 3, 12, mixed_precision="bf16", gradient_checkpointing=True),
    "16 bits": TrainingJob(held("llama", dtype="bfloat16"), 3, 12),
    "plain descent": TrainingJob(held("gpt2"), 3, 12, optimizer="sgd"),
    "adafactor": TrainingJob(held("gpt2"), 3, 12, optimizer="adafactor"),
    "teacher": taught(SMALL, Teaching(LARGE)),
    "all logits": taught(SMALL, Teaching(LARGE), all_logits=True),
    "teacher that reads some rows": taught(SMALL, Teaching(LARGE, batch_size=2), padded=False),
    "two teachers": taught(SMALL, Teaching(LARGE), Teaching(held("llama", num_hidden_layers=3))),
    "masked tokens": taught(held("bert", num_hidden_layers=1), Teaching(held("bert"))),
    "classes": taught(CLASSIFIERS[0], Teaching(CLASSIFIERS[1])),
    "tags": taught(TAGGERS[0], Teaching(TAGGERS[1]), padded=False),
    "sentences": taught(
        ENCODERS[0], Teaching(ENCODERS[1]), padded=False, losses={"losses": [{"name": "embedding_cosine"}]}
    ),
    "hidden states": taught(SMALL, Teaching(LARGE), padded=False, losses={"progressive": {"enabled": True}}),
    "attention": taught(SEEN[0], Teaching(SEEN[1]), padded=False, losses={"attention": {"enabled": True}}),
    "exits": taught(held("llama", num_hidden_layers=4), Teaching(LARGE), losses={"exits": {"enabled": True}}),
    "cached states": taught(SMALL, Teaching(LARGE, cached=CachedSignals("hidden"))),
    "cached tokens": taught(SMALL, Teaching(LARGE, cached=CachedSignals("topk", 5))),
    "cached draws": taught(SMALL, Teaching(LARGE, cached=CachedSignals("sampled", 5))),
}


ALWAYS = (
    "mixed precision", "adafactor", "teacher", "teacher that reads some rows", "sentences", "hidden states",
    "cached states",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.nightly) for name in JOBS]
)
def test_what_else_is_trained_is_as_it_is_done(name: str) -> None:
    assert_same(counted(JOBS[name]))


def test_experts_that_are_chosen_by_values_are_about_as_they_are_done() -> None:
    job = counted(TrainingJob(HeldModel("experts", EXPERTS, "causal-lm"), 3, 12))
    assert trace_training(job, [None]).peak.total_bytes == pytest.approx(really(job).peak.total_bytes, rel=0.001)


def test_tokens_that_are_not_real_count_in_losses_between_layers() -> None:
    job = taught(SMALL, Teaching(LARGE), padded=True, losses={"progressive": {"enabled": True}})
    guessed, done = trace_training(job, [None, None]).phases["backward"], really(job).phases["backward"]
    assert done.total_bytes < guessed.total_bytes < done.total_bytes * 1.02


@pytest.mark.parametrize("kind", ["llama", "bert", *(pytest.param(one, marks=pytest.mark.nightly) for one in OTHERS)])
def test_it_is_what_the_allocator_of_torch_gives_out(kind: str) -> None:
    job = counted(TrainingJob(held(kind), 3, 12))
    assert trace_training(job, [None]).peak.total_bytes == pytest.approx(allocated(job), rel=2e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["adapters", "accumulation", "adafactor", "teacher", "attention", "cached states"])
def test_it_is_what_the_allocator_gives_out_in_other_trainings(name: str) -> None:
    job = counted(JOBS[name])
    guessed = trace_training(job, [None] * (1 + len(job.teachers))).peak.total_bytes
    assert guessed == pytest.approx(allocated(job), rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", pytest.param("t5", marks=pytest.mark.nightly)])
def test_checkpoints_keep_random_numbers_beside_what_is_counted(kind: str) -> None:
    job = counted(TrainingJob(held(kind), 3, 12, gradient_checkpointing=True))
    beside = allocated(job) - trace_training(job, [None]).peak.total_bytes
    blocks = 4 if kind == "t5" else 2
    assert -100 < beside < (blocks + 1) * RANDOM_STATE_BYTES + 200


def test_operations_are_those_that_torch_counts() -> None:
    model = held("llama", attention="eager", num_hidden_layers=3)
    real = LlamaForCausalLM(model.config)
    real.set_attn_implementation("eager")
    ids_BT = torch.randint(0, 96, (3, 12))
    with FlopCounterMode(display=False) as counter:
        real(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    head = 2 * 3 * 96 * 32  # of one position, forward and twice backward; the last ones of rows predict nothing
    job = TrainingJob(model, 3, 12, padded=False, all_logits=False)
    assert trace_training(job, [None]).flops == counter.get_total_flops() - 3 * head


def _branches(count: int) -> Tensor:
    source = torch.ones(1000, requires_grad=True) * 1
    return torch.stack([(source * 2).sum() for _ in range(count)]).sum()


def _watched(count: int, *, goes_back: bool) -> int:
    ledger = Ledger(1)
    with FakeTensorMode(), Tracking(ledger) as tracking:
        total = _branches(count)
        tracking.goes_back, before = goes_back, ledger.total
        ledger.enter("backward")
        total.backward()  # type: ignore[no-untyped-call]
    return max(moment.total_bytes for moment in ledger.moments() if moment.phase == "backward") - before


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gradients_are_added_in_place_as_autograd_adds_them(count: int) -> None:
    total = _branches(count)
    real = most_allocated(total.backward)
    assert _watched(count, goes_back=True) == pytest.approx(real, abs=100)
    assert _watched(count, goes_back=False) > real + 3000, "what is watched is added anew, unless that is known"


def test_a_gradient_that_somebody_holds_is_not_added_to() -> None:
    ledger = Ledger(1)
    with FakeTensorMode(), Tracking(ledger) as tracking, torch.no_grad():
        tracking.goes_back = True
        first, second = torch.ones(10), torch.ones(10)
        view = first[:5]
        made = torch.add(first, second)
        assert made is not first
        assert view.shape == (5,)
        wide = torch.add(torch.ones(10, dtype=torch.float64), second)
        assert wide.dtype == torch.float64


@pytest.mark.parametrize("padded", [False, True])
def test_masks_are_made_as_on_real_tensors(*, padded: bool) -> None:
    masks: list[Tensor | None] = []
    before = F.scaled_dot_product_attention

    def seen(*given: Any, **settings: Any) -> Tensor:
        masks.append(settings.get("attn_mask"))
        return before(*given, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", seen)
        patch.setattr(nn.functional, "scaled_dot_product_attention", seen)
        job = counted(TrainingJob(held("llama"), 2, 8, padded=padded))
        trace_training(job, [None])
        of_fakes, masks = masks[:], []
        really(job)
    assert [mask is None for mask in of_fakes] == [not padded] * 2 == [mask is None for mask in masks]


def test_what_is_taken_for_real_is_given_back() -> None:
    asks, attends = import_utils.is_fake_tensor, F.scaled_dot_product_attention
    with FakeTensorMode():
        fake = torch.ones(1)
    with taken_for_real("cuda"):
        assert F.scaled_dot_product_attention is not attends
        assert not import_utils.is_fake_tensor(fake)
    assert import_utils.is_fake_tensor(fake)
    assert (import_utils.is_fake_tensor, F.scaled_dot_product_attention) == (asks, attends)


def test_dropout_in_attention_makes_all_scores_on_a_processor_alone() -> None:
    job = TrainingJob(held("bert", attention_probs_dropout_prob=0.1), 2, 64, padded=False)
    scores = 2 * 4 * 64 * 64 * 4 * 2
    peaks = {device: trace_training(replace(job, device=device), [None]).peak for device in ("cpu", "cuda")}
    assert peaks["cpu"].components["activations"] - peaks["cuda"].components["activations"] > scores


def test_views_are_counted_once_and_what_is_gone_is_not() -> None:
    ledger = Ledger(512)
    with FakeTensorMode(), Tracking(ledger) as tracking:
        one = torch.empty(200)
        views = one.view(20, 10).T, one[5:]
        assert ledger.total == 1024
        tracking.belongs(views[0], "gradients")
        assert dict(ledger.held)["gradients", "float32"] == 1024
        del one
        assert ledger.total == 1024
        del views
        assert ledger.total == 0
        torch.empty(1)
        assert ledger.total == 0
    assert max(moment.total_bytes for moment in ledger.moments()) == 1024


def test_of_a_mask_that_is_known_a_part_has_its_share() -> None:
    with FakeTensorMode(), Tracking(Ledger(1)) as tracking:
        mask_BT, values_BTH = torch.empty(4, 10, dtype=torch.bool), torch.empty(4, 10, 3)
        assert values_BTH[mask_BT].shape == (40, 3)
        tracking.counted[id(mask_BT.untyped_storage())] = 12
        assert values_BTH[mask_BT].shape == (12, 3)
        assert values_BTH[:, :-1][mask_BT[:, 1:]].shape == (12, 3)
        assert values_BTH[:2][mask_BT[:2]].shape == (6, 3)
        assert mask_BT.flatten().nonzero().shape == (12, 1)
