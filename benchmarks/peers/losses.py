"""The same loss by entrenar and by its peers, from the same hidden states and heads.

Each gives the mean, over the rows that have a label, of a divergence between the teacher's distribution and the
student's at temperature 1, with a graph to the student's hidden states and head. Each is called as its own trainer
calls it, with the sizes of chunks that it comes with; who takes logits gets them from a product made here.

Shapes: N rows, H student's width, K teacher's width, V vocabulary.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrenar_core.data.labels import IGNORED
from entrenar_core.losses import DIVERGENCES, Head, HeadRows, SoftTerm, head_loss

FORWARD_KL, JSD = "forward KL", "JSD"
BETAS = {FORWARD_KL: 0.0, JSD: 0.5}  # in TRL and Liger
OURS = {FORWARD_KL: "forward_kl", JSD: "jsd"}
TORCHTUNE_CHUNKS = 8  # what its classes and recipes have


@dataclass(frozen=True)
class Inputs:
    """What every loss is computed from. Of the teacher's nothing wants a gradient."""

    student_hidden_NH: Tensor
    student_head_VH: Tensor
    teacher_hidden_NK: Tensor
    teacher_head_VK: Tensor
    labels_N: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """What gradients are asked of."""
        return self.student_hidden_NH, self.student_head_VH


Loss = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Contender:
    """One side of the comparison. `make` loads it for a divergence; `requires` is what must be installed."""

    name: str
    requires: str
    make: Callable[[str], Loss]
    divergences: tuple[str, ...] = (FORWARD_KL, JSD)
    value_differs: str | None = None  # what its value is, where it is not ours; gradients are compared all the same


def drawn(rows: int, vocabulary: int, student: int, teacher: int, masked: float) -> Inputs:
    """Random states and heads whose logits have a standard deviation of about 2; a share of the rows has no label."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=random).mul_(scale)

    labels_N = torch.randint(0, vocabulary, (rows,), generator=random)
    labels_N[torch.randperm(rows, generator=random)[: int(rows * masked)]] = IGNORED
    return Inputs(
        normal(rows, student).requires_grad_(),
        normal(vocabulary, student, scale=2 * student**-0.5).requires_grad_(),
        normal(rows, teacher),
        normal(vocabulary, teacher, scale=2 * teacher**-0.5),
        labels_N,
    )


def entrenar(divergence: str) -> Loss:
    """`head_loss` over the rows that have a label, which are selected within."""
    core = DIVERGENCES[OURS[divergence]].make()

    def loss(inputs: Inputs) -> Tensor:
        counted_N = (inputs.labels_N != IGNORED).nonzero().squeeze(-1)
        return head_loss(
            inputs.student_hidden_NH.index_select(0, counted_N),
            Head(inputs.student_head_VH),
            teacher=HeadRows(inputs.teacher_hidden_NK.index_select(0, counted_N), Head(inputs.teacher_head_VK)),
            soft=[SoftTerm(core, 1.0, 1 / len(counted_N))],
        ).total

    return loss


def trl_full(divergence: str) -> Loss:
    """What GKDTrainer does with the logits of both models."""
    from trl.experimental.gkd import GKDTrainer

    def loss(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            teacher_NV = inputs.teacher_hidden_NK @ inputs.teacher_head_VK.T
        student_NV = inputs.student_hidden_NH @ inputs.student_head_VH.T
        return GKDTrainer.generalized_jsd_loss(  # type: ignore[no-any-return]
            student_NV.unsqueeze(0), teacher_NV.unsqueeze(0), inputs.labels_N.unsqueeze(0), beta=BETAS[divergence]
        )

    return loss


def trl_chunked(divergence: str) -> Loss:
    """What DistillationTrainer does: off CUDA, rows without a label are computed and then masked."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def loss(inputs: Inputs) -> Tensor:
        values_N, _ = ChunkedDivergenceFunction.apply(
            inputs.student_hidden_NH, inputs.student_head_VH, None,
            inputs.teacher_hidden_NK, inputs.teacher_head_VK, None, BETAS[divergence],
        )  # fmt: skip
        counted_N = inputs.labels_N != IGNORED
        return values_N.masked_fill(~counted_N, 0).sum() / counted_N.sum()  # type: ignore[no-any-return]

    return loss


def liger(divergence: str, *, compiled: bool) -> Loss:
    """The soft loss alone. That it is compiled is its default, and needs a compiler of C++ where there is no GPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETAS[divergence], compiled=compiled
    )
    return lambda inputs: module(
        inputs.student_hidden_NH, inputs.student_head_VH,
        inputs.teacher_hidden_NK, inputs.teacher_head_VK, inputs.labels_N,
    )  # fmt: skip


def torchtune(_: str) -> Loss:
    """Its forward KL in chunks. The package asks for a torchao long gone, the file with the losses for torch alone."""
    module = _torchtune_losses().ForwardKLWithChunkedOutputLoss(TORCHTUNE_CHUNKS)

    def loss(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            teacher = [(x @ inputs.teacher_head_VK.T)[None] for x in inputs.teacher_hidden_NK.chunk(TORCHTUNE_CHUNKS)]
        student = [(x @ inputs.student_head_VH.T)[None] for x in inputs.student_hidden_NH.chunk(TORCHTUNE_CHUNKS)]
        return module(student, teacher, inputs.labels_N[None])  # type: ignore[no-any-return]

    return loss


def _torchtune_losses() -> Any:
    package = importlib.util.find_spec("torchtune")
    assert package is not None, "installed"
    assert package.origin is not None, "a package with a file"
    file = Path(package.origin).parent / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", file)
    assert spec is not None, "a file of Python"
    assert spec.loader is not None, "a file of Python"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("entrenar", "entrenar_core", entrenar),
        Contender("TRL, all logits", "trl", trl_full),
        Contender("TRL, chunked", "trl", trl_chunked),
        Contender("Liger", "liger_kernel", partial(liger, compiled=False)),
        Contender("Liger, compiled", "liger_kernel", partial(liger, compiled=True)),
        Contender("torchtune", "torchtune", torchtune, (FORWARD_KL,), "the cross-entropy with the teacher, not a KL"),
    )
}
