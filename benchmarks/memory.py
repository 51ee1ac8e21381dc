"""How far predictions of memory are from what real runs take, beside accelerate's estimate.

Each run is a process of its own: a model of random weights takes three optimiser steps, and the highest resident
memory that the kernel saw, above what the process had before the model, is compared with the prediction, which is made
from the configuration alone in another process. Threads and the allocator are fixed for all runs: OMP_NUM_THREADS=1,
MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=65536, so that what is freed is given back. `--default` repeats
some runs with the allocator as it is by default.

A process warms up with a tiny model of the same kind before it is measured: libraries and threads are no model's.
accelerate's estimate is that of `accelerate estimate-memory` for training with Adam, with the bytes of a teacher added;
of batches, lengths, adapters and checkpoints it does not know.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MEAN_ERROR, WORST_ERROR = 0.05, 0.10
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
DEFAULT = {"OMP_NUM_THREADS": "1"}
STEPS = 3
Spec = dict[str, Any]
_TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 256,
}
TINY: dict[str, dict[str, int]] = {
    "llama": _TINY_LLAMA,
    "qwen2": _TINY_LLAMA,
    "bert": _TINY_LLAMA,
    "gpt2": {"n_embd": 64, "n_head": 2, "n_layer": 2, "vocab_size": 256},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_heads": 2, "num_layers": 2, "vocab_size": 256},
}
TASKS = {"bert": "masked-lm", "t5": "seq2seq-lm"}


def held(spec: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    """The model of a spec."""
    from transformers import AutoConfig

    from entrenar_core.memory.jobs import HeldModel

    config = AutoConfig.for_model(spec["kind"], **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **sizes})
    config.decoder_start_token_id = 0
    return HeldModel(
        spec["kind"],
        config,
        TASKS.get(spec["kind"], "causal-lm"),
        dtype=spec.get("dtype", "float32"),
        load_in=spec.get("load_in"),
        attention=spec.get("attention", "sdpa"),
    )


def job_of(spec: Spec, *, tiny: bool = False) -> Any:
    """The job of a spec; a tiny one for warming up."""
    from entrenar_core.config.adapters import LoraAdapter
    from entrenar_core.config.desugaring import terms_of
    from entrenar_core.config.distillation import DistillationSection
    from entrenar_core.memory.jobs import CachedSignals, Teaching, TrainingJob

    smaller = TINY[spec["kind"]] if tiny else {}
    teachers: tuple[Any, ...] = ()
    terms = None
    if (given := spec.get("teacher")) is not None:
        model = held({**spec, **given}, {**given["sizes"], **smaller})
        cached = CachedSignals(given["cache"], given.get("count", 0)) if "cache" in given else None
        teachers = (Teaching(model, cached=cached),)
        terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5}))
    return TrainingJob(
        held(spec, {**spec["sizes"], **smaller}),
        batch_size=2 if tiny else spec["batch"],
        length=16 if tiny else spec["length"],
        teachers=teachers,
        terms=terms,
        adapters=LoraAdapter(rank=spec["lora"]) if "lora" in spec else None,
        optimizer=spec.get("optimizer", "adamw"),
        mixed_precision=spec.get("precision", "no"),
        gradient_accumulation=spec.get("accumulation", 1),
        gradient_checkpointing=spec.get("checkpointing", False),
        all_logits=spec.get("all_logits", False),
        padded=spec.get("padded", False),
    )


def training(job: Any) -> Any:
    """Real tensors."""
    from entrenar_core.memory.real_steps import RealTraining

    return RealTraining(job)


def measure(spec: Spec) -> None:
    """In a process of its own: prints what the run took above what was there before, and how long its steps took."""
    import torch

    from entrenar_core.memory.real_steps import peak_bytes, set_back_peak

    torch.set_num_threads(1)
    tiny = training(job_of(spec, tiny=True))
    tiny.timed_step()
    tiny.timed_step()
    del tiny
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = set_back_peak("cpu") or 0
    run = training(job_of(spec))
    took = [run.timed_step() for _ in range(STEPS)]
    print(json.dumps({"peak": (peak_bytes("cpu") or 0) - before, "before": before, "step_s": statistics.median(took)}))


class Runs:
    """Runs, each in a process of its own. They come from one that has imported what they need, and done no more."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, __file__, "--serve"]
        environment = {name: value for name, value in {**os.environ, **environment}.items() if value}
        self.server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measured(self, spec: Spec) -> dict[str, Any]:
        """What a run takes."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(spec), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        if not answer.startswith("{"):
            raise RuntimeError(f"{spec} failed")
        return dict(json.loads(answer))

    def close(self) -> None:
        """Ends the process that the runs come from."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def serve() -> None:
    """Imports, and then a process for each line that is read."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    from transformers.utils import logging

    logging.disable_progress_bar()

    import entrenar_core.memory.predicting
    import entrenar_core.memory.real_steps  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                measure(json.loads(line))
                sys.stdout.flush()
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            print("failed", flush=True)


def predicted(spec: Spec) -> dict[str, Any]:
    """What entrenar predicts, and in what time."""
    from entrenar_core.memory.constants import constants_of
    from entrenar_core.memory.predicting import predict

    job = job_of(spec)
    began = time.perf_counter()
    workspace = constants_of("cpu").workspace.size_bytes
    found = predict(job)
    took = time.perf_counter() - began
    peak = found.trace.peak
    return {
        "peak": peak.total_bytes + workspace,
        "phase": peak.phase,
        "components": peak.components,
        "method": found.method,
        "took_s": took,
    }


def accelerates(spec: Spec) -> int:
    """What accelerate estimates."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    from entrenar_core.memory.fakes import empty_model

    job = job_of(spec)
    total, _ = calculate_maximum_sizes(empty_model(job.student))
    precision = {"no": "float32", "bf16": "bfloat16"}[spec.get("precision", "no")]
    estimate = int(max(estimate_training_usage(total, precision).values()))
    for one in job.teachers:
        if one.cached is None:
            estimate += int(calculate_maximum_sizes(empty_model(one.model))[0])
    return estimate


LLAMA = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_hidden_layers": 8,
    "vocab_size": 16000,
    "max_position_embeddings": 2048,
}
_NARROW = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
_WIDE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 32000}
QWEN2 = {**LLAMA, "num_hidden_layers": 6, "vocab_size": 64000, "tie_word_embeddings": True}
BERT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "vocab_size": 30522,
}
GPT2 = {"n_embd": 512, "n_head": 8, "n_layer": 6, "vocab_size": 32000}
T5 = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8, "num_layers": 4, "vocab_size": 32000}
SIZES = {"llama": LLAMA, "qwen2": QWEN2, "bert": BERT, "gpt2": GPT2, "t5": T5}
STUDENTS = {
    "llama": {**LLAMA, **_NARROW, "num_hidden_layers": 4},
    "qwen2": {**QWEN2, "num_hidden_layers": 2},
    "bert": {**BERT, "num_hidden_layers": 2},
    "gpt2": {**GPT2, "n_layer": 2},
}
SHAPES = ((4, 128), (2, 512), (8, 256))


def specs() -> Iterator[Spec]:
    """All runs."""
    yield from _trainings()
    yield from _quantised()
    yield from _others()
    yield from _distillations()


def _trainings() -> Iterator[Spec]:
    for kind, sizes in SIZES.items():
        for batch, length in SHAPES:
            yield {"kind": kind, "sizes": sizes, "batch": batch, "length": length}
        one = {"kind": kind, "sizes": sizes, "batch": 4, "length": 256}
        yield {**one, "padded": True}
        yield {**one, "attention": "eager"}
        yield {**one, "batch": 8, "checkpointing": True}
        if kind != "t5":
            yield {**one, "all_logits": True}
        yield {**one, "precision": "bf16"}
        yield {**one, "lora": 16}


def _quantised() -> Iterator[Spec]:
    for kind in ("llama", "qwen2"):
        one = {"kind": kind, "sizes": SIZES[kind], "dtype": "bfloat16", "load_in": "nf4", "lora": 16}
        for batch, length in SHAPES:
            yield {**one, "batch": batch, "length": length}
        yield {"kind": kind, "sizes": SIZES[kind], "batch": 8, "length": 256, "lora": 64, "checkpointing": True}


def _others() -> Iterator[Spec]:
    one = {"kind": "llama", "sizes": LLAMA, "batch": 2, "length": 128}
    for optimizer in ("sgd", "adafactor", "adamw-8bit"):
        yield {**one, "optimizer": optimizer}
    yield {**one, "batch": 4, "length": 256, "accumulation": 2}
    yield {
        "kind": "llama",
        "sizes": {**LLAMA, **_NARROW, "num_hidden_layers": 4, "vocab_size": 8000},
        "batch": 2,
        "length": 64,
    }
    large = {"kind": "llama", "sizes": {**LLAMA, **_WIDE}}
    yield {"kind": "llama", "sizes": {**LLAMA, **_WIDE, "num_hidden_layers": 8}, "batch": 1, "length": 512}
    yield {**large, "batch": 1, "length": 512}
    yield {**large, "batch": 4, "length": 512, "checkpointing": True}


def _distillations() -> Iterator[Spec]:
    for kind, student in STUDENTS.items():
        teacher = {"sizes": SIZES[kind]}
        for batch, length in SHAPES:
            yield {"kind": kind, "sizes": student, "batch": batch, "length": length, "teacher": teacher}
        one = {"kind": kind, "sizes": student, "batch": 4, "length": 256}
        yield {**one, "all_logits": True, "teacher": teacher}
        if kind in ("llama", "qwen2"):
            yield {**one, "teacher": {**teacher, "cache": "hidden"}}
            yield {**one, "teacher": {**teacher, "cache": "topk", "count": 50}}


def in_words(spec: Spec) -> str:
    """A run in a line."""
    told = [spec["kind"], f"{spec['batch']} x {spec['length']}"]
    told += [f"{name} {value}" for name, value in spec.items() if name in ("attention", "precision", "load_in", "lora")]
    told += [f"{name}" for name in ("padded", "checkpointing", "all_logits") if spec.get(name)]
    told += [f"{name} {spec[name]}" for name in ("optimizer", "accumulation") if name in spec]
    if "teacher" in spec:
        told.append(f"teacher {spec['teacher'].get('cache', 'live')}")
    return ", ".join(told)


def compared(number: int, spec: Spec, runs: Runs) -> dict[str, Any]:
    """One run."""
    guess, real, other = predicted(spec), runs.measured(spec), accelerates(spec)
    error, others = guess["peak"] / real["peak"] - 1, other / real["peak"] - 1
    print(
        f"{number:3} {real['peak'] / 1e6:6.0f} MB  {error:+6.1%}  accelerate {others:+6.1%}  {in_words(spec)}",
        flush=True,
    )
    return {"spec": spec, "predicted": guess, "measured": real, "accelerate": other, "error": error}


def main() -> None:
    """Measures, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of runs")
    parser.add_argument("--default", action="store_true", help="with the allocator as it is by default")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    runs = Runs(DEFAULT if given.default else FIXED)
    chosen = [(number, spec) for number, spec in enumerate(specs()) if given.only is None or number in given.only]
    results = []
    for number, spec in chosen:
        results.append(compared(number, spec, runs))
        if given.output:
            said = {"setting": setting(given.default), **summary(results), "runs": results}
            given.output.write_text(json.dumps(said, indent=1) + "\n")
    runs.close()
    found = summary(results)
    print(f"{len(results)} runs: mean {found['mean']:.1%}, worst {found['worst']:.1%} off")
    print(f"accelerate: mean {found['accelerate_mean']:.1%}, worst {found['accelerate_worst']:.1%} off")
    if not given.default and (found["mean"] > MEAN_ERROR or found["worst"] > WORST_ERROR):
        raise SystemExit(f"a mean of {MEAN_ERROR:.0%} and {WORST_ERROR:.0%} at worst are the bounds")


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far off predictions are, and accelerate's estimates."""
    errors = [abs(one["error"]) for one in results]
    others = [abs(one["accelerate"] / one["measured"]["peak"] - 1) for one in results]
    return {
        "mean": statistics.mean(errors),
        "worst": max(errors),
        "accelerate_mean": statistics.mean(others),
        "accelerate_worst": max(others),
    }


def setting(default: bool) -> dict[str, Any]:
    """On what it was measured."""
    import platform
    from datetime import date
    from importlib.metadata import version

    from entrenar_core.memory.machine import processor_name

    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "environment": DEFAULT if default else FIXED,
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
