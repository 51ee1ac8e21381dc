"""The loss against labels.

Shapes: V classes or vocabulary, N rows.
"""

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.losses.sums import LossSum, at_least_fp32


def cross_entropy(student_logits_NV: Tensor, labels_N: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """−(1 − ε) log q(label) − ε/V Σ_v log q(v) per row, in nats, in fp32 or better; zero where the label is `IGNORED`.

    ε is `smoothing`: what the label gives away to all classes evenly (Szegedy et al. 2016, section 7).
    """
    return F.cross_entropy(
        at_least_fp32(student_logits_NV), labels_N, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )


def hard_sum(student_logits_NV: Tensor, labels_N: Tensor, *, smoothing: float = 0.0) -> LossSum:
    """Sums the cross-entropy over the rows that have a label, and counts them."""
    values_N = cross_entropy(student_logits_NV, labels_N, smoothing=smoothing)
    return LossSum(values_N.sum(), int((labels_N != IGNORED).sum()))
