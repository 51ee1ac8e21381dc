"""Which modules and which rank: from the gradients of a model's matrices on sample rows, before anything is trained.

The first step of full training goes along the gradient. Modules whose gradient is long for their size have most to
learn; and how many directions keep nearly all of a gradient's square says what rank could follow it. It is one point of
a training, and of few rows: a hint, not a law. Gradients are summed over the rows, so their rank is no more than the
tokens of them.

Sources: to choose by gradients is the idea of Zhang et al. 2023, arXiv:2303.10512 (AdaLoRA), and to start from their
principal directions that of Wang et al. 2024, arXiv:2407.05000 (LoRA-GA).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from entrenar_core.errors import UsageError
from entrenar_lora.reports.advice import ModuleAdvice, ModuleScore, RankAdvice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from entrenar_core.config.schema import DatasetConfig
    from entrenar_lora.resolving import Subject

ENERGY = 0.9
"""Of the square of a gradient, which the directions that count keep."""
_HOLDS_FOR = 0.9
"""Of the matrices, for which a suggested rank is enough."""
SUGGESTED = 0.5
"""Modules are suggested whose gradient for each weight is at least so much of the largest."""
_SEED = 42


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of each matrix by name, (out, in), summed over `rows` rows."""

    rows: int
    matrices: Mapping[str, "Tensor"]


def dataset_section(reference: str) -> "DatasetConfig":
    """A file, folder or pattern, else a name."""
    from entrenar_core.config.schema import DatasetConfig

    local = (
        "*" in reference or Path(reference).exists() or Path(reference).suffix in (".jsonl", ".json", ".csv", ".txt")
    )
    return DatasetConfig.model_validate({"path" if local else "name": reference})


def sample_gradients(subject: "Subject", dataset: str, sample: int, length: int) -> Gradients:
    """Of rows of a data set that are drawn, each read by itself.

    Raises:
        UsageError: the model's task has no loss here.
        EntrenarError: of the kind that fits: the model or the data cannot be read.
    """
    from entrenar_core.artifact import inspect_folder
    from entrenar_core.data.sources import load_rows
    from entrenar_core.data.tokenizing import tokenize_rows
    from entrenar_core.models.loading import load_model
    from entrenar_core.models.tokenizers import load_tokenizer
    from entrenar_core.references import parse_reference

    if subject.task not in ("causal-lm", "masked-lm", "sequence-classification"):
        raise UsageError(f"gradients are not looked at for {subject.task}", "leave --sample out")
    assert subject.at_hand is not None, "it was asked for"
    section = dataset_section(dataset).model_copy(update={"max_length": length})
    artifact = inspect_folder(subject.at_hand, reference=parse_reference(subject.reference))
    rows = load_rows(section, task=subject.task, seed=_SEED)
    tokenizer = load_tokenizer(artifact)
    model = load_model(
        artifact, subject.task, label_names=rows.label_names, seed=_SEED, pad_token_id=tokenizer.pad_token_id
    )
    chosen: Any = rows.train
    chosen = chosen.shuffle(seed=_SEED).select(range(min(sample, len(chosen))))
    tokens = tokenize_rows(chosen, tokenizer, task=subject.task, config=section, max_length=length)
    return gradients_of(model, list(tokens), subject.task, tokenizer.mask_token_id)


def gradients_of(
    model: "PreTrainedModel", rows: Sequence[Mapping[str, Any]], task: str, mask_id: int | None
) -> Gradients:
    """Of the matrices of a model's body, in evaluation mode; `rows` have `input_ids` and `labels`."""
    import torch

    from entrenar_core.models.placing import linear_layers

    names = {name for name, _ in linear_layers(model)}
    head = model.get_output_embeddings()
    inside = {id(module) for module in model.base_model.modules()} - {id(head)}
    modules: dict[str, Any] = {
        name: module for name, module in model.named_modules() if name in names and id(module) in inside
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    generator = torch.Generator().manual_seed(_SEED)
    rows = [row for row in rows if task != "sequence-classification" or row["labels"] >= 0]
    for row in rows:
        given = _given(row, task, mask_id, generator)
        model(**given).loss.backward()
    made = {name: _gradient(module) for name, module in modules.items() if module.weight.grad is not None}
    return Gradients(len(rows), made)


def _gradient(module: Any) -> "Tensor":
    """(out, in)."""
    grad: Tensor = module.weight.grad
    return grad.T if type(module).__name__ == "Conv1D" else grad


def _given(row: Mapping[str, Any], task: str, mask_id: int | None, generator: Any) -> dict[str, Any]:
    import torch

    ids_BT = torch.tensor([row["input_ids"]])
    if task != "masked-lm":
        return {"input_ids": ids_BT, "labels": torch.tensor([row["labels"]])}
    masked_BT = torch.rand(ids_BT.shape, generator=generator) < 0.15
    masked_BT[0, ids_BT.shape[1] // 2] = True
    assert mask_id is not None, "a masked language model has a mask"
    return {"input_ids": ids_BT.masked_fill(masked_BT, mask_id), "labels": ids_BT.masked_fill(~masked_BT, -100)}


def module_advice(found: Gradients) -> ModuleAdvice:
    """Modules by the last part of their names, the longest gradient for a weight first."""
    groups: dict[str, list[Tensor]] = {}
    for name, grad in found.matrices.items():
        groups.setdefault(_last(name, found.matrices), []).append(grad)
    scores = []
    for name, grads in groups.items():
        square, count = sum(float(one.double().square().sum()) for one in grads), sum(one.numel() for one in grads)
        scores.append(ModuleScore(name, len(grads), count, square**0.5, (square / count) ** 0.5))
    scores.sort(key=lambda one: (-one.gradient_rms, one.name))
    least = SUGGESTED * max((one.gradient_rms for one in scores), default=0.0)
    return ModuleAdvice(
        found.rows, tuple(scores), tuple(one.name for one in scores if one.gradient_rms >= least > 0) or _all(scores)
    )


def _all(scores: Sequence[ModuleScore]) -> tuple[str, ...]:
    return tuple(one.name for one in scores)


def _last(name: str, every: Mapping[str, object]) -> str:
    """The last part of a name, with the one before where several kinds of modules have it, as BERT's `dense`."""
    *_, before, last = ("", *name.split("."))
    kinds = {other.split(".")[-2] for other in every if other.split(".")[-1] == last and "." in other}
    return f"{before}.{last}" if len(kinds) > 1 and not before.isdigit() else last


def rank_advice(found: Gradients, energy: float = ENERGY) -> RankAdvice:
    """The directions that keep `energy` of the square of each gradient, and the power of two that does for most."""
    needed = sorted(directions(grad, energy) for grad in found.matrices.values())
    enough = needed[min(len(needed) - 1, round(_HOLDS_FOR * (len(needed) - 1)))]
    return RankAdvice(found.rows, energy, float(median(needed)), needed[-1], 1 << max(0, (enough - 1).bit_length()))


def directions(matrix: "Tensor", energy: float) -> int:
    """How many singular values keep `energy` of the sum of their squares; at least one."""
    import torch

    squares = torch.linalg.svdvals(matrix.double()).square()
    kept = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return min(len(kept), int((kept < energy).sum()) + 1)
