"""What losses between layers must hold against both models; without torch, so that `validate` answers at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from entrenar_core.architectures import Architecture, families
from entrenar_core.config.desugaring import Term, terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import (
    AttentionLoss,
    HiddenLoss,
    LayerLoss,
    Layers,
    MinilmLoss,
    PatientLoss,
    compares_layers,
)
from entrenar_core.config.schema import StudentConfig
from entrenar_core.config.wording import dotted
from entrenar_core.errors import Problem
from entrenar_core.losses.head_mapping import map_heads
from entrenar_core.losses.layer_mapping import layer_pairs
from entrenar_core.models.layer_sizes import Sizes, layer_sizes, relation_heads
from entrenar_core.models.student_rules import chosen_layers, with_known_sizes
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.models.widths import student_widths, widths_of

Pairs = tuple[tuple[int, int], ...]


def chosen_pairs(layers: Layers, student_layers: int, teacher_layers: int) -> Pairs:
    """The pairs that a mapping means, other than `cka`, which only the models can tell.

    Raises:
        ValueError: a layer is out of range, or the mapping does not suit these numbers of layers.
    """
    if layers == "final":
        return ((student_layers - 1, teacher_layers - 1),)
    assert layers != "cka"
    assert layers != "vectors", "no layers at all"
    return layer_pairs(layers, student_layers, teacher_layers)


def planned_student(config: StudentConfig, teacher: Architecture) -> Architecture:
    """The sizes of a student that is built, as far as the configuration tells them and makes sense."""
    init = config.init_from
    if init is None:
        known = with_known_sizes(config)
        sizes = {name: getattr(known, name) for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads")}
        return replace(teacher, **sizes, head_dim=None)
    layers, total = None, teacher.num_layers
    if total is not None and not (isinstance(init.teacher_layers, int) and init.teacher_layers > total):
        layers = len(chosen_layers(init.teacher_layers, total, init.layers_from))
    family, before = families().get(teacher.family or ""), widths_of(teacher)
    if family is None or before is None:
        return replace(teacher, num_layers=layers)
    after = student_widths(init, family, before)
    return replace(
        teacher,
        num_layers=layers,
        hidden_size=after.hidden_size,
        num_heads=after.num_heads,
        num_kv_heads=after.num_kv_heads,
        head_dim=teacher.head_dim or before.hidden_size // before.num_heads,  # a head keeps its width
    )


def check_layers(section: DistillationSection, teacher: Architecture, student: Architecture) -> list[Problem]:
    """Every mistake in losses between layers; what an architecture does not say is left to the models."""
    terms = [term for term in terms_of(section) if compares_layers(term.entry)]
    return [*(problem for term in terms for problem in _problems(term, teacher, student)), *_exits(section, student)]


def _exits(section: DistillationSection, student: Architecture) -> Iterator[Problem]:
    """Exits are of layers inside of the student: its last one answers anyway."""
    exits, depth = section.exits, student.num_layers
    if exits is None or not exits.enabled or depth is None:
        return
    where = "distillation.exits.layers"
    if depth < 2:
        yield Problem("`distillation.exits`: the student has one layer, which answers anyway", "remove it", where)
    for layer in (layer for layer in exits.layers or () if layer >= depth - 1):
        what = "the last, which answers anyway" if layer == depth - 1 else f"not there: it has {depth}, counted from 0"
        yield Problem(f"`{where}`: layer {layer} of the student is {what}", f"name layers below {depth - 1}", where)


def wanted_layers(terms: Sequence[Term], teacher: Architecture, student: Architecture) -> Wants | None:
    """The teacher's layers that the losses compare; None where only the models themselves tell, as with `cka`."""
    wants = Wants()
    for term in terms:
        if isinstance(term.entry, LayerLoss) and compares_layers(term.entry):
            if term.entry.layers == "cka" or not (student.num_layers and teacher.num_layers):
                return None
            wants |= _wanted(term.entry, student.num_layers, teacher.num_layers)
    return wants


def _wanted(entry: LayerLoss, student_layers: int, teacher_layers: int) -> Wants:
    layers = frozenset(pair[1] for pair in chosen_pairs(entry.layers, student_layers, teacher_layers))
    if isinstance(entry, AttentionLoss | MinilmLoss):
        return Wants(attention=layers)
    below = {EMBEDDINGS} if isinstance(entry, HiddenLoss) and entry.embeddings else set()
    return Wants(hidden=layers | below)


def _problems(term: Term, teacher: Architecture, student: Architecture) -> Iterator[Problem]:
    entry = term.entry
    assert isinstance(entry, LayerLoss)
    listed = "losses" in term.path
    where = dotted((*term.path, "layers" if listed else "layer_mapping"))
    if student.num_layers and teacher.num_layers:
        try:
            if entry.layers != "cka":
                chosen_pairs(entry.layers, student.num_layers, teacher.num_layers)
            elif student.num_layers > teacher.num_layers:
                raise ValueError("cka looks for another teacher layer for each of the student's, and they are more")
        except ValueError as error:
            depths = f"the student has {student.num_layers} layers, the teacher {teacher.num_layers}, counted from 0"
            yield Problem(f"`{where}`: {error}", depths, where)
    yield from _heads(term, layer_sizes(student), layer_sizes(teacher), listed=listed)
    if isinstance(entry, HiddenLoss | PatientLoss) and entry.projection == "none":
        widths = student.hidden_size, teacher.hidden_size
        if None not in widths and widths[0] != widths[1]:
            where = dotted((*term.path, "projection"))
            message = f"`{where}: none` needs one width, and the student has {widths[0]}, the teacher {widths[1]}"
            yield Problem(message, "set it to linear or mlp", where)


def _heads(term: Term, student: Sizes | None, teacher: Sizes | None, *, listed: bool) -> Iterator[Problem]:
    """Heads that are not there, or do not divide."""
    if student is None or teacher is None:
        return
    entry, setting = term.entry, "heads" if listed else "head_mapping"
    try:
        if isinstance(entry, AttentionLoss):
            map_heads(entry.heads, student.num_heads, teacher.num_heads)
        elif isinstance(entry, MinilmLoss):
            setting = "relation_heads"
            relation_heads(entry.relation_heads, entry.relations, student, teacher)
    except ValueError as error:
        where = dotted((*term.path, setting))
        heads = f"the student has {student.num_heads} heads, the teacher {teacher.num_heads}"
        yield Problem(f"`{where}`: {error}", heads, where)
