"""From the entries of a configuration to what a training makes small."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import nn
from transformers import PreTrainedModel

from entrenar_core.architectures import architecture_of
from entrenar_core.config.desugaring import Term, soft_entry
from entrenar_core.config.losses import (
    ExitLoss,
    LabelLoss,
    LayerLoss,
    SelectiveLoss,
    SoftLoss,
    compares_layers,
    compares_vectors,
)
from entrenar_core.config.wording import dotted
from entrenar_core.errors import ConfigError, ModelError, Problem
from entrenar_core.losses import DIVERGENCES, Core, top_k, where_uncertain
from entrenar_core.models.layer_rules import chosen_pairs
from entrenar_core.models.layer_similarity import similar_layers
from entrenar_core.models.layer_sizes import Sizes, layer_sizes
from entrenar_core.models.loading import seeded
from entrenar_core.models.recording import require_recordable
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.sentences import LiveSentences, SentenceTeacher
from entrenar_core.teachers.signals import unmet_by_losses
from entrenar_core.teachers.source import TeacherSource
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.layer_terms import LayerTerm, make_layer_term
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.vector_terms import VectorTerm, make_vector_term

if TYPE_CHECKING:
    from entrenar_core.architectures import Architecture
    from entrenar_core.data.collating import Batch
    from entrenar_core.models.output_layer import OutputLayer
    from entrenar_core.models.rows import Counting
    from entrenar_core.models.sentence_files import Pool


class Surroundings(Protocol):
    """What of a run an objective hangs on, besides its models; a `Preparation` has it."""

    @property
    def seed(self) -> int:
        """Of weights that losses have of their own."""
        ...

    @property
    def counting(self) -> "Counting":
        """What of a batch counts."""
        ...

    @property
    def poolings(self) -> "tuple[Pool, Pool] | None":
        """Of teacher and student as sentence encoders."""
        ...

    @property
    def over_tokens(self) -> bool:
        """Whether the models predict tokens."""
        ...

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The classes that the models tell apart."""
        ...

    @property
    def teacher_architecture(self) -> "Architecture":
        """Of a teacher whose model is not at hand."""
        ...

    def output_layer(self, model: nn.Module) -> "OutputLayer | None":
        """Where a language model makes its logits, if they can be made in tiles."""
        ...

    def sample(self) -> "Batch":
        """Some training rows, on which models are looked at."""
        ...


def make_objective(
    terms: Sequence[Term], prepared: Surroundings, student: nn.Module, teacher: TeacherSource | SentenceTeacher | None
) -> Objective:
    """What a training makes small.

    Raises:
        ConfigError: a loss does not fit the sizes of the models, or asks the teacher for what it does not say.
        ModelError: a model does not show its layers.
    """
    _require_said(terms, teacher, None)
    layered = [term for term in terms if compares_layers(term.entry)]
    of_vectors = [term for term in terms if compares_vectors(term.entry)]
    exits = [term for term in terms if isinstance(term.entry, ExitLoss)]
    rows = tuple(_row_term(term) for term in terms if term not in (*layered, *of_vectors, *exits))
    vectors = tuple(_vector_terms(of_vectors, prepared, student, teacher))
    pool = None if prepared.poolings is None else prepared.poolings[1]
    with seeded(prepared.seed):
        out = tuple(_exit_term(term, prepared, student) for term in exits)
    if not layered:
        return Objective(prepared.counting, rows, vectors=vectors, pool=pool, exits=out)
    model = teacher.model if isinstance(teacher, LiveTeacher | LiveSentences) else None
    with seeded(prepared.seed):
        made = tuple(_layer_term(term, prepared, student, model) for term in layered)
    for term, layer_term in zip(layered, made, strict=True):
        _require_recordable(term, layer_term, student, model)
    objective = Objective(prepared.counting, rows, made, vectors, pool, out)
    _require_said(terms, teacher, objective.wants(1))
    return objective


def _require_said(terms: Sequence[Term], teacher: TeacherSource | SentenceTeacher | None, wants: Wants | None) -> None:
    if teacher is not None and (problems := unmet_by_losses(terms, teacher.signals, wants)):
        raise ConfigError(problems)


def _require_recordable(term: Term, made: LayerTerm, student: nn.Module, teacher: nn.Module | None) -> None:
    for side, model in enumerate((student, teacher)):
        if model is None:  # a cache has what it has
            continue
        wants = made.wants(side)
        try:
            require_recordable(model, hidden=wants.hidden - {EMBEDDINGS}, attention=wants.attention)
        except ModelError as error:
            part = ("student", "teacher")[side]
            raise ModelError(f"`{dotted(term.path)}` of the {part}: {error.message}", error.hint) from error


def _vector_terms(
    terms: Sequence[Term], prepared: Surroundings, student: nn.Module, teacher: TeacherSource | SentenceTeacher | None
) -> Iterator[VectorTerm]:
    for term in terms:
        assert isinstance(student, PreTrainedModel)
        assert isinstance(teacher, SentenceTeacher), "only sentence encoders have vectors"
        with seeded(prepared.seed):
            yield make_vector_term(term, student.config.hidden_size, teacher.judged_NK.shape[1])


def _layer_term(term: Term, prepared: Surroundings, student: nn.Module, teacher: nn.Module | None) -> LayerTerm:
    of_teacher = sizes_of(teacher) if teacher is not None else layer_sizes(prepared.teacher_architecture)
    assert of_teacher is not None, "a family of the table without its sizes"
    sizes = sizes_of(student), of_teacher
    assert isinstance(term.entry, LayerLoss)
    try:
        if term.entry.layers == "cka":
            assert teacher is not None, "one that is at hand"
            pairs = similar_layers(student, teacher, prepared.sample(), sizes[0].num_layers, sizes[1].num_layers)
        else:
            pairs = chosen_pairs(term.entry.layers, sizes[0].num_layers, sizes[1].num_layers)
        return make_layer_term(term, pairs, *sizes)
    except ValueError as error:
        raise ConfigError([Problem(f"`{dotted(term.path)}`: {error}", "change it, or the student")]) from error


def _exit_term(term: Term, prepared: Surroundings, student: nn.Module) -> ExitTerm:
    entry, sizes = term.entry, sizes_of(student)
    assert isinstance(entry, ExitLoss)
    layers = tuple(range(sizes.num_layers - 1)) if entry.layers is None else entry.layers
    output = prepared.output_layer(student)
    if output is None and prepared.over_tokens:
        raise ModelError(
            "`distillation.exits`: the student's logits are not made by one matrix of its last hidden states",
            "remove it, or take another student",
        )
    try:
        require_recordable(student, hidden=layers)
    except ModelError as error:
        raise ModelError(f"`distillation.exits` of the student: {error.message}", error.hint) from error
    gives = len(prepared.label_names or ()) if output is None else output.head.weight_VH.shape[1]
    soft = entry.learn_from != "labels"
    as_entry = soft_entry(entry)
    assert isinstance(as_entry, SoftLoss)
    core = make_core(as_entry) if soft else None
    temperature, power = 1.0 if term.temperature is None else term.temperature, DIVERGENCES[entry.divergence].power
    return ExitTerm(
        term.label, entry, term.weight, layers, (sizes.hidden_size, gives), core, temperature, power if soft else 2
    )


def _row_term(term: Term) -> RowTerm:
    if isinstance(term.entry, LabelLoss):
        return RowTerm(term.label, term.weight, smoothing=term.entry.label_smoothing)
    assert isinstance(term.entry, SoftLoss)
    assert term.temperature is not None, "every soft loss has one"
    power = DIVERGENCES[term.entry.name].power
    return RowTerm(term.label, term.weight, make_core(term.entry), term.temperature, power=power)


def sizes_of(model: nn.Module) -> Sizes:
    """Of a model, or of what is inside a wrapper such as a probe."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    found = layer_sizes(architecture_of(inner.config.to_dict()))
    assert found is not None, "a family of the table without its sizes"
    return found


def make_core(entry: SoftLoss) -> Core:
    """The divergence of an entry, with its parameters and what it selects."""
    row = DIVERGENCES[entry.name]
    core = row.make(**{name: getattr(entry, name) for name in row.parameters})
    if isinstance(entry, SelectiveLoss) and entry.top_k is not None:
        core = top_k(core, entry.top_k, tail=entry.top_k_tail)
    return core if entry.entropy_threshold is None else where_uncertain(core, entry.entropy_threshold)
