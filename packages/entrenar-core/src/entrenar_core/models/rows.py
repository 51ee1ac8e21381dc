"""What a model says of the rows or positions of a batch that count: logits, or what they are made from.

Shapes: B rows, T positions, H width, V classes or vocabulary, N rows or positions that count.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from entrenar_core.data.collating import Batch
from entrenar_core.losses.targets import HeadRows, Logits
from entrenar_core.models.calling import logits_of
from entrenar_core.models.output_layer import OutputLayer, hidden_states


@dataclass(frozen=True, slots=True)
class Counting:
    """Which positions of a batch count, and how many tokens there are.

    `shifted`: position t − 1 predicts token t, as in a causal language model. `vocabulary` is how many ids the
    tokenizer has, None for classes: heads are often padded beyond them, to different widths.
    """

    shifted: bool
    vocabulary: int | None = None

    def rows(self, values: Tensor, batch: Batch) -> Tensor:
        """Of (B, …) or (B, T, …), what counts, (N, …)."""
        if not self.shifted:
            return values[batch.targets]
        return values[:, :-1][batch.targets[:, 1:]]

    def labels(self, batch: Batch) -> Tensor:
        """The label of each row, (N,)."""
        return batch.labels[:, 1:][batch.targets[:, 1:]] if self.shifted else batch.labels[batch.targets]

    def weights(self, batch: Batch) -> Tensor | None:
        """The weight of each row, (N,), where the batch has weights."""
        if batch.weights is None:
            return None
        return batch.weights[:, 1:][batch.targets[:, 1:]] if self.shifted else batch.weights[batch.targets]


Rows = Logits | HeadRows
"""Of which all is known."""


def read_rows(model: nn.Module, batch: Batch, counting: Counting, output: OutputLayer | None = None) -> Rows:
    """What a model says of a batch. With its `output` layer, no logits are made before they are asked for."""
    if output is None:
        logits = logits_of(model, batch.input_ids_BT, batch.attention_mask_BT, batch.packed)
        return Logits(counting.rows(logits[..., : counting.vocabulary], batch))
    hidden_BTH = hidden_states(model, output, batch.input_ids_BT, batch.attention_mask_BT, batch.packed)
    vocabulary = counting.vocabulary or output.module.out_features
    return HeadRows(counting.rows(hidden_BTH, batch), output.head, vocabulary)
