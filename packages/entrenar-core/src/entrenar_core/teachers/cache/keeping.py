"""What of a teacher is kept, chosen by what it can say, by the settings, and by what the losses ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator

from entrenar_core.config.desugaring import soft_terms, temperatures_of
from entrenar_core.data.collating import Batch
from entrenar_core.errors import UsageError
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.assembly import FittedTeacher, live_teacher
from entrenar_core.teachers.cache.draws import MOST_SAMPLES, Sampled
from entrenar_core.teachers.cache.kinds import Hidden, Kind, TopK, Values
from entrenar_core.teachers.cache.layers import Layers
from entrenar_core.teachers.cache.planning import Costs, PlannedRow
from entrenar_core.teachers.cache.reader import Reader
from entrenar_core.teachers.cache.settings import CacheSettings, KindName
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.cache.wanting import wanted
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.reading import TextBatch
from entrenar_core.teachers.sentences import LiveSentences
from entrenar_core.teachers.texts import ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept of positions, and of layers if any are."""

    kind: Kind
    layers: Layers | None

    @property
    def costs(self) -> Costs:
        """Bytes."""
        return Costs(self.kind.bytes_per_position(), 0 if self.layers is None else self.layers.bytes_per_token())


class Asks(Protocol):
    """Who reads rows with a teacher, and gives what is kept of them."""

    @property
    def kind(self) -> Kind:
        """How it is kept."""
        ...

    def read(self, rows: Sequence[PlannedRow], texts: Sequence[str]) -> list[Arrays]:
        """Of a batch of a plan; `texts` are all that the plan means."""
        ...

    def of_batch(self, batch: Batch) -> list[Arrays]:
        """Of the rows of a batch, in their order."""
        ...

    def of_texts(self, texts: Sequence[str]) -> list[Arrays]:
        """Of whole texts, in their order."""
        ...


class Asked(Protocol):
    """A teacher that is at hand, wherever it runs. `model` is what a student may copy layers from."""

    @property
    def parameters(self) -> int | None:
        """Of its model, if that is known."""
        ...

    @property
    def model(self) -> Any:
        """Its model, if it is here."""
        ...

    def keeping(self, settings: CacheSettings) -> Keeping:
        """How it is kept; raises UsageError where it cannot be kept so."""
        ...

    def reader(self, keeping: Keeping) -> Asks:
        """Who asks it."""
        ...


@dataclass(frozen=True, slots=True)
class AskedTeacher:
    """A teacher whose model is here."""

    prepared: "Preparation"
    accelerator: Accelerator
    fitted: FittedTeacher

    @property
    def parameters(self) -> int:
        """As `Asked.parameters`."""
        return self.fitted.parameters

    @property
    def model(self) -> "PreTrainedModel | None":
        """As `Asked.model`."""
        return self.fitted.model

    def keeping(self, settings: CacheSettings) -> Keeping:
        """As `Asked.keeping`."""
        parts = self.prepared, self.accelerator, self.fitted, settings
        return Keeping(_kind(*parts), _layers(*parts))

    def reader(self, keeping: Keeping) -> Reader:
        """As `Asked.reader`."""
        says = None
        if self.prepared.teacher_reads_tokens:
            wants = Wants() if keeping.layers is None else keeping.layers.wants
            says = _live(self.prepared, self.accelerator, self.fitted).listening(wants)
        return Reader(self.prepared, self.accelerator, keeping.kind, keeping.layers, says, self.fitted.forward)


def require_kept_so(prepared: "Preparation", settings: CacheSettings) -> KindName:
    """The kind in which a teacher of this task is kept, if it can be, as far as that is known before it is loaded.

    Raises:
        UsageError: it cannot, or a setting would change nothing.
    """
    kinds = _kinds(prepared)
    kind = settings.kind or kinds[0]
    if kind not in kinds:
        raise UsageError(
            f"--kind {kind} is not for {_WHOSE[kinds[0]]}",
            f"take --kind {' or '.join(kinds)}" if len(kinds) > 1 else "leave --kind out",
        )
    wants = wanted(prepared)
    if wants is None:
        raise UsageError(
            "which layers the losses compare is chosen by looking at both models (`cka`)",
            "name the pairs of layers, or take another mapping",
        )
    _require_meant(kind, settings, wants)
    if kind == "sampled":
        _one_temperature(prepared)
    _require_numbers(prepared, settings)
    return kind


def _require_meant(kind: KindName, settings: CacheSettings, wants: Wants) -> None:
    """Every setting that was given changes something."""
    idle = {"--top-k": settings.top_k is not None and kind != "topk",
            "--samples": settings.samples is not None and kind != "sampled",
            "--precision": settings.precision is not None and kind != "hidden" and not wants.anything}  # fmt: skip
    for flag, given in idle.items():
        if given:
            raise UsageError(f"{flag} changes nothing of --kind {kind}", "leave it out")


def _require_numbers(prepared: "Preparation", settings: CacheSettings) -> None:
    if settings.top_k is not None and prepared.endpoint is not None:
        raise UsageError("--top-k says nothing of an endpoint", "set `teacher.top_logprobs`")
    if settings.samples is not None and not 0 < settings.samples <= MOST_SAMPLES:
        raise UsageError(f"{settings.samples} draws of a position", f"take 1 to {MOST_SAMPLES}")
    if settings.top_k is not None and prepared.vocabulary is not None and settings.top_k >= prepared.vocabulary:
        message = f"--top-k {settings.top_k:,} of {prepared.vocabulary:,} tokens leaves out none"
        raise UsageError(message, "lower it, or keep --kind hidden, from which all are known")


_WHOSE = {"hidden": "language models", "vectors": "a sentence encoder", "logits": "a classifier", "topk": "an endpoint"}


def _kinds(prepared: "Preparation") -> tuple[KindName, ...]:
    """How a teacher can be kept, the usual way first."""
    if prepared.endpoint is not None:
        return ("topk",)
    if prepared.vocabulary is not None:
        return ("hidden", "topk", "sampled")
    return ("vectors",) if prepared.task == EMBEDDING else ("logits",)


def _live(prepared: "Preparation", accelerator: Accelerator, loaded: FittedTeacher) -> LiveTeacher | LiveSentences:
    if prepared.task == EMBEDDING:
        return LiveSentences(loaded.reader, accelerator, torch.empty(0, 0), prepared.config.teacher.batch_size)
    return live_teacher(prepared, loaded, accelerator)


def _layers(
    prepared: "Preparation", accelerator: Accelerator, loaded: FittedTeacher, settings: CacheSettings
) -> Layers | None:
    """Those that the losses of the configuration compare, in the form that a row shows."""
    wants = wanted(prepared)
    assert wants is not None, "checked before it was loaded"
    if not wants.anything:
        return None
    batch = prepared.collator([next(iter(prepared.train_tokens))]).to(accelerator.device)
    said = _live(prepared, accelerator, loaded).listening(wants)(batch)
    assert said.record is not None, "it was asked for"
    return Layers.of(said.record, settings.precision or "bfloat16")


def _kind(prepared: "Preparation", accelerator: Accelerator, loaded: FittedTeacher, settings: CacheSettings) -> Kind:
    vocabulary, kind = prepared.vocabulary, settings.kind or _kinds(prepared)[0]
    if kind == "vectors":
        return Values(_width_of_vectors(prepared, accelerator, loaded), kind)
    if kind == "logits":
        return Values(len(prepared.label_names or ()), kind)
    assert vocabulary is not None, "checked before it was loaded"
    if kind == "topk":
        lowest, highest = temperatures_of(prepared.terms)
        return TopK(settings.top_k or min(100, vocabulary - 1), lowest, highest, vocabulary)
    if kind == "sampled":
        return Sampled(settings.samples or 50, _one_temperature(prepared), prepared.config.training.seed, vocabulary)
    output = live_teacher(prepared, loaded, accelerator).output
    if output is None:
        raise UsageError(
            f"the logits of {prepared.teacher.reference} are not made by one matrix of its last hidden states",
            "keep its likeliest tokens on disk: `entrenar-distill cache build --kind topk`",
        )
    return Hidden(settings.precision or "bfloat16", output.head.weight_VH.shape[1], output.head, vocabulary)


def _width_of_vectors(prepared: "Preparation", accelerator: Accelerator, loaded: FittedTeacher) -> int:
    ids = ids_of(prepared, prepared.questions.texts[:1])
    batch = TextBatch((0,), tuple(map(tuple, ids)), prepared.teacher_tokenizer.pad_token_id or 0)
    with torch.no_grad():
        return int(loaded.forward(**batch.inputs(accelerator.device)).shape[-1])


def _one_temperature(prepared: "Preparation") -> float:
    """Of all soft losses: draws are made at one."""
    found = {term.temperature for term in soft_terms(prepared.terms)}
    if len(found) != 1 or not isinstance(only := found.pop(), float | int):
        raise UsageError(
            "draws are made at one temperature, and the losses have several, or a schedule",
            "set one `distillation.temperature`, or keep --kind hidden or topk",
        )
    return float(only)
