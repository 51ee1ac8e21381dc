"""Asking a live teacher, and turning what it says into what is kept.

Shapes: B rows, T positions, N positions that count, C classes or the width of a sentence's vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.losses.targets import HeadRows, Logits
from entrenar_core.models.rows import Rows
from entrenar_core.teachers.cache.keys import keys_of
from entrenar_core.teachers.cache.kinds import Kind, TaughtRow
from entrenar_core.teachers.cache.layers import Layers
from entrenar_core.teachers.cache.planning import PlannedRow, collated, text_key
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.numbers import not_finite
from entrenar_core.teachers.reading import TextBatch
from entrenar_core.teachers.source import Said, TeacherSays
from entrenar_core.teachers.texts import ids_of

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

Forward = Callable[..., Tensor]
"""From `input_ids` and `attention_mask` (B, T) to what a teacher says of whole texts, (B, C)."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A teacher whose every word is kept: `says` of the student's tokens, `forward` of texts that it reads by itself;
    either may be missing where it is not asked.
    """

    prepared: "Preparation"
    accelerator: Accelerator
    kind: Kind
    layers: Layers | None
    says: TeacherSays | None
    forward: Forward | None

    def read(self, rows: Sequence[PlannedRow], texts: Sequence[str]) -> list[Arrays]:
        """What is kept of a batch of a plan; `texts` are all that the plan means.

        Raises:
            ModelError: the teacher says what are no numbers.
        """
        if rows[0].split == "texts":
            return self.of_texts([texts[row.index] for row in rows])
        return self.of_batch(collated(self.prepared, rows))

    @torch.no_grad()
    def of_batch(self, cpu_batch: Batch) -> list[Arrays]:
        """What is kept of the rows of a batch, in their order; raises as `read`."""
        assert self.says is not None, "a teacher that reads texts alone"
        batch = cpu_batch.to(self.accelerator.device)
        said = self.says(batch)
        values = _values(said)
        labels_N = self.prepared.counting.labels(batch) if said.vectors_BK is None else batch.labels
        self._require_finite(values)
        real_BT, start = batch.attention_mask_BT.bool(), 0
        kept: list[Arrays] = []
        for row, (key, positions) in enumerate(zip(keys_of(batch), batch.counted.tolist(), strict=True)):
            places = slice(start, start + positions)
            arrays = dict(self.kind.kept(TaughtRow(_part(values, places), labels_N[places], key)))
            if self.layers is not None:
                assert said.record is not None, "the layers were asked for"
                arrays |= self.layers.kept(said.record, row, real_BT[row])
            kept.append(arrays)
            start += positions
        return kept

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> list[Arrays]:
        """What is kept of whole texts, in their order; raises as `read`."""
        assert self.forward is not None, "a teacher that reads the student's tokens alone"
        ids = ids_of(self.prepared, texts)
        pad = self.prepared.teacher_tokenizer.pad_token_id or 0
        batch = TextBatch(tuple(range(len(ids))), tuple(map(tuple, ids)), pad)
        with self.accelerator.autocast():
            values = Logits(self.forward(**batch.inputs(self.accelerator.device)))
        self._require_finite(values)
        no_label_1 = torch.tensor([-100])
        return [
            self.kind.kept(TaughtRow(_part(values, slice(row, row + 1)), no_label_1, text_key(row_ids)))
            for row, row_ids in enumerate(ids)
        ]

    def _require_finite(self, values: Rows) -> None:
        numbers = values.hidden_NH if isinstance(values, HeadRows) else values.logits_NV
        if not numbers.isfinite().all():
            raise not_finite(self.prepared, "hidden states" if isinstance(values, HeadRows) else "logits or vectors")


def _values(said: Said) -> Rows:
    """The vectors of sentences are taken like the logits of a classifier."""
    if said.vectors_BK is not None:
        return Logits(said.vectors_BK)
    assert isinstance(said.rows, Logits | HeadRows), "a live teacher says all it knows"
    return said.rows


def _part(said: Rows, places: slice) -> Rows:
    if isinstance(said, HeadRows):
        return HeadRows(said.hidden_NH[places], said.head, said.vocabulary)
    return Logits(said.logits_NV[places])
