"""Trainings whose memory is predicted, over again on real tensors: watched in the same way, or by torch's allocator."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from entrenar_core.memory import steps
from entrenar_core.memory.estimate import Trace
from entrenar_core.memory.fakes import empty_model
from entrenar_core.memory.jobs import SEQ2SEQ, HeldModel, TrainingJob
from entrenar_core.memory.ledger import Ledger
from entrenar_core.memory.tracking import Tracking
from entrenar_core.memory.watching import Watch
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import drop_pooler

TOKENS = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, **TOKENS}
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("causal-lm", {**SIZES, "num_key_value_heads": 2}),
    "qwen2": ("causal-lm", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt2": ("causal-lm", {"n_embd": 32, "n_head": 4, "n_layer": 2, **TOKENS}),
    "opt": ("causal-lm", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma2": ("causal-lm", {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "gemma3_text": ("causal-lm", {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "bert": ("masked-lm", SIZES),
    "t5": (SEQ2SEQ, {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, **TOKENS}),
}


def held(kind: str, **settings: Any) -> HeldModel:
    """A small model; a setting of a job's model, such as its `dtype`, or of its configuration."""
    task, sizes = KINDS[kind]
    own = {name: settings.pop(name) for name in [*settings] if name in HeldModel.__dataclass_fields__}
    config = AutoConfig.for_model(kind, **{**sizes, **settings})
    config.decoder_start_token_id = 0
    return replace(HeldModel(kind, config, task), **own)


class Zeros(TorchFunctionMode):
    """What is made without values has zeros, so that numbers of tokens are some."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = {torch.empty: torch.zeros, torch.empty_like: torch.zeros_like}.get(func, func)
        return func(*args, **(kwargs or {}))


class RealTracking(Tracking):
    """Of operations that are done: what hangs on values is known."""

    def _value(self, scalar: Tensor) -> Any:
        return scalar.item()

    def _places(self, mask: Tensor) -> list[Tensor]:
        return list(mask.nonzero(as_tuple=True))


class RealStage(steps.Stage):
    """Models have weights."""

    def __init__(self, granularity: int, *, padded: bool, device: Any = "cpu") -> None:
        self.device = device
        self.mode = nullcontext()  # type: ignore[assignment]
        self.ledger = Ledger(granularity)
        self.tracking = RealTracking(self.ledger, padded=padded)
        self.watches: list[Watch] = []

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, operations are watched, and done."""
        with self.tracking:
            yield

    def model(
        self, held: HeldModel, number: int, layers: int | None, prepare: Callable[[Any], Any]
    ) -> tuple[Any, Watch, int]:
        """Of random weights, made by transformers."""
        empty = empty_model(held, layers)
        model = (
            type(empty)
            ._from_config(
                empty.config, dtype=getattr(torch, held.dtype), attn_implementation=empty.config._attn_implementation
            )
            .eval()
        )
        if held.task == EMBEDDING:
            drop_pooler(model)
        whole = prepare(model)
        for tensor in (*whole.parameters(), *whole.buffers()):
            self.tracking.note(tensor, "teacher weights" if number else "student weights")
        watch = Watch(model, self.tracking, number)
        self.watches.append(watch)
        return whole, watch, steps.parameter_count(whole)


class RealTraining(steps.TracedTraining):
    """A step on tokens, of which the last row lacks some where the job is padded."""

    def _batch(self, rows: int) -> Any:
        batch = self.run.batch(rows)
        if self.job.padded:
            kept = self.job.length // 2
            batch.attention_mask_BT[-1, kept:] = 0
            if batch.targets.ndim == 2:
                batch.targets[-1, kept:] = False
        for tensor in (batch.input_ids_BT, batch.attention_mask_BT, batch.labels, batch.targets, batch.rows_B):
            self.stage.tracking.note(tensor, "activations")
        return batch


def counted(job: TrainingJob) -> TrainingJob:
    """The same, with as many positions that count as the rows of `RealTraining` have."""
    shifted = int(job.student.task == "causal-lm")
    full = job.batch_size * (job.length - shifted)
    return replace(job, counted=full - (job.length - job.length // 2)) if job.padded else job


def really(job: TrainingJob) -> Trace:
    """What a step holds that is done."""
    with pytest.MonkeyPatch.context() as patch, Zeros():
        patch.setattr(steps, "Stage", RealStage)
        torch.manual_seed(0)
        return RealTraining(job, [None] * (1 + len(job.teachers)), 1).trace()


class UnwatchedStage(RealStage):
    """Nobody looks."""

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, nothing is watched."""
        yield


def allocated(job: TrainingJob) -> int:
    """The most bytes that torch's allocator gives out at once while the models are made and take a step."""
    with pytest.MonkeyPatch.context() as patch, Zeros():
        patch.setattr(steps, "Stage", UnwatchedStage)
        return most_allocated(lambda: RealTraining(job, [None] * (1 + len(job.teachers)), 1).trace())


def most_allocated(act: Callable[[], object]) -> int:
    """The most bytes above those before that torch's allocator gives out at once, as its profiler sees it."""
    gc.collect()  # what goes while it is watched should have come then, too
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    assert seen.profiler is not None
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    total = most = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        total += one.nbytes()
        most = max(most, total)
    return most
