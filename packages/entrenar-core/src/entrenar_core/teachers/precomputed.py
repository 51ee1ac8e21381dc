"""A classifier as a teacher: its logits are few, so they are computed once for all rows, before training.

The teacher reads the texts with its own tokenizer, in batches fixed by the texts alone, so that the logits have the
same bits whatever the student's batches are and wherever a run is resumed.

Shapes: N texts, C classes.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entrenar_core.data.collating import Batch
from entrenar_core.losses.targets import Logits
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.promises import of_texts
from entrenar_core.teachers.reading import in_order, text_batches
from entrenar_core.teachers.signals import Signals
from entrenar_core.teachers.source import Said, TeacherSays
from entrenar_core.training.evaluation import OnBatch


class ByRow:
    """Numbers by row number."""

    def __init__(self, rows: Sequence[int], values_NC: Tensor) -> None:
        self.place = torch.full((max(rows, default=-1) + 1,), -1)
        self.place[torch.tensor(rows, dtype=torch.long)] = torch.arange(len(rows))
        self.values_NC = values_NC

    def of(self, batch: Batch) -> Tensor:
        """Those of a batch, (B, C), on its device."""
        places_B = self.place[batch.rows_B.cpu()]
        assert (places_B >= 0).all(), "a row that the teacher has not read"
        return self.values_NC[places_B].to(batch.rows_B.device)


class PrecomputedTeacher:
    """Logits by row number."""

    def __init__(self, rows: Sequence[int], logits_NC: Tensor) -> None:
        self.logits = ByRow(rows, logits_NC)

    @property
    def signals(self) -> Signals:
        """What it can say."""
        return of_texts()

    def rows(self, batch: Batch) -> Logits:
        """What it says of the rows that count, on the device of the batch."""
        return Logits(self.logits.of(batch)[batch.targets])

    def listening(self, wants: Wants) -> TeacherSays:
        """What it says in training, where nothing can be wanted of its layers: it has read texts, not these tokens."""
        assert not wants.anything, "it has none"
        return lambda batch: Said(self.rows(batch))


@torch.no_grad()
def classify(
    forward: Callable[..., Tensor],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_length: int,
    accelerator: Accelerator,
    on_batch: OnBatch,
) -> Tensor:
    """Logits (N, C) in 32 bits, in the order of `texts`; the processes share the work. `forward` takes ids and mask
    (B, T); `on_batch` is told how many batches are done, and of how many.
    """
    batches = text_batches(tokenizer, texts, batch_size=batch_size, max_length=max_length)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    read = []
    for done, batch in enumerate(mine):
        on_batch(done, len(mine))
        with accelerator.autocast():
            read.append((batch, forward(**batch.inputs(accelerator.device)).cpu()))
    return in_order(gather_object(read))
