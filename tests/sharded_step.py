"""A step of a student that FSDP shards over processes, in a module that a fresh process can import."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from entrenar_core.data.collating import Collator
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.models.output_layer import output_layer_of
from entrenar_core.models.rows import Counting, read_rows
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.step import DistillationStep

WORLD = 2
IDS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16], [17, 18]]
ROWS = [{"input_ids": ids, "labels": ids, "row": row} for row, ids in enumerate(IDS)]


def gradients(folder: Path, rank: int | None) -> dict[str, Tensor]:
    """Of a step over all rows by one process, or of a rank's rows with the student in shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    teacher, student = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("teacher", "student"))
    ids, counting = torch.tensor([[5, 6, 7]]), Counting(shifted=True)
    outputs = [output_layer_of(model, ids, torch.ones_like(ids)) for model in (teacher, student)]
    assert None not in outputs
    objective = Objective(counting, (RowTerm("kl", 0.5, forward_kl_core, 2.0), RowTerm("labels", 0.5)))
    step = DistillationStep(student, objective, outputs[1])
    if rank is not None:
        mesh = init_device_mesh("cpu", (WORLD,))
        units = [*student.model.layers, *([] if student.config.tie_word_embeddings else [student.lm_head]), step]
        for unit in units:
            fully_shard(unit, mesh=mesh)
    batch = Collator(0)(ROWS if rank is None else ROWS[rank * 2 : rank * 2 + 2])
    with torch.no_grad():
        said: Any = SimpleNamespace(rows=read_rows(teacher, batch, counting, outputs[0]), record=None)
    now = objective.at(0, 1, objective.counts([Collator(0)(ROWS)]))
    (step(batch, said, now).loss * (1 if rank is None else WORLD)).backward()  # FSDP averages over the ranks
    found = {name: parameter.grad for name, parameter in student.named_parameters()}
    return {name: gradient.full_tensor() if rank is not None else gradient for name, gradient in found.items()}


def take_part(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    sharded, whole = gradients(folder, rank), gradients(folder, None)
    dist.destroy_process_group()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        assert float((sharded[name] - gradient).abs().max()) <= 1e-6 * largest, name
