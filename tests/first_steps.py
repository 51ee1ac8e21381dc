"""The gradients that the first step of the real loop gives to its optimiser, in a module that a process can import."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor

from entrenar_core.artifact import inspect_folder
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import LayerLoss, VectorLoss
from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import IGNORED, Collator
from entrenar_core.data.masking import Masking
from entrenar_core.data.packing import Packing
from entrenar_core.losses import LOSSES, Core, layer_pairs
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import load_model, seeded
from entrenar_core.models.output_layer import OutputLayer, output_layer_of
from entrenar_core.models.rows import Counting
from entrenar_core.models.sentences import SentenceEncoder
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.sentences import LiveSentences
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.layer_terms import make_layer_term
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.losses import sizes_of
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep
from entrenar_core.training.vector_terms import make_vector_term

WORLD = 2
Side = Literal["left", "right"]
Row = dict[str, Any]
Folders = tuple[Path, Path]
Gradients = Mapping[str, Tensor]
HEADS = {
    "causal-lm": "CausalLM",
    "masked-lm": "MaskedLM",
    "sequence-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
}
LANGUAGE = ("causal-lm", "masked-lm")


def loaded(task: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    if task == "embedding":
        return load_model(inspect_folder(folder), EMBEDDING).to(dtype)
    return getattr(transformers, f"AutoModelFor{HEADS[task]}").from_pretrained(folder, dtype=dtype)


def ragged_rows(task: str, num_rows: int = 8) -> list[Row]:
    """Rows of 1 to 19 tokens. Of a classifier every third has no label; of a language model some are a prompt.

    A word is two tokens; where words are tagged, every third has no tag. Sentences for vectors have no labels.
    """
    random = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for index, length in enumerate([5, 1, 19, 3, 8, 2, 13, 7][:num_rows]):
        ids = torch.randint(5, 100, (length,), generator=random).tolist()
        prompt = index % 4
        tokens = [IGNORED] * min(prompt, length) + ids[prompt:]
        row: Row = {"input_ids": ids, "row": index, "length": length}
        if task == "masked-lm":
            row["words"] = [at // 2 for at in range(length)]
        elif task == "token-classification":
            row["targets"] = [at % 2 == 0 for at in range(length)]
            row["labels"] = [IGNORED if at % 2 or (index + at // 2) % 3 == 0 else at % 3 for at in range(length)]
        elif task == "causal-lm":
            row["labels"] = tokens
        else:
            row["labels"] = IGNORED if index % 3 == 0 or task == "embedding" else index % 3
        rows.append(row)
    return rows


def collator(side: Side = "right") -> Collator:
    """As many words as not are masked, so that rows differ in how many count."""
    return Collator(0, side, Masking(4, tuple(range(5, 100)), 0.5, 3))


def output_of(model: Any) -> OutputLayer:
    ids = torch.tensor([[5, 6, 7]])
    found = output_layer_of(model, ids, torch.ones_like(ids))
    assert found is not None
    return found


def row_terms(teacher_weight: float = 0.5, divergence: Core = forward_kl_core) -> tuple[RowTerm, ...]:
    return (
        RowTerm("soft", teacher_weight, divergence, 2.0),
        RowTerm("labels", 1 - teacher_weight, smoothing=0.1),
    )


def entry(name: str, task: str) -> dict[str, Any]:
    """An entry of `distillation.losses` between layers or vectors, whose groups are of four rows."""
    found: dict[str, Any] = {"name": name}
    if LOSSES[name].scope == "group":
        found["group_size"] = 4
    if name == "attention_maps":  # norms leave no gradient in the sum of squares
        found["power"] = 3.0
    if LOSSES[name].family != "vectors" and task != "embedding":
        found["layers"] = "uniform"
    return found


def between(entries: Sequence[dict[str, Any]], student: Any, teacher: Any, counting: Counting, pool: Any) -> Objective:
    """What the entries of a configuration ask for; their projections are the same each time."""
    terms = terms_of(DistillationSection.model_validate({"losses": [*entries]}))
    sizes = sizes_of(student), sizes_of(teacher)
    pairs = layer_pairs("uniform", sizes[0].num_layers, sizes[1].num_layers)
    of_layers = [t for t in terms if isinstance(t.entry, LayerLoss) and pool is None]
    of_vectors = [t for t in terms if isinstance(t.entry, VectorLoss) or t not in of_layers]
    with seeded(0):
        layers = tuple(make_layer_term(term, pairs, *sizes) for term in of_layers)
        widths = student.config.hidden_size, teacher.config.hidden_size
        vectors = tuple(make_vector_term(term, *widths) for term in of_vectors)
    return Objective(counting, (), layers, vectors, pool)


def gradients(
    task: str,
    folders: Folders,
    out: Path,
    *,
    cut: tuple[int, int],
    side: Side = "right",
    rows: tuple[RowTerm, ...] | None = None,
    entries: Sequence[dict[str, Any]] = (),
    pool: Any = None,
    tiled: bool = True,
    dtype: torch.dtype = torch.float32,
    capacity: int | None = None,
    **training: Any,
) -> Gradients:
    """Those of the first step; of a language model, in tiles if wanted; with a `capacity`, of packed rows.

    `entries` are losses between layers or vectors in place of those on logits; their projections have gradients too.
    """
    accelerator = Accelerator(cpu=True)
    teacher, student = loaded(task, folders[0], dtype).eval(), loaded(task, folders[1], dtype)
    counting = Counting(shifted=task == "causal-lm")
    outputs = [output_of(model) if tiled and task in LANGUAGE else None for model in (teacher, student)]
    objective = Objective(counting, rows or row_terms())
    if entries:
        objective = between(entries, student, teacher, counting, pool)
        for term in (*objective.layers, *objective.vectors):
            term.to(dtype)
    said: LiveTeacher | LiveSentences = LiveTeacher(teacher, accelerator, counting, outputs[0])
    if pool is not None:
        encoder = SentenceEncoder(teacher, "mean").requires_grad_(False)
        said = LiveSentences(encoder, accelerator, torch.zeros(0, teacher.config.hidden_size))
    settings = TrainingConfig(
        batch_size=cut[0], gradient_accumulation=cut[1], max_steps=1, max_grad_norm=None, **training
    )
    grouped = max((found.get("group_size", 1) for found in entries), default=1)
    examples = Dataset.from_list(ragged_rows(task))
    packing = None if capacity is None else Packing(examples["length"], capacity)
    batches = StoredBatches(
        examples, collator(side), settings, accelerator.process_index, accelerator.num_processes, grouped, packing
    )
    step = DistillationStep(student, objective, outputs[1])
    loop = Loop(
        step,
        batches,
        said.listening(objective.wants(1)),
        accelerator,
        LoopSettings(settings, out, checkpoint_every=9, keep=1, evaluate=unused, score=unused),
        (),
        StopRequest(),
    )
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None})

    loop.optimizer.register_step_pre_hook(keep)
    loop.run(resume=False)
    return found


def unused(*_: object) -> Any:
    raise AssertionError("nothing is evaluated here")


def difference(actual: Gradients, expected: Gradients) -> float:
    """max|Δg| / max|g|"""
    assert actual.keys() == expected.keys()
    assert expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    return max(float((actual[name] - expected[name]).abs().max()) for name in expected) / largest


def of_the_table(
    name: str,
    folders: Mapping[str, Folders],
    out: Path,
    cut: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    capacity: int | None = None,
) -> Gradients:
    """Those of one loss of the table alone."""
    row = LOSSES[name]
    if row.family in ("labels", "logits"):
        soft = row.family == "logits"
        terms = (RowTerm(name, 1.0, row.make(), 2.0, power=row.power) if soft else RowTerm(name),)
        return gradients("causal-lm", folders["causal-lm"], out, cut=cut, rows=terms, dtype=dtype, capacity=capacity)
    task, pool = ("embedding", "mean") if row.family == "vectors" else ("causal-lm", None)
    entries = [entry(name, task)]
    return gradients(task, folders[task], out, cut=cut, entries=entries, pool=pool, dtype=dtype, capacity=capacity)


def cut_of(name: str) -> tuple[int, int]:
    """Between ranks: batches of 3, 3 and 2 rows, of which they have 2 and 1; groups of four rows stay whole."""
    return (8, 1) if LOSSES[name].scope == "group" else (3, 3)


PACKED_TASKS = {"causal-lm": (20, (2, 2)), "masked-lm": (20, (3, 1)), "token-classification": (60, (1, 1))}
"""Packed rows for two ranks: three in two batches, of which the second has one; three in one; and one, of which a rank
has nothing."""


def take_part(rank: int, port: int, folders: Mapping[str, Folders], out: Path) -> None:
    """One of `WORLD` processes, which find the gradients of every loss of the table together and write them down."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(WORLD))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    assert Accelerator(cpu=True).num_processes == WORLD
    for name in LOSSES:
        found = of_the_table(name, folders, out / "together" / name, cut_of(name))
        save_file({key: value.contiguous() for key, value in found.items()}, out / f"{name}-{rank}.safetensors")
    for task, (capacity, cut) in PACKED_TASKS.items():
        found = gradients(task, folders[task], out / "together" / task, cut=cut, capacity=capacity, dtype=torch.float64)
        save_file({key: value.contiguous() for key, value in found.items()}, out / f"{task}-{rank}.safetensors")
    torch.distributed.destroy_process_group()
