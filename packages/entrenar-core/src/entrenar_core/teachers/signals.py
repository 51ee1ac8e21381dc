"""What a teacher can say, and whether that is what a training asks for; without torch, so that `validate` knows.

Every kind of teacher has `Signals`: promised by a configuration before anything is loaded, and told by each
`TeacherSource`. Every loss has its needs: of a distribution by its row in the table of losses, of layers by its family.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from entrenar_core.config.desugaring import Term, soft_terms, temperatures_of, terms_of
from entrenar_core.config.losses import LayerLoss, SelectiveLoss, SoftLoss, compares_layers, compares_vectors
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.wording import dotted
from entrenar_core.errors import Problem
from entrenar_core.losses.table import LOSSES
from entrenar_core.models.wants import EMBEDDINGS, Wants

Examples = Literal["any", "kept", "texts"]


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a distribution."""

    def __str__(self) -> str:
        return "whole distributions"


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest `k` tokens, and what the others have together, at temperatures from `lowest` to `highest`; `more`
    is how to have a greater `k`.
    """

    k: int
    lowest: float
    highest: float
    more: str

    def __str__(self) -> str:
        return f"the likeliest {self.k} tokens"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens that were drawn at a temperature."""

    temperature: float

    def __str__(self) -> str:
        return f"draws at temperature {self.temperature:g}"


@dataclass(frozen=True, slots=True)
class Vectors:
    """No distribution: a vector of each sentence."""

    def __str__(self) -> str:
        return "vectors of sentences"


Distribution = Whole | Likeliest | Drawn | Vectors


@dataclass(frozen=True, slots=True)
class Signals:
    """What a teacher can say.

    Args:
        who: what messages call it.
        distribution: what of its distribution over tokens or classes is known.
        layers: of which layers it shows what passes in them; None where it shows whichever are wanted.
        at_hand: whether its model can be looked at before training.
        examples: of which rows: any that it is given, those that were kept, or those whose texts it has read.
        dtype: in which precision its numbers are.
        instead: what to do where it does not say enough.
    """

    who: str
    distribution: Distribution
    layers: Wants | None
    at_hand: bool
    examples: Examples
    dtype: str
    instead: str

    def __str__(self) -> str:
        layers = "" if self.layers is None or not self.layers.anything else f" and {layers_in_words(self.layers)}"
        return f"{self.distribution}{layers} in {self.dtype}"


def unmet(config: DistillationConfig, task: str | None, signals: Signals, wants: Wants | None) -> list[Problem]:
    """What a training asks of a teacher that it does not say.

    Args:
        config: of the training.
        task: its task, where it is known.
        signals: of the teacher.
        wants: its layers that the losses compare, where they can be told.
    """
    problems = unmet_by_losses(terms_of(config.distillation), signals, wants)
    if task == "embedding" and not isinstance(signals.distribution, Vectors):
        message = f"the task compares vectors of sentences, and {signals.who} gives none"
        problems.append(Problem(message, signals.instead, "task"))
    if config.training.diagnose_every is not None and isinstance(signals.distribution, Likeliest | Drawn):
        message = f"`training.diagnose_every` looks at the whole distribution, and {signals.who} has "
        problems.append(
            Problem(f"{message}{signals.distribution}", f"remove it, or {signals.instead}", "training.diagnose_every")
        )
    return problems


def unmet_by_losses(terms: Sequence[Term], signals: Signals, wants: Wants | None) -> list[Problem]:
    """The same of losses alone."""
    problems = [problem for term in terms for problem in _of_layers(term, signals)]
    if not problems and wants is not None and signals.layers is not None and not wants <= signals.layers:
        missing = Wants(wants.hidden - signals.layers.hidden, wants.attention - signals.layers.attention)
        message = f"the losses compare {layers_in_words(missing)} of the teacher, which {signals.who} lacks"
        problems.append(Problem(f"`teacher.cache`: {message}", signals.instead, "teacher.cache"))
    return problems + [problem for term in soft_terms(terms) for problem in _of_distribution(term, signals)]


def unmet_together(members: Sequence[Signals | None]) -> Iterator[Problem]:
    """Several teachers are averaged, and scored together, by whole distributions. None stands for one of which it is
    not known what it says.
    """
    for place, member in enumerate(members):
        if member is not None and not isinstance(member.distribution, Whole):
            where = f"teacher.members[{place}]"
            message = f"`{where}`: several teachers need whole distributions, and {member.who} has "
            yield Problem(f"{message}{member.distribution}", member.instead, where)


def layers_in_words(layers: Wants) -> str:
    """Such as `hidden states of layers 0, 3 and attention of layer 3`."""
    parts = {"hidden states": layers.hidden, "attention": layers.attention}
    return " and ".join(f"{name} of {_listed(found)}" for name, found in parts.items() if found)


def _listed(layers: frozenset[int]) -> str:
    numbered = [str(layer) for layer in sorted(layers - {EMBEDDINGS})]
    below = ["the embeddings"] if EMBEDDINGS in layers else []
    name = ["layer " if len(numbered) == 1 else "layers "] if numbered else []
    return " and ".join([*below, *("".join(name) + ", ".join(numbered) for _ in name)])


def _of_layers(term: Term, signals: Signals) -> Iterator[Problem]:
    where = dotted(term.path)
    if not compares_layers(term.entry):
        if compares_vectors(term.entry) and not isinstance(signals.distribution, Vectors):
            message = f"`{where}` compares vectors of sentences, and {signals.who} gives none"
            yield Problem(message, f"remove it, or {signals.instead}", where)
    elif signals.layers is not None and not signals.layers.anything:
        message = f"`{where}` compares layers, and {signals.who} shows none"
        yield Problem(message, f"remove it, or {signals.instead}", where)
    elif isinstance(term.entry, LayerLoss) and term.entry.layers == "cka" and not signals.at_hand:
        message = f"`{where}` chooses layers by looking at both models, and {signals.who} stands for the teacher's"
        yield Problem(message, "name the pairs of layers, or take another mapping", where)


def _of_distribution(term: Term, signals: Signals) -> Iterator[Problem]:
    entry = term.entry
    assert isinstance(entry, SoftLoss)
    match signals.distribution:
        case Likeliest() as known:
            yield from _of_likeliest(term, entry, signals, known)
        case Drawn() as known:
            yield from _of_draws(term, entry, signals, known)
        case Vectors():
            where = dotted(term.path)
            message = f"`{where}` compares distributions, and {signals.who} gives vectors of sentences"
            yield Problem(message, "compare these: `embedding_cosine` or `in_batch_similarity`", where)


def _of_likeliest(term: Term, entry: SoftLoss, signals: Signals, known: Likeliest) -> Iterator[Problem]:
    where, otherwise = dotted(term.path), f"remove it, or {signals.instead}"
    has = f"{signals.who} has {known}"
    if LOSSES[entry.name].known == "all":
        message = f"`{where}` asks what the student's likeliest tokens are to the teacher, and {has}"
        yield Problem(message, otherwise, where)
    if entry.entropy_threshold is not None:
        message = f"`{where}`: `entropy_threshold` asks for the teacher's entropy, and {has}"
        yield Problem(message, otherwise, where)
    if isinstance(entry, SelectiveLoss) and entry.top_k is not None and entry.top_k > known.k:
        yield Problem(f"`{where}`: `top_k` {entry.top_k}, and {has}", f"lower it, or {known.more}", where)
    lowest, highest = temperatures_of([term])
    if not known.lowest <= lowest <= highest <= known.highest:
        told = f"temperature {known.lowest:g}"
        if known.lowest != known.highest:
            told = f"temperatures from {known.lowest:g} to {known.highest:g}"
        message = f"`{where}` is at another temperature than {signals.who} knows, which is of {told}"
        yield Problem(message, f"set `distillation.temperature` so, or {signals.instead}", where)


def _of_draws(term: Term, entry: SoftLoss, signals: Signals, known: Drawn) -> Iterator[Problem]:
    where = dotted(term.path)
    selects = isinstance(entry, SelectiveLoss) and entry.top_k is not None
    if LOSSES[entry.name].known != "draws" or selects or entry.entropy_threshold is not None:
        message = f"`{where}`: of draws from the teacher, only forward_kl over all tokens is known without bias"
        yield Problem(message, f"remove it, or {signals.instead}", where)
    if isinstance(term.temperature, Schedule) or term.temperature != known.temperature:
        message = f"`{where}`: {signals.who} was drawn at temperature {known.temperature:g}"
        yield Problem(message, "set `distillation.temperature` to it, or build the cache again", where)
