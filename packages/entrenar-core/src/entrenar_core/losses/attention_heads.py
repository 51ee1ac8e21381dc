"""How much the comparison of each pair of attention heads weighs.

Shapes: B rows, T positions, P pairs of heads that are compared.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from entrenar_core.losses.sums import at_least_fp32

Weighting = Literal["uniform", "entropy", "variance"]

_NO_FOCUS = 1e-6  # below it, what heads focus on is rounding


def head_weights(teacher_log_probs_BPTT: Tensor, allowed_BTT: Tensor, kind: Weighting) -> Tensor:
    """(B, P), of sum 1 over the heads, for each row on its own: were they taken over the batch, a row's gradient would
    depend on which others are in it. Without the dimension B, (P,) of the one row. From the teacher's distributions p
    over the n keys that a query may see:

    uniform   the same for all.
    entropy   proportional to the mean over the queries of 1 − H(p) / log n: heads that focus on few keys get more.
    variance  proportional to the mean over the queries of the variance of p over the keys, as a share of the largest
              there can be: (Σ p² − 1/n) / (1 − 1/n). As entropy, but diffuse heads get less still.

    A query with a single key says nothing about a head and is left out. A row in which all heads look at all keys
    alike gets uniform weights.

    Source: ours; that focused heads are those that matter is found by Voita et al. 2019.

    Raises:
        ValueError: `kind` is another word.
    """
    p_BPTT = teacher_log_probs_BPTT.exp().masked_fill(~allowed_BTT.unsqueeze(-3), 0.0)
    keys_B1T = allowed_BTT.sum(-1).unsqueeze(-2)
    n_B1T = keys_B1T.clamp_min(2).to(p_BPTT.dtype)
    if kind == "uniform":
        return p_BPTT.new_full(p_BPTT.shape[:-2], 1 / p_BPTT.shape[-3])
    if kind == "entropy":
        focus_BPT = 1 - torch.special.entr(p_BPTT).sum(-1) / n_B1T.log()
    elif kind == "variance":
        focus_BPT = (p_BPTT.square().sum(-1) - 1 / n_B1T) / (1 - 1 / n_B1T)
    else:
        raise ValueError(f"head weights must be uniform, entropy or variance, got `{kind}`")
    queries_B1T = keys_B1T >= 2
    focus_BP = focus_BPT.clamp_min(0.0).masked_fill(~queries_B1T, 0.0).sum(-1) / queries_B1T.sum(-1).clamp_min(1)
    whole_B1 = focus_BP.sum(-1, keepdim=True)
    return torch.where(whole_B1 > _NO_FOCUS, focus_BP / whole_B1.clamp_min(_NO_FOCUS), 1 / focus_BP.shape[-1])


class LearnedHeadWeights(nn.Module):
    """w = floor / P + (1 − floor) · softmax(θ), a parameter of the training.

    Learned weights make a loss smaller without a better student: the total is linear in w, so its gradient moves the
    weight to the heads that the student already matches best, and in the end the others would be forgotten. The floor
    leaves each head at least floor / P; within that bound, the drift to easy heads remains. So compare losses at equal
    weights only, and prefer weights from the teacher (`head_weights`) where nothing speaks for these.

    Raises:
        ValueError: there is no head to weigh; or the floor is not above 0 and at most 1.
    """

    def __init__(self, num_heads: int, *, floor: float = 0.5) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}")
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, got {floor}")
        self.floor = floor
        self.theta_P = nn.Parameter(torch.zeros(num_heads))

    def forward(self) -> Tensor:
        """(P,), of sum 1, in fp32 or better."""
        return self.floor / len(self.theta_P) + (1 - self.floor) * at_least_fp32(self.theta_P).softmax(-1)
