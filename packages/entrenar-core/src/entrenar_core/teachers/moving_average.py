"""The exponential moving average of the student, which teaches it.

Source: Tarvainen & Valpola 2017, "Mean teachers are better role models", with their rise of the decay at the start.
"""

import copy

import torch
from torch import nn

from entrenar_core.config.teachers import MovingAverage


class AverageOfStudent:
    """A copy of the student that follows it: θ′ ← d θ′ + (1 − d) θ after every optimiser step, in 32 bits or better."""

    def __init__(self, student: nn.Module, settings: MovingAverage) -> None:
        self.student, self.settings = student, settings
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    def decay(self, step: int) -> float:
        """What stays of the average after so many optimiser steps."""
        full = self.settings.decay
        return min(full, (1 + step) / (10 + step)) if self.settings.warmup else full

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        decay = self.decay(step)
        for mean, value in zip(self.model.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(value.detach().to(mean.device, mean.dtype), 1 - decay)
        for kept, now in zip(self.model.buffers(), self.student.buffers(), strict=True):
            kept.copy_(now)
