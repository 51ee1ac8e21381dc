"""The short spellings of `distillation` as entries of `distillation.losses`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import ExitLoss, LabelLoss, LossEntry, SoftLoss
from entrenar_core.config.schedules import Remainder, Schedule, Setting
from entrenar_core.config.yaml_source import Path

_ENTRIES: TypeAdapter[LossEntry] = TypeAdapter(LossEntry)
_HIDDEN = {"mse": "hidden_mse", "cosine": "hidden_cosine", "patient": "patient", "cka": "cka"}
_ATTENTION = {"kl": "attention_kl", "mse": "attention_mse", "maps": "attention_maps"}
_WITH_PROJECTION = ("hidden_mse", "hidden_cosine", "patient")


@dataclass(frozen=True, slots=True)
class Term:
    """A loss of a training, with its weight and, where it has one, its temperature.

    `label` is what metrics call it; `path` is the setting that asks for it.
    """

    label: str
    entry: LossEntry | ExitLoss
    weight: Setting
    temperature: float | Schedule | None
    path: Path

    @property
    def needs_teacher(self) -> bool:
        """Labels alone need none, and exits that learn from the student itself."""
        if isinstance(self.entry, ExitLoss):
            return self.entry.learn_from == "teacher"
        return not isinstance(self.entry, LabelLoss)


def terms_of(section: DistillationSection) -> tuple[Term, ...]:
    """All losses that have some weight in some step, each with a label of its own."""
    terms = [term for term in _all(section) if _has_weight(term.weight)]
    seen: Counter[str] = Counter()
    labelled = []
    for term in terms:
        seen[term.label] += 1
        label = term.label if seen[term.label] == 1 else f"{term.label}_{seen[term.label]}"
        labelled.append(Term(label, term.entry, term.weight, term.temperature, term.path))
    return tuple(labelled)


def soft_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The divergences from the teacher's distribution, of exits too, as if these were the student."""
    found = []
    for term in terms:
        if isinstance(term.entry, SoftLoss):
            found.append(term)
        elif isinstance(term.entry, ExitLoss) and term.entry.learn_from == "teacher":
            found.append(replace(term, entry=soft_entry(term.entry)))
    return tuple(found)


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


def soft_entry(entry: ExitLoss) -> LossEntry:
    """The divergence of exits as an entry of the list."""
    return _entry(entry.divergence)


def without_teacher(section: DistillationSection) -> tuple[Term, ...]:
    """What a rival learns that has no teacher: the labels, with the smoothing that the section gives them."""
    given = [term.entry for term in _all(section) if isinstance(term.entry, LabelLoss)]
    return (Term("cross_entropy", given[0] if given else _entry("cross_entropy"), 1.0, None, ("distillation",)),)


def _all(section: DistillationSection) -> Iterator[Term]:
    yield from _short(section) if section.losses is None else _listed(section)
    if (exits := section.exits) and exits.enabled:
        entry = ExitLoss(layers=exits.layers, learn_from=exits.learn_from, divergence=exits.divergence)
        temperature = section.temperature if exits.temperature is None else exits.temperature
        asked = None if exits.learn_from == "labels" else temperature
        yield Term(entry.name, entry, exits.weight, asked, ("distillation", "exits"))


def _listed(section: DistillationSection) -> Iterator[Term]:
    assert section.losses is not None
    for index, entry in enumerate(section.losses):
        temperature = None
        if isinstance(entry, SoftLoss):
            temperature = section.temperature if entry.temperature is None else entry.temperature
        yield Term(entry.name, entry, entry.weight, temperature, ("distillation", "losses", index))


def _short(section: DistillationSection) -> Iterator[Term]:
    soft = _divergence(section)
    yield Term(soft.name, soft, section.alpha, section.temperature, ("distillation", "divergence"))
    labels = _entry("cross_entropy", label_smoothing=section.label_smoothing)
    yield Term(labels.name, labels, Remainder(section.alpha), None, ("distillation", "alpha"))
    if (hidden := section.progressive) and hidden.enabled:
        name = _HIDDEN[hidden.loss]
        projection = {"projection": hidden.projection} if name in _WITH_PROJECTION else {}
        yield Term(
            name,
            _entry(name, layers=hidden.layer_mapping, **projection),
            hidden.weight,
            None,
            ("distillation", "progressive"),
        )
    if (seen := section.attention) and seen.enabled:
        name = _ATTENTION[seen.loss]
        heads = {} if seen.loss == "maps" else {"heads": seen.head_mapping, "head_weights": seen.head_weighting}
        yield Term(
            name, _entry(name, layers=seen.layer_mapping, **heads), seen.weight, None, ("distillation", "attention")
        )
    if (related := section.relations) and related.enabled:
        layers = {} if related.layer_mapping is None else {"layers": related.layer_mapping}
        entry = _entry(related.loss, **layers)
        yield Term(related.loss, entry, related.weight, None, ("distillation", "relations"))


def _divergence(section: DistillationSection) -> LossEntry:
    selection: dict[str, Any] = {} if section.top_k is None else {"top_k": section.top_k}
    if section.divergence not in ("bild", "cross_entropy_hard"):
        selection["top_k_tail"] = section.top_k_tail
    return _entry(section.divergence, entropy_threshold=section.entropy_threshold, **selection)


def _entry(name: str, **settings: Any) -> LossEntry:
    return _ENTRIES.validate_python({"name": name, **settings})


def _has_weight(weight: Setting) -> bool:
    if isinstance(weight, Remainder):
        return isinstance(weight.of, Schedule) or weight.of != 1
    return isinstance(weight, Schedule) or weight != 0
