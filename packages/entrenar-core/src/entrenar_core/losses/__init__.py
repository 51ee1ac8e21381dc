"""What the student is trained to make small: pure functions of tensors that return a sum and a count."""

from entrenar_core.losses.divergence import (
    Core,
    cross_entropy_hard,
    forward_kl,
    jeffreys,
    jsd,
    of_logits,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    soften,
    sum_over,
    total_variation,
)
from entrenar_core.losses.hard import cross_entropy, hard_sum
from entrenar_core.losses.logit_differences import bild
from entrenar_core.losses.selection import top_k, where_uncertain
from entrenar_core.losses.sums import LossSum
from entrenar_core.losses.table import DIVERGENCES

__all__ = [
    "DIVERGENCES",
    "Core",
    "LossSum",
    "bild",
    "cross_entropy",
    "cross_entropy_hard",
    "forward_kl",
    "hard_sum",
    "jeffreys",
    "jsd",
    "of_logits",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soften",
    "sum_over",
    "top_k",
    "total_variation",
    "where_uncertain",
]
