"""Deep supervision: layers inside of the student answer too, through exits of their own, and learn to answer as its
last layer does, as the teacher does, or as the labels say.

An exit is a norm and a matrix. Of a language model it leads to the student's own output layer; of a classifier to
classes, from each token or from the mean of a row. Exits train with the student and are not saved with it.

Source: Lee et al. 2015, "Deeply-Supervised Nets"; from its own last layer, Zhang et al. 2019, "Be Your Own Teacher".

Shapes: B rows, T positions, H width, N rows or positions that count, V classes or vocabulary.
"""

import torch
from torch import Tensor, nn

from entrenar_core.config.losses import ExitLoss
from entrenar_core.config.schedules import Schedule, Setting
from entrenar_core.data.collating import Batch
from entrenar_core.losses import Core, HardTerm, SoftTerm, cross_entropy, divergence_from, head_loss
from entrenar_core.losses.pooling import pooled
from entrenar_core.losses.targets import Targets
from entrenar_core.models.output_layer import OutputLayer
from entrenar_core.models.recording import Record
from entrenar_core.models.rows import Counting
from entrenar_core.models.wants import Wants


class ExitTerm(nn.Module):
    """The mean over exits of their losses. `core` is None where they learn from labels."""

    def __init__(
        self,
        label: str,
        entry: ExitLoss,
        weight: Setting,
        layers: tuple[int, ...],
        widths: tuple[int, int],
        core: Core | None,
        temperature: float | Schedule,
        power: int,
    ) -> None:
        """`widths`: of a hidden state, and of what an exit gives: what the output layer reads, or as many classes."""
        super().__init__()
        self.label, self.weight, self.temperature = label, weight, temperature
        self.learn_from, self.layers, self.core, self.power = entry.learn_from, layers, core, power
        self.exits = nn.ModuleList(_exit(*widths) for _ in layers)

    @property
    def needs_teacher(self) -> bool:
        """Only where they learn from it."""
        return self.learn_from == "teacher"

    def wants(self, side: int) -> Wants:
        """What is read of the student (0); of the teacher (1), nothing."""
        return Wants(hidden=frozenset(self.layers)) if side == 0 else Wants()

    def count(self, batch: Batch) -> int:
        """How many rows its sum over a batch is divided by."""
        return batch.num_hard if self.core is None else batch.num_soft

    def forward(
        self,
        record: Record,
        batch: Batch,
        counting: Counting,
        output: OutputLayer | None,
        target: Targets | None,
        temperature: float,
    ) -> Tensor:
        """The sum over a batch, the mean of those of the exits; a divergence times T to its power.

        Args:
            record: the student's layers.
            batch: whose rows.
            counting: what of it counts.
            output: the student's output layer, if it is a language model.
            target: what they learn, if not labels.
            temperature: of a divergence.
        """
        totals = [
            self._one(exit_(record.hidden[layer]), batch, counting, output, target, temperature)
            for exit_, layer in zip(self.exits, self.layers, strict=True)
        ]
        return torch.stack(totals).sum() / len(totals)

    def _one(
        self,
        given_BTV: Tensor,
        batch: Batch,
        counting: Counting,
        output: OutputLayer | None,
        target: Targets | None,
        temperature: float,
    ) -> Tensor:
        labels_N, weights_N = counting.labels(batch), counting.weights(batch)
        if output is not None:
            return head_loss(
                counting.rows(given_BTV, batch),
                output.head,
                teacher=target,
                labels_N=labels_N,
                soft=[] if self.core is None else [SoftTerm(self.core, temperature, 1.0, self.power)],
                hard=HardTerm(1.0) if self.core is None else None,
                row_weights_N=weights_N,
                vocabulary=counting.vocabulary,
            ).total
        rows = given_BTV if batch.targets.ndim > 1 else pooled(given_BTV, batch.real, "mean")
        logits_NV = counting.rows(rows, batch)
        if self.core is None:
            values_N = cross_entropy(logits_NV, labels_N)
        else:
            assert target is not None, "a divergence needs a target"
            values_N = divergence_from(target, self.core, logits_NV, temperature) * temperature**self.power
        return (values_N if weights_N is None else values_N * weights_N).sum()


def _exit(width: int, gives: int) -> nn.Module:
    """Begins as the norm alone, where the widths allow it."""
    linear = nn.Linear(width, gives)
    nn.init.zeros_(linear.bias)
    if width == gives:
        nn.init.eye_(linear.weight)
    return nn.Sequential(nn.LayerNorm(width), linear)
