"""Teachers: live ones, which read the batch, and caches, which say as much as they would. What they say has the shapes
and dtypes of what is read from a cache, and any values: a stage decides whether there are values at all.

Shapes: B rows, T positions, N positions that count, K teacher's width, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from entrenar_core.data.collating import Batch
from entrenar_core.losses.head import Head
from entrenar_core.losses.sparse import SampledRows, TopKRows
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.memory.jobs import CachedSignals, Teaching, TrainingJob
from entrenar_core.memory.surroundings import SketchedRun
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.recording import Record
from entrenar_core.models.sentences import SentenceEncoder
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.ensemble import AveragedTeachers
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.sentences import LiveSentences, PrecomputedSentences
from entrenar_core.teachers.signals import Signals, Vectors, Whole
from entrenar_core.teachers.source import Said, TeacherSays

if TYPE_CHECKING:
    from entrenar_core.memory.steps import Layers, Stage


def saying(job: TrainingJob, run: SketchedRun, stage: "Stage", layers: Sequence["Layers | None"]) -> tuple[Any, int]:
    """What says what teachers say, None without teachers, and how many parameters they have."""
    made = [
        _one(one, number, run, stage, chosen)
        for number, (one, chosen) in enumerate(zip(job.teachers, layers, strict=True), start=1)
    ]
    parameters = sum(count for _, count in made)
    if len(made) < 2:
        return (made[0][0] if made else None), parameters
    with stage.mode:
        weights_M = torch.ones(len(made)) / len(made)
    sources = [source for source, _ in made]
    return AveragedTeachers(sources, weights_M, run.vocabulary, confidence=False), parameters


def _one(teaching: Teaching, number: int, run: SketchedRun, stage: "Stage", layers: "Layers | None") -> tuple[Any, int]:
    if teaching.cached is not None:
        says = CachedSays(teaching.cached, teaching, run, stage)
        return (CachedVectors(says) if run.task == EMBEDDING else says), 0
    model, watch, parameters = stage.model(teaching.model, number, layers, _frozen)
    watch.phase = "teacher"
    return live(model, run, stage, teaching), parameters


def _frozen(model: PreTrainedModel) -> nn.Module:
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def live(model: Any, run: SketchedRun, stage: "Stage", teaching: Teaching) -> LiveTeacher | LiveSentences:
    """A teacher that reads the batch."""
    if run.task == EMBEDDING:
        with stage.mode:
            judged_NK = torch.empty(1, model.config.hidden_size)
        return LiveSentences(SentenceEncoder(model, "mean"), run, judged_NK, teaching.batch_size)
    return LiveTeacher(model, run, run.counting, run.output_layer(model), teaching.batch_size)


class CachedSays:
    """A cache that has every row."""

    def __init__(self, cached: CachedSignals, teaching: Teaching, run: SketchedRun, stage: "Stage") -> None:
        self.cached, self.run, self.stage = cached, run, stage
        config = teaching.model.config.get_text_config()
        self.width = int(getattr(config, "hidden_size", 0))
        self.head: Head | None = None
        with stage.mode:
            if cached.kind == "hidden" and run.vocabulary is not None:
                self.head = Head(torch.ones(int(config.vocab_size), self.width))
                stage.tracking.note(self.head.weight_VH, "cache")
            if cached.held_bytes:
                self.held = torch.ones(cached.held_bytes, dtype=torch.uint8)
                stage.tracking.note(self.held, "cache")
            self.judged_NK = torch.empty(1, self.width)

    @property
    def signals(self) -> Signals:
        """All that may be asked of it, which was checked where it was opened."""
        known = Vectors() if self.run.task == EMBEDDING else Whole()
        return Signals("the cache", known, None, True, "any", "float32", "")

    def rows(self, batch: Batch) -> Targets:
        """What a teacher said of the positions that count."""
        positions = self.run.counted(len(batch.rows_B))
        vocabulary = self.run.vocabulary or int(self.run.job.student.config.num_labels)
        kept = self.cached.count
        if self.head is not None:
            return HeadRows(torch.ones(positions, self.width), self.head, vocabulary)
        if self.cached.kind == "topk":
            tokens_NK = torch.zeros(positions, kept, dtype=torch.int32)
            log_p_NK = torch.full((positions, kept), -5.0)
            return TopKRows(tokens_NK, log_p_NK, torch.full((positions, 1), -3.0), (0.5,), vocabulary)
        if self.cached.kind == "sampled":
            tokens_NK = torch.zeros(positions, kept, dtype=torch.int32)
            drawn = torch.ones(positions, kept), torch.ones(positions), torch.ones(positions, dtype=torch.int32)
            return SampledRows(tokens_NK, *drawn, 2.0, vocabulary)
        return Logits(torch.ones(positions, vocabulary))

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training."""

        def says(batch: Batch) -> Said:
            shape = *batch.input_ids_BT.shape, self.width
            record = Record({layer: torch.ones(shape) for layer in wants.hidden if layer >= 0})
            if self.run.task == EMBEDDING:
                return Said(None, record, torch.ones(len(batch.rows_B), self.width))
            return Said(self.rows(batch), record)

        return says


class CachedVectors(PrecomputedSentences):
    """The same of a sentence encoder."""

    def __init__(self, says: CachedSays) -> None:
        self.says, self.judged_NK = says, says.judged_NK

    @property
    def signals(self) -> Signals:
        """Those of the cache."""
        return self.says.signals

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training."""
        return self.says.listening(wants)
