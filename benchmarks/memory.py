"""How far predictions of memory are from what real runs take, beside accelerate's estimate.

Each run is a process of its own: a model of random weights takes three optimiser steps, and the highest resident
memory that the kernel saw, above what the process had before the model, is compared with the prediction, which is made
from the configuration alone in this process. Threads and the allocator are fixed for all runs: OMP_NUM_THREADS=1,
MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=65536, so that what is freed is given back; a last table repeats
some runs with the allocator as it is by default.

A process warms up with a tiny model of the same kind before it is measured: libraries and threads are no model's.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

MEAN_ERROR, WORST_ERROR = 0.05, 0.10
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
Spec = dict[str, Any]
TINY: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 64, "n_head": 2, "n_layer": 2},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_heads": 2, "num_layers": 2},
}
TINY["qwen2"] = TINY["bert"] = TINY["llama"]


def held(spec: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    """The model of a spec."""
    from entrenar_core.memory.jobs import HeldModel
    from transformers import AutoConfig

    config = AutoConfig.for_model(spec["kind"], **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **sizes})
    config.decoder_start_token_id = 0
    task = {"bert": "masked-lm", "t5": "seq2seq-lm"}.get(spec["kind"], "causal-lm")
    return HeldModel(
        spec["kind"],
        config,
        task,
        dtype=spec.get("dtype", "float32"),
        load_in=spec.get("load_in"),
        double_quantized=False,
        attention=spec.get("attention", "sdpa"),
    )


def job_of(spec: Spec, *, tiny: bool = False) -> Any:
    """The job of a spec; a tiny one for warming up."""
    from entrenar_core.config.desugaring import terms_of
    from entrenar_core.config.distillation import DistillationSection
    from entrenar_core.memory.jobs import Adapters, CachedSignals, Teaching, TrainingJob

    vocabulary = {"vocab_size": 256} if tiny else {}
    student = held(spec, {**spec["sizes"], **(TINY[spec["kind"]] if tiny else {}), **vocabulary})
    teachers, terms = (), None
    if (given := spec.get("teacher")) is not None:
        model = held({**spec, **given}, {**given["sizes"], **(TINY[spec["kind"]] if tiny else {}), **vocabulary})
        cached = CachedSignals(given["cache"], given.get("count", 0)) if "cache" in given else None
        teachers = (Teaching(model, cached=cached),)
        terms = terms_of(DistillationSection.model_validate({"temperature": 2.0, "alpha": 0.5, **given.get("losses", {})}))
    return TrainingJob(
        student,
        batch_size=2 if tiny else spec["batch"],
        length=16 if tiny else spec["length"],
        teachers=teachers,
        terms=terms,
        adapters=Adapters(spec["lora"]) if "lora" in spec else None,
        optimizer=spec.get("optimizer", "adamw"),
        mixed_precision=spec.get("precision", "no"),
        gradient_accumulation=spec.get("accumulation", 1),
        gradient_checkpointing=spec.get("checkpointing", False),
        all_logits=spec.get("all_logits", False),
        padded=spec.get("padded", False),
    )


def resident(field: str = "VmRSS") -> int:
    """Of this process, in bytes: now, or the most since it was last set back (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field}")


def real_model(model: Any, folder: str) -> Any:
    """Random weights, quantised if asked: from a folder, as a user has them."""
    import torch
    from entrenar_core.memory.fakes import empty_model

    config = model.config
    kind = type(empty_model(replace(model, load_in=None)))
    made = kind._from_config(config, dtype=getattr(torch, model.dtype), attn_implementation=model.attention)
    if model.load_in is None:
        return made
    from transformers import BitsAndBytesConfig

    made.save_pretrained(folder)
    del made
    settings = BitsAndBytesConfig(
        load_in_8bit=model.load_in == "int8",
        load_in_4bit=model.load_in != "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )
    return kind.from_pretrained(
        folder, quantization_config=settings, dtype=getattr(torch, model.dtype), attn_implementation=model.attention
    )


class Real:
    """A training of a job on real tensors, of which every part is entrenar's own or the library's that it names."""

    def __init__(self, job: Any, folder: str) -> None:
        from entrenar_core.memory.steps import labels_alone
        from entrenar_core.memory.surroundings import SketchedRun
        from entrenar_core.teachers.live import LiveTeacher
        from entrenar_core.training.losses import make_objective
        from entrenar_core.training.step import DistillationStep

        self.job, self.run = job, SketchedRun(job)
        self.student = self.trained_model(real_model(job.student, folder))
        self.teacher: Any = None
        if job.teachers:
            one = job.teachers[0]
            if one.cached is not None:
                self.teacher = Kept(one, self.run)
            else:
                model = real_model(one.model, folder + "/teacher")
                self.teacher = LiveTeacher(model, self.run, self.run.counting, self.run.output_layer(model))
        self.step = None
        if self.run.task != "seq2seq-lm":
            plain = self.student if job.adapters is None else self.student.base_model.model
            objective = make_objective(job.terms or labels_alone(), self.run, plain, self.teacher)
            self.step = DistillationStep(self.student, objective, self.run.output_layer(plain))
        self.optimizer = self.make_optimizer()

    def trained_model(self, model: Any) -> Any:
        """With adapters and checkpoints where they are asked for."""
        if self.job.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        if self.job.adapters is None:
            return model
        from peft import LoraConfig, get_peft_model

        if self.job.gradient_checkpointing:
            model.enable_input_require_grads()
        return get_peft_model(model, LoraConfig(r=self.job.adapters.rank)).train()

    def make_optimizer(self) -> Any:
        """The optimiser of the job."""
        import torch

        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        if self.job.optimizer == "adamw":
            return torch.optim.AdamW(trained, fused=True)
        if self.job.optimizer == "adamw-8bit":
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(trained)
        return {"sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}[self.job.optimizer](trained)

    def steps(self, count: int) -> None:
        """Optimiser steps."""
        import torch
        from torch.nn.utils import get_total_norm

        for _ in range(count):
            for _ in range(self.job.gradient_accumulation):
                batch = self.batch(torch)
                loss = self.loss(batch)
                loss.backward()
                del loss
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            float(get_total_norm([one.grad for one in trained if one.grad is not None]))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def batch(self, torch: Any) -> Any:
        """Tokens drawn anew."""
        batch = self.run.batch(self.job.batch_size)
        vocabulary = self.job.student.config.get_text_config().vocab_size
        batch.input_ids_BT.copy_(torch.randint(3, vocabulary, batch.input_ids_BT.shape))
        if self.job.padded:
            batch.attention_mask_BT[-1, -1] = 0
        return batch

    def loss(self, batch: Any) -> Any:
        """Of one forward pass."""
        from entrenar_core.training.objective import Now

        if self.step is None:
            with self.run.autocast():
                made = self.student(
                    input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.input_ids_BT
                )
            return made.loss
        objective = self.step.objective
        now = tuple(Now(1.0, 2.0, batch.num_soft) for _ in objective.terms)
        said = self.teacher.listening(objective.wants(1))(batch) if self.teacher and objective.needs_teacher() else None
        with self.run.autocast():
            return self.step(batch, said, now).loss


class Kept:
    """A cache that says the same of every batch."""

    def __init__(self, teaching: Any, run: Any) -> None:
        import torch
        from entrenar_core.losses.head import Head

        self.cached, self.run = teaching.cached, run
        config = teaching.model.config
        self.width, self.vocabulary = config.hidden_size, run.vocabulary
        self.head = Head(torch.randn(config.vocab_size, self.width)) if self.cached.kind == "hidden" else None

    @property
    def signals(self) -> Any:
        """Everything."""
        from entrenar_core.teachers.signals import Signals, Whole

        return Signals("the cache", Whole(), None, True, "any", "float32", "")

    def listening(self, wants: Any) -> Any:
        """Random numbers of the shapes that a cache gives."""
        import torch
        from entrenar_core.losses.sparse import TopKRows
        from entrenar_core.losses.targets import HeadRows
        from entrenar_core.teachers.source import Said

        def says(batch: Any) -> Any:
            rows = batch.num_soft
            if self.head is not None:
                return Said(HeadRows(torch.randn(rows, self.width), self.head, self.vocabulary))
            log_p, tokens = torch.randn(rows, self.vocabulary).log_softmax(-1).topk(self.cached.count)
            return Said(TopKRows(tokens.int(), log_p, torch.zeros(rows, 1) - 3, (0.5,), self.vocabulary))

        return says


def measure(spec: Spec) -> None:
    """In a process of its own: prints what the run took above what was there before, and how long its steps took."""
    import ctypes

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tiny = Real(job_of(spec, tiny=True), folder + "/tiny")
        tiny.steps(2)
        del tiny
        job = job_of(spec)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")
        run = Real(job, folder)
        if job.student.load_in is not None or (job.teachers and job.teachers[0].model.load_in is not None):
            gc.collect()  # weights were made at 16 bits to be quantised, which is no part of a run
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        loaded = resident() - before
        began = time.perf_counter()
        run.steps(3)
        took = time.perf_counter() - began
    print(json.dumps({"peak": resident("VmHWM") - before, "loaded": loaded, "before": before, "step_s": took / 3}))


class Runs:
    """Runs, each in a process of its own. They come from one that has imported what they need, and done nothing else."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, __file__, "--serve"]
        self.server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    import entrenar_core.memory.predicting  # noqa: F401
    import peft  # noqa: F401
    import transformers

    for kind in TINY:
        transformers.AutoConfig.for_model(kind)
        getattr(transformers, {"llama": "LlamaModel", "gpt2": "GPT2Model", "t5": "T5Model", "qwen2": "Qwen2Model"}.get(kind, "BertModel"))
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
    from entrenar_core.memory.predicting import predict

    began = time.perf_counter()
    found = predict(job_of(spec))
    peak = found.trace.peak
    return {
        "peak": peak.total_bytes,
        "phase": peak.phase,
        "components": peak.components,
        "took_s": time.perf_counter() - began,
        "method": found.method,
    }


def accelerates(spec: Spec) -> int:
    """What `accelerate estimate-memory` says of training with Adam, of student and teacher together."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from entrenar_core.memory.fakes import empty_model

    job = job_of(spec)
    total, _ = calculate_maximum_sizes(empty_model(replace(job.student, load_in=None)))
    estimate = int(max(estimate_training_usage(total, {"no": "float32", "bf16": "bfloat16"}[spec.get("precision", "no")]).values()))
    for one in job.teachers:
        if one.cached is None:
            estimate += int(calculate_maximum_sizes(empty_model(replace(one.model, load_in=None)))[0])
    return estimate


LLAMA = {
    "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4,
    "num_hidden_layers": 8, "vocab_size": 16000, "max_position_embeddings": 2048,
}
SMALL = {**LLAMA, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 4}
LARGE = {**LLAMA, "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 32000}
QWEN2 = {**LLAMA, "num_hidden_layers": 6, "vocab_size": 64000, "tie_word_embeddings": True}
BERT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6, "vocab_size": 30522}
GPT2 = {"n_embd": 512, "n_head": 8, "n_layer": 6, "vocab_size": 32000}
T5 = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8, "num_layers": 4, "vocab_size": 32000}
SIZES = {"llama": LLAMA, "qwen2": QWEN2, "bert": BERT, "gpt2": GPT2, "t5": T5}
SHAPES = ((4, 128), (2, 512), (8, 256))


def specs() -> Iterator[Spec]:
    """All runs."""
    for kind, sizes in SIZES.items():
        for batch, length in SHAPES:
            yield {"kind": kind, "sizes": sizes, "batch": batch, "length": length}
        yield {"kind": kind, "sizes": sizes, "batch": 4, "length": 256, "padded": True}
        yield {"kind": kind, "sizes": sizes, "batch": 4, "length": 256, "attention": "eager"}
        yield {"kind": kind, "sizes": sizes, "batch": 8, "length": 256, "checkpointing": True}
        if kind != "t5":
            yield {"kind": kind, "sizes": sizes, "batch": 4, "length": 256, "all_logits": True}
        yield {"kind": kind, "sizes": sizes, "batch": 4, "length": 256, "precision": "bf16"}
        yield {"kind": kind, "sizes": sizes, "batch": 4, "length": 256, "lora": 16}
    for kind in ("llama", "qwen2"):
        sizes = SIZES[kind]
        for batch, length in SHAPES:
            yield {"kind": kind, "sizes": sizes, "batch": batch, "length": length, "lora": 16, "load_in": "nf4", "dtype": "bfloat16"}
        yield {"kind": kind, "sizes": sizes, "batch": 8, "length": 256, "lora": 64, "checkpointing": True}
    for optimizer in ("sgd", "adafactor"):
        yield {"kind": "llama", "sizes": LLAMA, "batch": 2, "length": 128, "optimizer": optimizer}
    yield {"kind": "llama", "sizes": LLAMA, "batch": 4, "length": 256, "accumulation": 2}
    yield {"kind": "llama", "sizes": LARGE, "batch": 1, "length": 512}
    yield {"kind": "llama", "sizes": LARGE, "batch": 4, "length": 512, "checkpointing": True}
    for kind, small in (("llama", SMALL), ("qwen2", {**QWEN2, "num_hidden_layers": 2}), ("bert", {**BERT, "num_hidden_layers": 2}), ("gpt2", {**GPT2, "n_layer": 2})):
        for batch, length in SHAPES:
            yield {"kind": kind, "sizes": small, "batch": batch, "length": length, "teacher": {"sizes": SIZES[kind]}}
        yield {"kind": kind, "sizes": small, "batch": 4, "length": 256, "all_logits": True, "teacher": {"sizes": SIZES[kind]}}
        if kind in ("llama", "qwen2"):
            yield {"kind": kind, "sizes": small, "batch": 4, "length": 256, "teacher": {"sizes": SIZES[kind], "cache": "hidden"}}
            yield {"kind": kind, "sizes": small, "batch": 4, "length": 256, "teacher": {"sizes": SIZES[kind], "cache": "topk", "count": 50}}


def main() -> None:
    """Measures, compares and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    results, runs = [], Runs(FIXED)
    for number, spec in enumerate(specs()):
        if given.only and number not in given.only:
            continue
        guess, real, other = predicted(spec), runs.measured(spec), accelerates(spec)
        error, others = guess["peak"] / real["peak"] - 1, other / real["peak"] - 1
        results.append({"spec": spec, "predicted": guess, "measured": real, "accelerate": other, "error": error})
        told = {name: value for name, value in spec.items() if name not in ("sizes", "teacher")}
        if "teacher" in spec:
            told["teacher"] = spec["teacher"].get("cache", "live")
        print(f"{number:3} {real['peak'] / 1e6:6.0f} {guess['peak'] / 1e6:6.0f} {error:+6.1%} accelerate {others:+6.1%} {guess['took_s']:.1f}s {told}", flush=True)
    runs.close()
    errors = [abs(one["error"]) for one in results]
    others = [abs(one["accelerate"] / one["measured"]["peak"] - 1) for one in results]
    print(f"{len(errors)} runs: mean {statistics.mean(errors):.1%}, worst {max(errors):.1%}; accelerate {statistics.mean(others):.1%}, {max(others):.1%}")
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
