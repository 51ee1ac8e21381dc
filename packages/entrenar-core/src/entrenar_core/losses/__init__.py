"""What the student is trained to make small: pure functions of tensors that return a sum and a count."""

from entrenar_core.losses.divergence import LossSum, forward_kl, soften, sum_over
from entrenar_core.losses.hard import cross_entropy, hard_sum
from entrenar_core.losses.table import DIVERGENCES

__all__ = ["DIVERGENCES", "LossSum", "cross_entropy", "forward_kl", "hard_sum", "soften", "sum_over"]
