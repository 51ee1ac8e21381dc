"""What a training knows besides its models, where there is a job and no run: as `make_objective` asks for it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from entrenar_core.architectures import Architecture, architecture_of
from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Batch
from entrenar_core.data.labels import IGNORED
from entrenar_core.memory.jobs import MixedPrecision, TrainingJob
from entrenar_core.models.heads import CAUSAL_LM, CLASSIFICATION, EMBEDDING, LANGUAGE, TAGGING
from entrenar_core.models.output_layer import OutputLayer, untried_output_layer
from entrenar_core.models.rows import Counting
from entrenar_core.models.sentence_files import Pool

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: MixedPrecision) -> AbstractContextManager[object]:
    """In which student and teacher compute."""
    return nullcontext() if precision == "no" else torch.autocast("cpu", dtype=_DTYPES[precision])


@dataclass(frozen=True, slots=True)
class SketchedRun:
    """A run without data: what its objective and its live teachers ask of it."""

    job: TrainingJob

    @property
    def device(self) -> torch.device:
        """Where tensors without data say that they are."""
        return torch.device("cpu")

    def autocast(self) -> AbstractContextManager[object]:
        """In which models compute."""
        return autocast(self.job.mixed_precision)

    @property
    def seed(self) -> int:
        """Of weights that losses have of their own."""
        return TrainingConfig().seed

    @property
    def task(self) -> str:
        """Of the student."""
        return self.job.student.task

    @property
    def over_tokens(self) -> bool:
        """Whether the models predict tokens."""
        return self.task in LANGUAGE

    @property
    def vocabulary(self) -> int | None:
        """Tokens that all heads have."""
        if not self.over_tokens:
            return None
        models = (self.job.student, *(one.model for one in self.job.teachers))
        return min(int(model.config.get_text_config().vocab_size) for model in models)

    @property
    def counting(self) -> Counting:
        """What of a batch counts."""
        return Counting(shifted=self.task == CAUSAL_LM, vocabulary=self.vocabulary)

    @property
    def poolings(self) -> tuple[Pool, Pool] | None:
        """As many numbers, whichever vector is a sentence's."""
        return ("mean", "mean") if self.task == EMBEDDING else None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """As many classes as the head has."""
        classes = int(self.job.student.config.num_labels)
        return None if self.task == EMBEDDING else tuple(map(str, range(classes)))

    @property
    def teacher_architecture(self) -> Architecture:
        """Of a teacher whose model is not at hand."""
        return architecture_of(self.job.teachers[0].model.config.to_dict())

    def output_layer(self, model: nn.Module) -> OutputLayer | None:
        """Where a language model makes its logits, unless all are wanted at once."""
        if self.job.all_logits or not self.over_tokens:
            return None
        return untried_output_layer(cast(PreTrainedModel, model))

    def sample(self) -> Batch:
        """Some rows, on which layers would be compared."""
        return self.batch(2)

    def batch(self, rows: int) -> Batch:
        """Rows of the longest length, all of whose tokens are real."""
        length = self.job.length
        ids_BT = torch.zeros(rows, length, dtype=torch.long)
        mask_BT = torch.ones_like(ids_BT)
        numbers_B = torch.arange(rows)
        if self.task in (CLASSIFICATION, EMBEDDING):
            labels_B = torch.zeros(rows, dtype=torch.long)
            return Batch(ids_BT, mask_BT, labels_B, torch.ones(rows, dtype=torch.bool), numbers_B)
        targets_BT = torch.ones(rows, length, dtype=torch.bool)
        if self.task == CAUSAL_LM:
            targets_BT[:, 0] = False
        labels_BT = torch.where(targets_BT, 0, IGNORED)
        return Batch(ids_BT, mask_BT, labels_BT, targets_BT, numbers_B)

    def counted(self, rows: int) -> int:
        """How many positions of so many rows losses count."""
        if self.task in (CLASSIFICATION, EMBEDDING):
            return rows
        full = rows * (self.job.length - (self.task == CAUSAL_LM))
        if self.job.counted is None or self.task == TAGGING:
            return full
        return min(self.job.counted, full)
