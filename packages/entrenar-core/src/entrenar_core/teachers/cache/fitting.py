"""Whether what is kept of a teacher is enough for the losses of a training; without torch, so that `validate` knows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entrenar_core.config.desugaring import Term, soft_terms, terms_of
from entrenar_core.config.losses import LayerLoss, SelectiveLoss, SoftLoss, compares_layers
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teachers import EnsembleTeacher
from entrenar_core.config.wording import dotted
from entrenar_core.errors import DataError, Problem
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.training.schedules import moves

_LIVE = "remove it, keep hidden states (`cache build --kind hidden`), or remove `teacher.cache`"


def check_kind(config: DistillationConfig, kind: Mapping[str, Any], wants: Wants | None, has: Wants) -> list[Problem]:
    """What a training asks of a teacher that a cache does not have.

    Args:
        config: of the training.
        kind: what is kept of positions, as the manifest says it.
        wants: the teacher's layers that the losses compare, where they can be told.
        has: the layers that are kept.
    """
    terms = terms_of(config.distillation)
    problems = [problem for term in terms if compares_layers(term.entry) for problem in _layers(term, has)]
    if not problems and wants is not None and not wants <= has:
        problems.append(Problem(*lacking(wants, has), "teacher.cache"))
    check = {"topk": _likeliest, "sampled": _drawn}.get(kind["name"])
    soft = soft_terms(terms) if check else ()
    if check and config.training.diagnose_every is not None:
        message = f"`training.diagnose_every` looks at the whole distribution, which a {kind['name']} cache lacks"
        problems.append(Problem(message, _LIVE, "training.diagnose_every"))
    return problems + [problem for term in soft for problem in (check(term, kind) if check else ())]


def check_members_caches(config: DistillationConfig) -> list[Problem]:
    """Several teachers are scored together by whole distributions, of which caches of some tokens are none."""
    from entrenar_core.teachers.cache.manifest import read_manifest

    members = config.teacher.members if isinstance(config.teacher, EnsembleTeacher) else ()
    problems = []
    for place, member in enumerate(members):
        if member.cache is None or member.cache.dir is None:
            continue
        try:
            kind = read_manifest(member.cache.dir).kind["name"]
        except DataError:  # told where it is opened
            continue
        if kind in ("topk", "sampled"):
            where = f"teacher.members[{place}].cache"
            message = f"`{where}`: several teachers need whole distributions, and the cache keeps some tokens ({kind})"
            problems.append(Problem(message, "build it with --kind hidden", where))
    return problems


def temperatures_of(terms: Sequence[Term]) -> tuple[float, float]:
    """The lowest and the highest at which a loss asks for the teacher; 1 is always asked for, by evaluations."""
    asked = [1.0]
    for term in soft_terms(terms):
        value = term.temperature
        if isinstance(value, Schedule):
            asked += [point for point in (value.start, value.end, value.warmup_from) if point is not None]
        elif value is not None:
            asked.append(value)
    return min(asked), max(asked)


def lacking(wants: Wants, has: Wants) -> tuple[str, str]:
    """What is wrong with a cache that has not the layers that are wanted, and what to do."""
    parts = {"hidden states": wants.hidden - has.hidden, "attention": wants.attention - has.attention}
    told = " and ".join(f"{name} of {_listed(layers)}" for name, layers in parts.items() if layers)
    message = f"`teacher.cache`: the losses compare {told} of the teacher, which the cache lacks"
    return message, "build the cache again with this configuration"


def _listed(layers: frozenset[int]) -> str:
    return ", ".join("the embeddings" if layer == EMBEDDINGS else f"layer {layer}" for layer in sorted(layers))


def _layers(term: Term, has: Wants) -> Iterator[Problem]:
    where = dotted(term.path)
    if not has.anything:
        message = f"`{where}` compares layers, and the cache has none"
        yield Problem(message, "build the cache again with this configuration", where)
    elif isinstance(term.entry, LayerLoss) and term.entry.layers == "cka":
        message = f"`{where}` chooses layers by looking at both models, and the teacher of a cache is not there"
        yield Problem(message, "name the pairs of layers, or take another mapping", where)


def _likeliest(term: Term, kind: Mapping[str, Any]) -> Iterator[Problem]:
    entry, where = term.entry, dotted(term.path)
    assert isinstance(entry, SoftLoss)
    if entry.name == "bild":
        message = f"`{where}` asks what the student's likeliest tokens are to the teacher, which a top-k cache lacks"
        yield Problem(message, _LIVE, where)
    if entry.entropy_threshold is not None:
        message = "`entropy_threshold` asks for the teacher's entropy, which a top-k cache lacks"
        yield Problem(f"`{where}`: {message}", _LIVE, where)
    if isinstance(entry, SelectiveLoss) and entry.top_k is not None and entry.top_k > kind["k"]:
        yield Problem(
            f"`{where}`: `top_k` {entry.top_k}, and the cache has the likeliest {kind['k']}", "lower it", where
        )
    lowest, highest = temperatures_of([term])
    if not kind["lowest"] <= lowest <= highest <= kind["highest"]:
        told = f"temperatures from {kind['lowest']:g} to {kind['highest']:g}"
        yield Problem(f"`{where}` is at another temperature than the cache has: {told}", "build the cache again", where)


def _drawn(term: Term, kind: Mapping[str, Any]) -> Iterator[Problem]:
    entry, where = term.entry, dotted(term.path)
    selects = isinstance(entry, SelectiveLoss) and entry.top_k is not None
    assert isinstance(entry, SoftLoss)
    if entry.name != "forward_kl" or selects or entry.entropy_threshold is not None:
        message = f"`{where}`: of draws from the teacher, only forward_kl over all tokens is known without bias"
        yield Problem(message, _LIVE, where)
    moving = term.temperature is not None and moves(term.temperature)
    if moving or term.temperature != kind["temperature"]:
        message = f"`{where}`: the cache was drawn at temperature {kind['temperature']:g}"
        yield Problem(message, "set `distillation.temperature` to it, or build the cache again", where)
