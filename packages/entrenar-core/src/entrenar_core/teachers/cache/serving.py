"""A run's teacher from a cache: on disk, as `cache build` left it, or in memory, filled by the teacher before training.

The teacher itself is loaded where the student is made of it, where rows that the cache lacks are to be read live, or
where memory is to be filled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from entrenar_core.config.teachers import CacheUse
from entrenar_core.errors import UsageError
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.reports import Scores
from entrenar_core.teachers.assembly import precomputed
from entrenar_core.teachers.cache.keeping import Asked, Asks, Keeping
from entrenar_core.teachers.cache.opening import OpenCache, open_cache
from entrenar_core.teachers.cache.planning import plan_cache, planned_rows
from entrenar_core.teachers.cache.scoring import score_cached
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.cache.store import MemoryStore
from entrenar_core.teachers.cache.teacher import CachedSentences, CachedTeacher
from entrenar_core.teachers.cache.texts import kept_of_texts
from entrenar_core.teachers.cache.wanting import wanted
from entrenar_core.teachers.promises import of_cache
from entrenar_core.teachers.ready import ReadyTeacher, sound
from entrenar_core.teachers.sentences import SentenceTeacher, precomputed_sentences, require_numbers
from entrenar_core.teachers.source import TeacherSource
from entrenar_core.teachers.texts import texts_of
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.evaluation import OnBatch
from entrenar_core.training.sentence_evaluation import score_sentences
from entrenar_core.units import size

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

Load = Callable[[], Asked]


def cached_teacher(
    prepared: "Preparation", accelerator: Accelerator, callbacks: Sequence[Callback], load: Load, on_batch: OnBatch
) -> ReadyTeacher:
    """The teacher that `teacher.cache` asks for; `load` is called where its model is needed.

    Raises:
        UsageError: what memory would have to hold is more than it may.
        DataError, ConfigError: the cache is damaged, or lacks what is asked of it.
        ModelError: the teacher cannot be loaded, or says what are no numbers.
    """
    use, live = prepared.config.teacher.cache, _Live(load)
    assert use is not None
    if use.dir is None:
        return _in_memory(prepared, use, accelerator, callbacks, live, on_batch)
    opened, manifest = open_cache(use.dir, accelerator.device)
    tell(callbacks, f"the teacher is read from {use.dir}: {of_cache(manifest.kind, manifest.wants)}")
    reader = _of_what_is_missing(prepared, use, opened, live, callbacks)
    if prepared.copied and prepared.config.student.init_from is not None:
        _ = live.teacher
    source, scores = serve(prepared, opened, accelerator, on_batch, reader)
    return ReadyTeacher(source, scores, manifest.teacher["parameters"], live.model)


def serve(
    prepared: "Preparation",
    opened: OpenCache,
    accelerator: Accelerator,
    on_batch: OnBatch,
    reader: Asks | None = None,
) -> tuple[TeacherSource | SentenceTeacher, Scores]:
    """A teacher of what was kept, and its scores on the evaluation rows; `reader` reads what is not.

    Raises:
        DataError: a row is damaged, or not there and nobody reads it.
        ModelError: what was kept are no numbers.
    """
    batch_size = prepared.teacher_batch_size

    def read(texts: Sequence[str]) -> torch.Tensor:
        of_texts = None if reader is None else reader.of_texts
        return kept_of_texts(prepared, opened.store, opened.kind, texts, of_texts, batch_size=batch_size)

    of_batch = None if reader is None else reader.of_batch
    if prepared.task == EMBEDDING and prepared.teacher_reads_tokens:
        judged_NK = read(prepared.questions.texts)
        require_numbers(judged_NK, prepared)
        source = CachedSentences(opened.store, opened.kind, opened.layers, judged_NK, of_batch)
        return source, score_sentences(judged_NK, prepared.questions)
    if prepared.task == EMBEDDING:
        return precomputed_sentences(prepared, read)
    if not prepared.teacher_reads_tokens:
        teacher, scores = precomputed(prepared, read)
        return teacher, sound(scores, prepared)
    cached = CachedTeacher(opened.store, opened.kind, opened.layers, of_batch)
    return cached, sound(score_cached(prepared, cached, accelerator, on_batch), prepared)


@dataclass(frozen=True)
class _Live:
    """The teacher itself, loaded when it is first asked for."""

    load: Load

    @cached_property
    def teacher(self) -> Asked:
        return self.load()

    @property
    def model(self) -> Any:
        """What a student may copy, if it was loaded."""
        return self.teacher.model if "teacher" in self.__dict__ else None


def _of_what_is_missing(
    prepared: "Preparation",
    use: CacheUse,
    opened: OpenCache,
    live: _Live,
    callbacks: Sequence[Callback],
) -> Asks | None:
    """Who reads the rows that a folder lacks, if there are any. Of a stream, none is known before it is met."""
    if use.missing == "refuse":
        return None
    if not prepared.config.dataset.streaming:
        missing = sum(1 for row in planned_rows(prepared) if opened.store.place(row.key) is None)
        if not missing:
            return None
        tell(callbacks, f"{missing:,} rows are not in {use.dir}: the teacher reads them whenever they are met")
    return live.teacher.reader(Keeping(opened.kind, opened.layers))


def _in_memory(
    prepared: "Preparation",
    use: CacheUse,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    live: _Live,
    on_batch: OnBatch,
) -> ReadyTeacher:
    """A cache that is filled before training, in the batches of a build, and gone with the run.

    So a run that is resumed finds what the run before it had, to the bit.
    """
    if wanted(prepared) is None:
        raise UsageError(
            "`teacher.cache.memory`: which layers the losses compare is chosen by looking at both models (`cka`)",
            "name the pairs of layers, or take another mapping",
        )
    settings = CacheSettings(precision=use.precision)
    keeping = live.teacher.keeping(settings)
    batch_size = prepared.teacher_batch_size
    plan, limit = plan_cache(prepared, keeping.costs, batch_size=batch_size, shard_bytes=1), use.memory or 0
    if plan.bytes > limit:
        raise UsageError(
            f"what the teacher says of all rows takes about {size(plan.bytes)}, and `teacher.cache.memory` is "
            f"{size(limit)}",
            "raise it, set `teacher.cache.precision` to bfloat16 or int8, or keep it on disk: "
            "`entrenar-distill cache build`",
        )
    reader, texts = live.teacher.reader(keeping), texts_of(prepared)
    kept: dict[bytes, Arrays] = {}
    batches = [batch for shard in plan.shards for batch in shard]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    for done, batch in enumerate(mine):
        on_batch(done, len(mine))
        kept |= zip((row.key for row in batch), reader.read(batch, texts), strict=True)
    kept = dict(gather_object(list(kept.items())))
    opened = OpenCache(MemoryStore(kept), keeping.kind, keeping.layers)
    source, scores = serve(prepared, opened, accelerator, on_batch)
    tell(callbacks, f"the teacher is read from memory, {size(plan.bytes)}: {source.signals}")
    return ReadyTeacher(source, scores, live.teacher.parameters, live.model)
