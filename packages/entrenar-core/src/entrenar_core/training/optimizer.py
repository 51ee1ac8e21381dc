"""The optimiser, with decay where it belongs, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from entrenar_core.config.schema import OptimizerName, TrainingConfig
from entrenar_core.models.adapted import is_matrix_b
from entrenar_core.models.quiet import mute_bitsandbytes

MULTIPLE = "multiple"
"""Of a group of parameters: what its learning rate is multiplied by."""


def make_optimizer(
    model: nn.Module, training: TrainingConfig, *, ratio_of_b: float | None = None
) -> torch.optim.Optimizer:
    """The optimiser of what trains; vectors, that is norms and biases, are not decayed. With `ratio_of_b` low-rank
    matrices B learn at so many times the rate (LoRA+: Hayou, Ghosh & Yu 2024, arXiv:2402.12354).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    faster = {name for name in trained if ratio_of_b is not None and is_matrix_b(name)}
    groups: list[dict[str, Any]] = [
        {
            "params": [one for name, one in trained.items() if one.ndim >= 2 and name not in faster],
            "weight_decay": training.weight_decay,
        },
        {"params": [one for one in trained.values() if one.ndim < 2], "weight_decay": 0.0},
        {
            "params": [trained[name] for name in trained if name in faster],
            "weight_decay": training.weight_decay,
            MULTIPLE: ratio_of_b,
        },
    ]
    return optimizer_of(training.optimizer, [group for group in groups if group["params"]], training.learning_rate)


def optimizer_of(
    name: OptimizerName, parameters: Sequence[Tensor] | Sequence[dict[str, Any]], rate: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), its state in 8 bits or not (Dettmers et al. 2022), SGD without momentum, or
    Adafactor (Shazeer & Stern 2018), over parameters or groups of them.

    AdamW is fused: one pass over each weight, without tensors in between, which cost a CPU more than the pass.
    """
    match name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, fused=True)
        case "adamw-8bit":
            mute_bitsandbytes()
            from bitsandbytes.optim import AdamW8bit

            made: torch.optim.Optimizer = AdamW8bit(parameters, lr=rate)
            return made
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate)
        case "adafactor":
            return torch.optim.Adafactor(parameters, lr=rate)


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
