"""Vectors of sentences: what a model makes of a text, pooled from the hidden states of its tokens.

Shapes: B rows, T positions, H width.
"""

from torch import Tensor, nn

from entrenar_core.losses.pooling import Pool, pooled
from entrenar_core.models.calling import hidden_of


def vectors_of(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, pool: Pool) -> Tensor:
    """One vector a row, (B, H), in fp32 or better: pooled from what a bare model gives after its last norm."""
    return pooled(hidden_of(model, input_ids_BT, attention_mask_BT), attention_mask_BT, pool)


class SentenceEncoder(nn.Module):
    """A bare model with its pooling: from ids and mask to vectors. It holds the model, and copies no weights."""

    def __init__(self, model: nn.Module, pool: Pool) -> None:
        super().__init__()
        self.model, self.pool = model, pool

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask (B, T) to vectors (B, H)."""
        return vectors_of(self.model, input_ids, attention_mask, self.pool)
