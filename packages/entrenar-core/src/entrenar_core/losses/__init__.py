"""What the student is trained to make small: pure functions of tensors that return a sum and a count.

Names are imported when they are first used, so that the table of the losses can be read without torch.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
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
    from entrenar_core.losses.embedding import embedding_cosine, embedding_mse
    from entrenar_core.losses.grouping import count_groups, groups
    from entrenar_core.losses.hard import cross_entropy, hard_sum
    from entrenar_core.losses.head import Head
    from entrenar_core.losses.hidden import attention_maps, cka, hidden_cosine, hidden_mse, patient
    from entrenar_core.losses.kernel import HardTerm, HeadLoss, SoftTerm, head_loss
    from entrenar_core.losses.kernel_alignment import cka_matrix, linear_cka
    from entrenar_core.losses.layer_mapping import layer_pairs, pairs_by_cka
    from entrenar_core.losses.logit_differences import bild
    from entrenar_core.losses.mixture import Mixture
    from entrenar_core.losses.pooling import pooled
    from entrenar_core.losses.projections import make_projection
    from entrenar_core.losses.relations import in_batch_similarity, rkd_angle, rkd_distance, similarity_preserving
    from entrenar_core.losses.selection import top_k, where_uncertain
    from entrenar_core.losses.sums import LossSum
    from entrenar_core.losses.table import DIVERGENCES, LOSSES
    from entrenar_core.losses.targets import HeadRows, Logits, Targets, divergence_from

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "Core",
    "HardTerm",
    "Head",
    "HeadLoss",
    "HeadRows",
    "Logits",
    "LossSum",
    "Mixture",
    "SoftTerm",
    "Targets",
    "attention_maps",
    "bild",
    "cka",
    "cka_matrix",
    "count_groups",
    "cross_entropy",
    "cross_entropy_hard",
    "divergence_from",
    "embedding_cosine",
    "embedding_mse",
    "forward_kl",
    "groups",
    "hard_sum",
    "head_loss",
    "hidden_cosine",
    "hidden_mse",
    "in_batch_similarity",
    "jeffreys",
    "jsd",
    "layer_pairs",
    "linear_cka",
    "make_projection",
    "of_logits",
    "pairs_by_cka",
    "patient",
    "pooled",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soften",
    "sum_over",
    "top_k",
    "total_variation",
    "where_uncertain",
]

_HOMES = {
    "DIVERGENCES": "table",
    "LOSSES": "table",
    "Core": "divergence",
    "HardTerm": "kernel",
    "Head": "head",
    "HeadLoss": "kernel",
    "HeadRows": "targets",
    "Logits": "targets",
    "LossSum": "sums",
    "Mixture": "mixture",
    "SoftTerm": "kernel",
    "Targets": "targets",
    "attention_maps": "hidden",
    "bild": "logit_differences",
    "cka": "hidden",
    "cka_matrix": "kernel_alignment",
    "count_groups": "grouping",
    "cross_entropy": "hard",
    "cross_entropy_hard": "divergence",
    "divergence_from": "targets",
    "embedding_cosine": "embedding",
    "embedding_mse": "embedding",
    "forward_kl": "divergence",
    "groups": "grouping",
    "hard_sum": "hard",
    "head_loss": "kernel",
    "hidden_cosine": "hidden",
    "hidden_mse": "hidden",
    "in_batch_similarity": "relations",
    "jeffreys": "divergence",
    "jsd": "divergence",
    "layer_pairs": "layer_mapping",
    "linear_cka": "kernel_alignment",
    "make_projection": "projections",
    "of_logits": "divergence",
    "pairs_by_cka": "layer_mapping",
    "patient": "hidden",
    "pooled": "pooling",
    "reverse_kl": "divergence",
    "rkd_angle": "relations",
    "rkd_distance": "relations",
    "similarity_preserving": "relations",
    "skew_forward_kl": "divergence",
    "skew_reverse_kl": "divergence",
    "soften": "divergence",
    "sum_over": "divergence",
    "top_k": "selection",
    "total_variation": "divergence",
    "where_uncertain": "selection",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
