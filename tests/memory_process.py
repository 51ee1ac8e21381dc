"""A training in a process of its own: `python tests/memory_process.py NAME` tells what it took above what was there."""

import ctypes
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.memory import steps
from entrenar_core.memory.jobs import HeldModel, Teaching, TrainingJob
from memory_twins import RealTraining, UnwatchedStage, Zeros, counted, held

FIXED = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
"""What is freed is given back, and threads keep nothing."""
LLAMA = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_hidden_layers": 7}


def llama(**sizes: int) -> HeldModel:
    """Of 120 MB, unless its sizes are others."""
    return held("llama", vocab_size=8000, **{**LLAMA, **sizes})


def jobs() -> dict[str, TrainingJob]:
    """By their names."""
    bert = held("bert", **LLAMA, vocab_size=8000)
    terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
    return {
        "llama": TrainingJob(llama(), 2, 128),
        "bert": TrainingJob(bert, 4, 128),
        "adapters": TrainingJob(llama(), 4, 256, adapters=LoraAdapter(rank=8)),
        "checkpoints": TrainingJob(llama(), 4, 256, gradient_checkpointing=True),
        "distillation": TrainingJob(llama(num_hidden_layers=3), 4, 128, (Teaching(llama()),), terms),
        "mixed": TrainingJob(llama(), 4, 128, mixed_precision="bf16"),
    }


def tiny(job: TrainingJob) -> TrainingJob:
    """The same of small models, which need all libraries, too."""
    kind = job.student.name
    small = Teaching(replace(held(kind), task=job.student.task))
    return replace(job, student=held(kind), teachers=(small,) * len(job.teachers), batch_size=2, length=8)


def resident(field: str) -> int:
    """Bytes: now (VmRSS), or the most since it was set back (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(job: TrainingJob) -> int:
    """The most resident bytes of two steps above those before."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, Zeros():
        patch.setattr(steps, "Stage", UnwatchedStage)
        RealTraining(tiny(job), [None] * (1 + len(job.teachers)), 1).trace()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        training = RealTraining(counted(job), [None] * (1 + len(job.teachers)), 1)
        training.trace()
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(json.dumps(measured(jobs()[sys.argv[1]])))  # noqa: T201 - the answer
