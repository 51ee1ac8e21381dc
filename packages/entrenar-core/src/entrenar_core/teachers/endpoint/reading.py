"""Keeping what a server says: for caches on disk and in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.data.collating import Batch
from entrenar_core.teachers.cache.keeping import Keeping
from entrenar_core.teachers.cache.kinds import Kind
from entrenar_core.teachers.cache.planning import PlannedRow, collated
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.source import arrays_of, kind_of, questions_of

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class EndpointReader:
    """As `Reader`, of a server."""

    prepared: "Preparation"
    endpoint: Endpoint
    kind: Kind

    def read(self, rows: Sequence[PlannedRow], texts: Sequence[str]) -> list[Arrays]:
        """What is kept of a batch of a plan; raises as `Endpoint.answers`."""
        assert not texts, "a language model reads the student's tokens"
        return self.of_batch(collated(self.prepared, rows))

    def of_batch(self, batch: Batch) -> list[Arrays]:
        """What is kept of the rows of a batch, in their order; raises as `Endpoint.answers`."""
        questions = questions_of(batch)
        return [arrays_of(answer, self.endpoint.vocabulary) for _, answer in self.endpoint.answers(questions)]

    def of_texts(self, texts: Sequence[str]) -> list[Arrays]:
        """None: it is asked by tokens."""
        assert not texts, "a language model reads the student's tokens"
        return []


@dataclass(frozen=True, slots=True)
class AskedEndpoint:
    """As `AskedTeacher`, of a server."""

    prepared: "Preparation"
    endpoint: Endpoint
    parameters: int | None = None
    model: Any = None

    def keeping(self, settings: CacheSettings) -> Keeping:
        """How its answers are kept."""
        assert settings.kind in (None, "topk"), "checked before it was asked"
        return Keeping(kind_of(self.endpoint), None)

    def reader(self, keeping: Keeping) -> EndpointReader:
        """Who asks it."""
        return EndpointReader(self.prepared, self.endpoint, keeping.kind)
