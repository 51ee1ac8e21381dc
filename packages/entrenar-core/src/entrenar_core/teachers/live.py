"""A teacher that is a model here, and reads what the student reads."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from entrenar_core.data.collating import Batch
from entrenar_core.losses.targets import HeadRows, Logits
from entrenar_core.models.onnx_model import OnnxModel
from entrenar_core.models.output_layer import OutputLayer
from entrenar_core.models.placing import placed
from entrenar_core.models.recording import Record, recording
from entrenar_core.models.rows import Counting, Rows, read_rows
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.promises import of_graph, of_model
from entrenar_core.teachers.signals import Signals
from entrenar_core.teachers.source import Said, TeacherSays


class Place(Protocol):
    """Where a model computes, and at which autocast: an `Accelerator` says so."""

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """In which it computes."""
        ...


class LiveTeacher:
    """A model that reads the student's batches, at the same autocast as the student; of large ones, `batch_size` rows
    at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Place,
        counting: Counting,
        output: OutputLayer | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = placed(model, accelerator.device).eval().requires_grad_(False)
        self.accelerator, self.counting, self.output = accelerator, counting, output
        self.batch_size = batch_size

    @property
    def signals(self) -> Signals:
        """What it can say."""
        return signals_of(self.model)

    @torch.no_grad()
    def rows(self, batch: Batch) -> Rows:
        """What it says of the rows or positions that count."""
        with self.accelerator.autocast():
            return joined([read_rows(self.model, part, self.counting, self.output) for part in self._parts(batch)])

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training: also what passes in the layers that are wanted."""

        def says(batch: Batch) -> Said:
            said, records = [], []
            for part in self._parts(batch):
                with recording(self.model, **wants.arguments()) as record:
                    said.append(self.rows(part))
                records.append(record)
            return Said(joined(said), Record.joined(records, batch.input_ids_BT.device))

        return says if wants.anything else lambda batch: Said(self.rows(batch))

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        return batch.parts(self.batch_size or len(batch.rows_B))


def joined(parts: Sequence[Rows]) -> Rows:
    """What was said of the parts of a batch, as if it had been read at once."""
    first, *others = parts
    if not others:
        return first
    if isinstance(first, HeadRows):
        hidden_NH = torch.cat([part.hidden_NH for part in parts if isinstance(part, HeadRows)])
        return HeadRows(hidden_NH, first.head, first.vocabulary)
    return Logits(torch.cat([part.logits_NV for part in parts if isinstance(part, Logits)]))


def signals_of(model: nn.Module, *, embeds: bool = False) -> Signals:
    """What a model can say, in the precision of its weights."""
    if any(isinstance(part, OnnxModel) for part in model.modules()):
        return of_graph(embeds=embeds)
    weights = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return of_model(str(next(weights, torch.float32)).removeprefix("torch."), embeds=embeds)
