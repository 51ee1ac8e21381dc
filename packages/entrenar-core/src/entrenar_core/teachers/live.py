"""A teacher that is a model here, and reads what the student reads."""

import torch
from accelerate import Accelerator
from torch import nn

from entrenar_core.data.collating import Batch
from entrenar_core.models.output_layer import OutputLayer
from entrenar_core.models.recording import recording
from entrenar_core.models.rows import Counting, Rows, read_rows
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.source import Said, TeacherSays


class LiveTeacher:
    """A model that reads the student's batches, at the same autocast as the student."""

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, counting: Counting, output: OutputLayer | None = None
    ) -> None:
        self.model = model.to(accelerator.device).eval().requires_grad_(False)
        self.accelerator, self.counting, self.output = accelerator, counting, output

    @torch.no_grad()
    def rows(self, batch: Batch) -> Rows:
        """What it says of the rows or positions that count."""
        with self.accelerator.autocast():
            return read_rows(self.model, batch, self.counting, self.output)

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training: also what passes in the layers that are wanted."""

        def says(batch: Batch) -> Said:
            with recording(self.model, **wants.arguments()) as record:
                return Said(self.rows(batch), record)

        return says if wants.anything else lambda batch: Said(self.rows(batch))
