"""Real steps of Llamas of known sizes, timed, and their operations counted by the tracker that predicts those of jobs.

Shapes: B rows, T tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from entrenar_core.memory.calibration import ModelName, Precision
from entrenar_core.memory.jobs import DeviceType, HeldModel, MixedPrecision, ReadingJob, TrainingJob
from entrenar_core.memory.real_steps import random_model, timed
from entrenar_core.memory.steps import trace_reading, trace_training
from entrenar_core.models.calling import called
from entrenar_core.models.heads import CAUSAL_LM

DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MIXED: dict[Precision, MixedPrecision] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama and a batch for it."""

    name: ModelName
    width: int
    inner: int
    heads: int
    layers: int
    vocabulary: int
    rows: int
    length: int

    def config(self) -> LlamaConfig:
        """Of the model: one head of keys for two of queries."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 2,
            num_hidden_layers=self.layers,
            vocab_size=self.vocabulary,
            max_position_embeddings=4 * self.length,
        )

    def training(self, device: DeviceType, precision: Precision) -> TrainingJob:
        """AdamW over weights in 32 bits, with autocast for other precisions, as `training.mixed_precision` says."""
        return TrainingJob(
            self._held("float32"),
            batch_size=self.rows,
            length=self.length,
            padded=False,
            mixed_precision=_MIXED[precision],
            device=device,
        )

    def reading(self, device: DeviceType, precision: Precision) -> ReadingJob:
        """A forward pass with weights in this precision."""
        return ReadingJob(
            self._held(DTYPES[precision]), batch_size=self.rows, length=self.length, padded=False, device=device
        )

    def _held(self, dtype: str) -> HeldModel:
        return HeldModel(f"a {self.name} Llama", self.config(), CAUSAL_LM, dtype=dtype)


TINY = Size("tiny", width=64, inner=128, heads=2, layers=2, vocabulary=256, rows=2, length=16)
SIZES: dict[DeviceType, tuple[Size, ...]] = {
    "cpu": (
        TINY,
        Size("small", width=256, inner=688, heads=4, layers=4, vocabulary=4096, rows=4, length=128),
        Size("medium", width=768, inner=2048, heads=12, layers=6, vocabulary=16000, rows=4, length=128),
    ),
    "cuda": (
        TINY,
        Size("small", width=768, inner=2048, heads=12, layers=6, vocabulary=16000, rows=8, length=512),
        Size("medium", width=1536, inner=4096, heads=12, layers=12, vocabulary=32000, rows=8, length=1024),
    ),
}
SIZES["mps"] = SIZES["cpu"]
"""The smallest first. A step of the largest takes seconds on two cores, and so much of a GPU that it is busy."""


class Writing:
    """Tokens written one by one behind a context, with keys and values kept."""

    def __init__(self, job: ReadingJob) -> None:
        self.job = job
        self.model = random_model(job.model, torch.device(job.device)).eval()
        self.cache = DynamicCache(config=self.model.config)
        self.next_B1 = self._read(torch.zeros(1, job.length, dtype=torch.long, device=job.device))

    def __call__(self) -> float:
        """How long the next token took, in seconds."""

        def write() -> None:
            self.next_B1 = self._read(self.next_B1)

        return timed(write, self.job.device)

    @property
    def size_bytes(self) -> int:
        """What is read for a token: weights, of the table of embeddings a row, and the keys and values."""
        table = self.model.get_input_embeddings().weight
        read: list[Tensor] = [one for one in self.model.parameters() if one is not table]
        read += [one for layer in self.cache.layers for one in (layer.keys, layer.values)]
        return sum(one.numel() * one.element_size() for one in read)

    def _read(self, ids_BT: Tensor) -> Tensor:
        with torch.no_grad():
            logits_BTV: Tensor = self.model(
                input_ids=ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            ).logits
        return logits_BTV[:, -1].argmax(-1, keepdim=True)


class Reading:
    """Forward passes over a batch."""

    def __init__(self, job: ReadingJob) -> None:
        self.job = job
        self.model = random_model(job.model, torch.device(job.device)).eval()
        self.ids_BT = torch.randint(int(job.model.config.vocab_size), (job.batch_size, job.length)).to(job.device)

    def __call__(self) -> float:
        """How long one took, in seconds."""

        def read() -> None:
            with torch.no_grad():
                called(self.model, self.ids_BT, torch.ones_like(self.ids_BT))

        return timed(read, self.job.device)


def training_flops(job: TrainingJob) -> tuple[int, int]:
    """The counted operations of a step, and how many bytes it is predicted to take."""
    trace = trace_training(job, [None])
    return trace.flops, trace.peak.total_bytes


def reading_flops(job: ReadingJob) -> tuple[int, int]:
    """The same of a forward pass."""
    trace = trace_reading(job, None)
    return trace.flops, trace.peak.total_bytes


def rounds(act: Callable[[], Any], *, least: int, most: int, budget_s: float) -> Sequence[Any]:
    """What `act` gives again and again, the first time left out: `least` times and, until the time is over, `most`;
    once where three times as much time is over.
    """
    act()
    began = time.perf_counter()
    found = [act()]
    while (spent := time.perf_counter() - began) < 3 * budget_s and len(found) < (most if spent < budget_s else least):
        found.append(act())
    return found
