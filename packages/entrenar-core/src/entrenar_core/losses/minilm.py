"""How queries, keys or values relate to each other, which models of any width and any number of heads can share.

MiniLM (Wang et al. 2020) is two losses of the last layer, to be listed side by side: `attention_kl`, and the relation
of the values with as many relation heads as the student has heads. MiniLMv2 (Wang et al. 2021) is three: the relations
of queries, of keys and of values, of one layer of the teacher (not always its last), with more relation heads than
either model has heads.

Shapes: B rows, T positions, H heads of width D of the student, G of width E of the teacher, R relation heads.
"""

from functools import partial

from torch import Tensor

from entrenar_core.losses.attention import kl_per_query, log_probs, scaled_products
from entrenar_core.losses.by_row import sum_over_rows
from entrenar_core.losses.sums import LossSum


def relation_kl(student_x_BHTD: Tensor, teacher_x_BGTE: Tensor, allowed_BTT: Tensor, *, relation_heads: int) -> LossSum:
    """Σ_queries mean over the relation heads r of KL(teacher ‖ student), in nats, of softmax(x_r x_rᵀ / √d_r) over the
    allowed keys. The count is that of the queries that have an allowed key.

    x are the queries, keys or values of a layer: the heads are put side by side, H · D wide for the student and G · E
    for the teacher (fewer for keys and values of grouped-query models), and cut anew into R relation heads, each
    d_r = H · D / R and G · E / R wide. Scores of T × T are made for a few rows at a time.

    Source: Wang et al. 2021 (MiniLMv2), section 3.1; of bidirectional encoders there, of any attention here.

    Raises:
        ValueError: the relation heads do not divide both widths, or the shapes do not fit each other.
    """
    B, _, T, _ = student_x_BHTD.shape
    if teacher_x_BGTE.shape[0::2] != (B, T) or allowed_BTT.shape != (B, T, T):
        raise ValueError(
            "student and teacher must have the same rows and positions, and allowed (B, T, T), got "
            f"{tuple(student_x_BHTD.shape)} of the student, {tuple(teacher_x_BGTE.shape)} of the teacher, "
            f"{tuple(allowed_BTT.shape)}"
        )
    for name, x in (("student", student_x_BHTD), ("teacher", teacher_x_BGTE)):
        width = x.shape[1] * x.shape[3]
        if relation_heads < 1 or width % relation_heads:
            raise ValueError(
                f"relation_heads must divide the {name}'s {x.shape[1]} heads of width {x.shape[3]}, together {width}, "
                f"got {relation_heads}"
            )
    row = partial(_kl_of_row, relation_heads)
    return sum_over_rows(row, student_x_BHTD, teacher_x_BGTE, allowed_BTT, position_dims=(-2,), heads=relation_heads)


def _kl_of_row(relation_heads: int, student_x_HTD: Tensor, teacher_x_GTE: Tensor, allowed_TT: Tensor) -> Tensor:
    log_q_RTT, log_p_RTT = (
        log_probs(_relations(x, relation_heads), allowed_TT) for x in (student_x_HTD, teacher_x_GTE)
    )
    return kl_per_query(log_q_RTT, log_p_RTT, allowed_TT).mean(0).sum()


def _relations(x_HTD: Tensor, relation_heads: int) -> Tensor:
    x_RTd = x_HTD.transpose(0, 1).reshape(x_HTD.shape[1], relation_heads, -1).transpose(0, 1)
    return scaled_products(x_RTd, x_RTd, x_RTd.shape[-1] ** -0.5)
