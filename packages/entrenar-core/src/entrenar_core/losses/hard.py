"""The loss against labels.

Shapes: V classes or vocabulary, N rows.
"""

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.losses.divergence import LossSum, at_least_fp32


def cross_entropy(student_logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """−log p_S(label) per row, in nats, in fp32 or better; zero where the label is `IGNORED`."""
    return F.cross_entropy(at_least_fp32(student_logits_NV), labels_N, ignore_index=IGNORED, reduction="none")


def hard_sum(student_logits_NV: Tensor, labels_N: Tensor) -> LossSum:
    """Sums the cross-entropy over the rows that have a label, and counts them."""
    return LossSum(cross_entropy(student_logits_NV, labels_N).sum(), int((labels_N != IGNORED).sum()))
