"""AdamW with decay where it belongs, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from entrenar_core.config.schema import TrainingConfig


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what trains; vectors, that is norms and biases, are not decayed.

    Fused: one pass over each weight, without tensors in between, which cost a CPU more than the pass.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=training.learning_rate, fused=True)


def learning_rate(step: int, total_steps: int, training: TrainingConfig) -> float:
    """The learning rate of optimiser step `step`, counted from 0, of `total_steps`.

    Rises linearly over the warm-up, then stays, falls linearly, or falls as half a cosine, to 0 after the last step.
    """
    warmup = training.warmup_steps
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total_steps - warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[training.schedule]
    return training.learning_rate * max(factor, 0.0)
