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
    """Sums the cross-entropy over the rows that have a label, and counts them without waiting for their device."""
    values_N = cross_entropy(student_logits_NV, labels_N, smoothing=smoothing)
    return LossSum(values_N.sum(), (labels_N != IGNORED).sum())


def cross_entropy_and_gradient(logits_NV: Tensor, labels_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """As `cross_entropy`, (N,), with its gradient in the logits, (N, V), which costs no memory beside log q."""
    log_q_NV = logits_NV.log_softmax(-1)
    unlabelled_N = labels_N == IGNORED
    labels_N1 = labels_N.masked_fill(unlabelled_N, 0).unsqueeze(-1)
    values_N = log_q_NV.gather(-1, labels_N1).squeeze(-1).mul_(smoothing - 1)
    if smoothing:
        values_N -= smoothing * log_q_NV.mean(-1)
    gradient_NV = log_q_NV.exp_()
    if smoothing:
        gradient_NV -= smoothing / gradient_NV.shape[-1]
    gradient_NV.scatter_add_(-1, labels_N1, gradient_NV.new_full((1, 1), smoothing - 1).expand_as(labels_N1))
    values_N.masked_fill_(unlabelled_N, 0.0)
    return values_N, gradient_NV.masked_fill_(unlabelled_N.unsqueeze(-1), 0.0)
