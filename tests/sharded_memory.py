"""What a training takes of each of some processes that share it: `torchrun` runs this file, and the first process says
in JSON the most that each of them had resident above what it had before the model.

A process warms up with a tiny model under the same wrapper: libraries, threads and connections are no model's. Threads
and the allocator are fixed by whoever starts it (`ENVIRONMENT`).
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.memory.jobs import HeldModel, Sharding, TrainingJob

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
SIZES = {
    "vocab_size": 4000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_hidden_layers": 5,
    "max_position_embeddings": 512,
}
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
Spec = dict[str, Any]


def job_of(spec: Spec, *, tiny: bool = False) -> TrainingJob:
    """The training that a spec describes, of a Llama; a tiny one for warming up."""
    sizes = {**SIZES, **spec.get("sizes", {}), **({**TINY, "num_hidden_layers": 2} if tiny else {})}
    return TrainingJob(
        HeldModel("llama", AutoConfig.for_model("llama", pad_token_id=0, **sizes), "causal-lm"),
        batch_size=spec["devices"] * (1 if tiny else spec.get("rows", 2)),
        length=16 if tiny else 128,
        padded=False,
        adapters=LoraAdapter(rank=8) if spec.get("lora") else None,
        mixed_precision=spec.get("precision", "no"),
        gradient_checkpointing=spec.get("checkpointing", False),
        sharding=Sharding(spec["devices"], spec["strategy"]),
    )


def peaks(spec: Spec, *, limit_s: float = 120) -> list[int]:
    """What each process took; none of them is left when this returns."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(spec["devices"]), "--standalone"]
    process = subprocess.Popen(
        [sys.executable, *launcher, __file__, json.dumps(spec)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, err[-3000:]
    return list(json.loads(out.splitlines()[-1]))


class Run:
    """A student that steps under a wrapper, with entrenar's own loss."""

    def __init__(self, job: TrainingJob) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from entrenar_core.memory.steps import labels_alone
        from entrenar_core.memory.surroundings import SketchedRun
        from entrenar_core.training.losses import make_objective
        from entrenar_core.training.step import DistillationStep

        self.job, self.run = job, SketchedRun(job)
        model = AutoModelForCausalLM.from_config(job.student.config, dtype=torch.float32).train()
        if job.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        adapted = self._adapted(model)
        self.objective = make_objective(labels_alone(), self.run, model, None)
        step = DistillationStep(adapted, self.objective, self.run.output_layer(model))
        self.wrapped = self._wrapped(step, model.model.layers)
        trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
        if job.sharding.strategy == "zero1":
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self.optimizer: Any = ZeroRedundancyOptimizer(trained, torch.optim.AdamW, fused=True)
        else:
            self.optimizer = torch.optim.AdamW(trained, fused=True)

    def _adapted(self, model: Any) -> Any:
        if self.job.adapters is None:
            return model
        from peft import LoraConfig, get_peft_model

        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        return get_peft_model(model, LoraConfig(r=8, target_modules=attention)).train()

    def _wrapped(self, step: Any, layers: Any) -> Any:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if self.job.sharding.strategy != "fsdp":
            return torch.nn.parallel.DistributedDataParallel(step)
        mesh = init_device_mesh("cpu", (self.job.sharding.devices,))
        low = torch.bfloat16 if self.job.mixed_precision == "bf16" else None
        precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low, cast_forward_inputs=False)
        for unit in (*layers, step):
            fully_shard(unit, mesh=mesh, mp_policy=precision)
        return step

    def steps(self, count: int) -> None:
        """Optimiser steps."""
        import torch

        from entrenar_core.training.objective import Now

        for _ in range(count):
            batch = self.run.batch(self.job.batch_size // self.job.sharding.devices)
            batch.input_ids_BT.copy_(torch.randint(3, self.job.student.config.vocab_size, batch.input_ids_BT.shape))
            with self.run.autocast():
                loss = self.wrapped(
                    batch, None, tuple(Now(1.0, 2.0, batch.num_soft) for _ in self.objective.terms)
                ).loss
            loss.backward()
            del loss
            self.optimizer.step()
            self.optimizer.zero_grad()


def resident(field: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def settle() -> None:
    """Gives back what is free, and lets the highest mark begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(spec: Spec) -> None:
    """In each process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tiny = Run(job_of(spec, tiny=True))
    tiny.steps(2)
    del tiny
    settle()
    before = resident("VmRSS")
    run = Run(job_of(spec))
    settle()  # weights that were whole before they were divided are no part of a step
    run.steps(2)  # in the second the optimiser has its state
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, resident("VmHWM") - before)
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def alone(job: TrainingJob) -> TrainingJob:
    """What one of the devices computes, as a job of its own."""
    return replace(job, batch_size=job.batch_size // job.sharding.devices, sharding=Sharding())


if __name__ == "__main__":
    measure(json.loads(sys.argv[1]))
