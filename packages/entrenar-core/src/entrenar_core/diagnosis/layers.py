"""Which layers of two models see the same tokens alike, and the pairs that follow.

Shapes: S student's layers, T teacher's layers.
"""

from torch import nn

from entrenar_core.data.collating import Batch
from entrenar_core.diagnosis.findings import Layers
from entrenar_core.losses.layer_mapping import layer_pairs, pairs_by_cka
from entrenar_core.models.layer_similarity import MOST_TOKENS, layer_similarity


def compare_layers(
    student: nn.Module, teacher: nn.Module, batch: Batch, student_layers: int, teacher_layers: int
) -> Layers:
    """CKA of the layers over the real tokens of a batch that both read, `MOST_TOKENS` at most; the pairs with the
    greatest sum of CKA, later layers for later ones, beside those that are evenly spaced.

    Raises:
        ModelError: a model does not show its layers.
        ValueError: the batch has fewer than 4 tokens.
    """
    matrix_ST = layer_similarity(student, teacher, batch, student_layers, teacher_layers).tolist()
    fits = student_layers <= teacher_layers
    return Layers(
        tokens=min(int(batch.real.sum()), MOST_TOKENS),
        cka=tuple(map(tuple, matrix_ST)),
        by_cka=pairs_by_cka(matrix_ST) if fits else None,
        uniform=layer_pairs("uniform", student_layers, teacher_layers) if fits else None,
    )
