"""What a configuration means for the task `embedding`, where students give vectors, and neither logits nor classes."""

from collections.abc import Iterator

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import (
    LabelLoss,
    LayerLoss,
    LossEntry,
    RelationLoss,
    SoftLoss,
    VectorLoss,
    compares_vectors,
)
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.errors import Problem

EMBEDDING = "embedding"
_OF_LOGITS = (
    "temperature",
    "alpha",
    "divergence",
    "top_k",
    "top_k_tail",
    "entropy_threshold",
    "label_smoothing",
)
_INSTEAD = "take embedding_cosine, embedding_mse or in_batch_similarity"


def for_task(config: OneTeacher, task: str | None) -> OneTeacher:
    """The configuration with all losses of a sentence encoder as `distillation.losses`; that of another task as it is.

    Without `losses` the vectors are compared by their cosines, with what `progressive`, `attention` and `relations`
    add. Relations between rows are those of the vectors, unless they name layers.
    """
    if task != EMBEDDING:
        return config
    section = config.distillation
    losses = section.losses
    if losses is None:
        added = ((term.entry, term.weight) for term in terms_of(section))
        more = (entry.model_copy(update={"weight": weight}) for entry, weight in added if isinstance(entry, LayerLoss))
        losses = (VectorLoss(name="embedding_cosine"), *more)
    whole = DistillationSection(losses=tuple(map(_of_vectors, losses)))
    return config.model_copy(update={"distillation": whole})


def _of_vectors(entry: LossEntry) -> LossEntry:
    if isinstance(entry, RelationLoss) and "layers" not in entry.model_fields_set:
        return entry.model_copy(update={"layers": "vectors"})
    return entry


def check_task(config: OneTeacher, task: str | None) -> list[Problem]:
    """Every setting that means nothing in this task. `where` of a problem is the dotted name of the setting."""
    if task is None:
        return []
    return list(_in_sentences(config) if task == EMBEDDING else _elsewhere(config, task))


def _in_sentences(config: OneTeacher) -> Iterator[Problem]:
    section = config.distillation
    for name in _OF_LOGITS:
        if name in section.model_fields_set:
            where = f"distillation.{name}"
            what = f"`{where}` is about logits or labels, and the task embedding compares vectors"
            yield Problem(what, "remove it; `distillation.losses` lists what is compared", where)
    yield from _without_exits(section)
    for index, entry in enumerate(section.losses or ()):
        where = f"distillation.losses[{index}]"
        if isinstance(entry, SoftLoss | LabelLoss):
            needs = "labels" if isinstance(entry, LabelLoss) else "logits"
            yield Problem(f"`{where}`: {entry.name} needs {needs}, and the task embedding has none", _INSTEAD, where)
        elif compares_vectors(_of_vectors(entry)) and "pool" in entry.model_fields_set:
            what = f"`{where}.pool` is of layers, and the vectors of sentences are compared"
            yield Problem(what, "remove it, or name `layers`; `student.pooling` makes the vectors", f"{where}.pool")
    if config.teacher.finetune is not None:
        what = "`teacher.finetune` fits a classifier, and the task is embedding"
        yield Problem(what, "remove it", "teacher.finetune")
    if config.training.baseline:
        what = "`training.baseline` trains on the labels alone, and the task embedding learns none"
        yield Problem(what, "remove it", "training.baseline")


def _without_exits(section: DistillationSection) -> Iterator[Problem]:
    if section.exits is not None and section.exits.enabled:
        what = "`distillation.exits` give logits or labels, and the task embedding compares vectors"
        yield Problem(what, "remove it", "distillation.exits")


def _elsewhere(config: OneTeacher, task: str) -> Iterator[Problem]:
    for index, entry in enumerate(config.distillation.losses or ()):
        if compares_vectors(entry):
            where = f"distillation.losses[{index}]"
            what = f"`{where}`: {entry.name} compares the vectors of sentences, and the task is {task}"
            hint = "name layers" if isinstance(entry, LayerLoss) else "take another loss"
            yield Problem(what, f"{hint}, or set `task: embedding`", where)
    for part in ("teacher", "student"):
        if getattr(config, part).pooling is not None:
            where = f"{part}.pooling"
            yield Problem(f"`{where}` is of sentence encoders, and the task is {task}", "remove it", where)
