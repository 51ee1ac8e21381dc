"""Whether a model is as sure as it is right.

Shapes: N rows with a label.
"""

import torch
from torch import Tensor

NUM_BINS = 15


class Bins:
    """Rows by the confidence of their preferred class, in bins of equal width, added up over any number of batches."""

    def __init__(self) -> None:
        self.counts_B, self.confidence_B, self.correct_B = (
            torch.zeros(NUM_BINS, dtype=torch.float64) for _ in range(3)
        )

    def add(self, confidence_N: Tensor, correct_N: Tensor) -> None:
        """Rows with their confidence, from 0 to 1, and whether they are right."""
        confidence_N = confidence_N.double().cpu()
        places_N = (confidence_N * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
        self.counts_B.index_add_(0, places_N, torch.ones_like(confidence_N))
        self.confidence_B.index_add_(0, places_N, confidence_N)
        self.correct_B.index_add_(0, places_N, correct_N.cpu().double())

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.counts_B.sum())

    @property
    def accuracy(self) -> float:
        """The share that is right, 0 without rows."""
        return float(self.correct_B.sum()) / max(self.rows, 1)

    @property
    def error(self) -> float:
        """The expected calibration error, Σ_b |B_b| / N · |accuracy(B_b) − confidence(B_b)|, over bins
        ((b − 1)/15, b/15]; 0 without rows.

        Source: Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017, eq. 3.
        """
        return float((self.correct_B - self.confidence_B).abs().sum()) / max(self.rows, 1)
