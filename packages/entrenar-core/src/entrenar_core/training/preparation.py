"""What a run is made of: models, tokenizers, rows and their tokens, as preparing.py finds them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.adapters import AnyAdapter
from entrenar_core.config.desugaring import Term, terms_of
from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.config.one_teacher import OneTeacher, needs_weights
from entrenar_core.config.schema import DistillationConfig, Task
from entrenar_core.config.teachers import (
    EndpointTeacher,
    MovingAverage,
    MovingAverageTeacher,
)
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.sources import Rows
from entrenar_core.models.heads import (
    CAUSAL_LM,
    EMBEDDING,
    LANGUAGE,
)
from entrenar_core.models.sentence_files import Pool
from entrenar_core.models.token_map import TokenMap
from entrenar_core.models.vocabulary import VocabularyFinding
from entrenar_core.teachers.cache.manifest import read_manifest
from entrenar_core.teachers.endpoint.settings import EndpointSettings, endpoint_settings
from entrenar_core.training.requirements import (
    unselective,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from entrenar_core.architectures import Architecture
    from entrenar_core.models.output_layer import OutputLayer
    from entrenar_core.models.rows import Counting
    from entrenar_core.training.sentence_evaluation import Questions

_TRIED = 16
"""Tokens on which an output layer is tried."""
_SAMPLED = 64
"""Rows that are looked at before training."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """The models' files, the tokenizers, the rows and their tokens.

    `teacher_reads_tokens`: teacher and student share a vocabulary, and the teacher reads the student's batches. Else
    it reads the texts by itself, once, before training, and `finding`, how the vocabularies fit, is None. `poolings`
    are those of teacher and student as sentence encoders.

    `given` is the configuration as it was given, and `config` the same with one teacher that is a model, and with the
    losses of a sentence encoder listed. Of several teachers, `members` has one preparation for each, which share all
    but what is said of the teacher; this is that of the first one, which alone is `copied`, if the student is made of
    layers of its teacher. `fewest_tokens` is how many all of them have. Of a fine-tuning (`tuning`) the model stands in
    for the teacher, and nobody asks it.
    """

    given: DistillationConfig
    config: OneTeacher
    task: Task
    teacher: ModelArtifact
    student: ModelArtifact | None
    teacher_tokenizer: "PreTrainedTokenizerBase"
    tokenizer: "PreTrainedTokenizerBase"
    rows: Rows
    train_tokens: Any
    eval_tokens: Any
    collator: Collator
    teacher_reads_tokens: bool
    finding: VocabularyFinding | None
    poolings: tuple[Pool, Pool] | None = None
    members: "tuple[Preparation, ...]" = ()
    fewest_tokens: int | None = None
    copied: bool = True
    tuning: FineTuneConfig | None = None

    @property
    def adapter(self) -> AnyAdapter | None:
        """What trains in place of all weights, if anything does."""
        return self.config.student.adapter if self.tuning is None else self.tuning.adapter

    @property
    def moving_average(self) -> MovingAverage | None:
        """How the student's own average teaches, if it does: the teacher's files are then the student's."""
        teacher = self.given.teacher
        return teacher.moving_average if isinstance(teacher, MovingAverageTeacher) else None

    @property
    def endpoint(self) -> EndpointSettings | None:
        """The server that teaches, if one does: the teacher's files are then the student's."""
        teacher = self.given.teacher
        return endpoint_settings(teacher) if isinstance(teacher, EndpointTeacher) else None

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.config.training.seed

    @property
    def teacher_architecture(self) -> "Architecture":
        """Of the teacher, or of the first of several."""
        return self.teacher.architecture

    @property
    def teacher_batch_size(self) -> int:
        """Rows that the teacher reads at once, where batches are its own."""
        return self.config.teacher.batch_size or self.config.training.evaluation_batch_size

    @property
    def teacher_name(self) -> str:
        """What reports call the teacher."""
        if self.moving_average is not None:
            return f"moving average of {self.teacher.reference}"
        if self.endpoint is not None:
            return f"{self.endpoint.model} at {self.endpoint.url}"
        return " + ".join(str(one.teacher.reference) for one in self.members or (self,))

    @property
    def teacher_bytes(self) -> int | None:
        """Of the weight files of all teachers; None where they are not known."""
        total = sum(one.teacher.weight_bytes for one in self.members or (self,))
        return None if self.endpoint is not None or not total else total

    @property
    def over_tokens(self) -> bool:
        """Whether the models predict tokens."""
        return self.task in LANGUAGE

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The classes that the models tell apart, None where they tell none apart."""
        return None if self.task == EMBEDDING else self.rows.label_names

    @property
    def questions(self) -> "Questions":
        """What sentence encoders are judged by; raises as `questions_of`."""
        from entrenar_core.training.sentence_evaluation import questions_of

        rows = self.rows.evaluation
        labels = list(rows["label"]) if "label" in rows.column_names else None
        return questions_of(list(rows["text"]), labels, self.config.dataset.label_column)

    @property
    def vocabulary(self) -> int | None:
        """How many columns of logits stand for tokens; None for a classifier. Heads may be padded beyond them."""
        if not self.over_tokens or self.finding is None:
            return None
        return min(self.finding.length, self.fewest_tokens or self.finding.length)

    @property
    def num_ids(self) -> int:
        """Up to the highest id of the student's tokenizer. There may be fewer tokens: some have gaps between ids."""
        return 1 + max(map(int, self.tokenizer.get_vocab().values()))

    @property
    def token_map(self) -> TokenMap | None:
        """From the student's ids to the teacher's, where both have the same tokens in another order."""
        ids = self.finding.teacher_ids if self.finding else None
        return None if ids is None else TokenMap.of(ids)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not stop the run, and may spoil it."""
        unseen = (
            f"the weights of {one.teacher.reference} are not here, and were not compared with those of its cache"
            for one in self.members or (self,)
            if not one.teacher.knows_weights
        )
        return (*(self.finding.warnings() if self.finding else ()), *unselective(self.config, self.rows), *unseen)

    @property
    def counting(self) -> "Counting":
        """What of a batch counts."""
        from entrenar_core.models.rows import Counting

        return Counting(shifted=self.task == CAUSAL_LM, vocabulary=self.vocabulary)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses of the student's training."""
        return terms_of(self.config.distillation)

    def sample(self) -> Batch:
        """The first training rows, for what is decided by looking at the models before training."""
        return self.collator(list(itertools.islice(iter(self.train_tokens), _SAMPLED)))

    def output_layer(self, model: "nn.Module", device: "torch.device | None" = None) -> "OutputLayer | None":
        """Where a language model makes its logits, if they can be made in tiles; tried on an evaluation row. Its inputs
        are on `device`, or on the model's own.
        """
        from transformers import PreTrainedModel

        from entrenar_core.models.output_layer import output_layer_of
        from entrenar_core.models.token_map import MappedTeacher

        inner = model.model if isinstance(model, MappedTeacher) else model
        if self.vocabulary is None or not isinstance(inner, PreTrainedModel):
            return None
        batch = self.collator([self.eval_tokens[0]]).to(device or inner.device)
        ids_BT, mask_BT = batch.input_ids_BT[:, :_TRIED], batch.attention_mask_BT[:, :_TRIED]
        if inner is model or self.token_map is None:
            return output_layer_of(inner, ids_BT, mask_BT)
        found = output_layer_of(inner, self.token_map.to_teacher(ids_BT), mask_BT)
        return None if found is None else found.in_order_of(self.token_map)

    def _caches(self) -> Iterator[tuple[str, str]]:
        """What is in the folders of caches."""
        for place, one in enumerate(self.members or (self,), start=1):
            use = one.config.teacher.cache
            if use is not None and use.dir is not None:
                yield ("cache" if place == 1 else f"cache {place}"), read_manifest(use.dir).fingerprint()

    def _fingerprint(self) -> str:
        """SHA-256 of the teacher; of weights that are not read, which may come and go, as its cache has it."""
        if needs_weights(self.config, copied=self.copied):
            return self.teacher.fingerprint()
        assert self.config.teacher.cache is not None
        assert self.config.teacher.cache.dir is not None, "which says all"
        return f"cached: {read_manifest(self.config.teacher.cache.dir).identity['weights']}"

    def fingerprints(self) -> Mapping[str, str | None]:
        """SHA-256 of all that the run is made from."""
        several = {f"teacher {place}": one._fingerprint() for place, one in enumerate(self.members[1:], start=2)}
        several |= dict(self._caches())
        return {
            "teacher": self._fingerprint() if self.endpoint is None else f"served: {self.endpoint.model}",
            **several,
            "student": self.student.fingerprint() if self.student else None,
            "data": self.rows.fingerprint,
        }
