"""How alike the layers of two models see the same tokens, and which should learn from which.

Shapes: B rows, T positions, N tokens, S student's layers, T teacher's layers.
"""

import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Batch
from entrenar_core.losses.kernel_alignment import cka_matrix
from entrenar_core.losses.layer_mapping import pairs_by_cka
from entrenar_core.models.calling import called
from entrenar_core.models.recording import recording

MOST_TOKENS = 512
"""CKA compares each token with each, and some hundred are a good sample."""


@torch.no_grad()
def layer_similarity(
    student: nn.Module, teacher: nn.Module, batch: Batch, num_student_layers: int, num_teacher_layers: int
) -> Tensor:
    """CKA of every layer of the student with every layer of the teacher, (S, T), over the real tokens of a batch that
    both read; at most `MOST_TOKENS`. Leaves the models in the mode that they were in.
    """
    states = [
        _states(model, batch, layers)
        for model, layers in ((student, num_student_layers), (teacher, num_teacher_layers))
    ]
    return cka_matrix(*states)


def similar_layers(
    student: nn.Module, teacher: nn.Module, batch: Batch, num_student_layers: int, num_teacher_layers: int
) -> tuple[tuple[int, int], ...]:
    """A teacher's layer for every student's, later ones for later ones, with the greatest sum of CKA."""
    matrix_ST = layer_similarity(student, teacher, batch, num_student_layers, num_teacher_layers)
    return pairs_by_cka(matrix_ST.tolist())


def _states(model: nn.Module, batch: Batch, num_layers: int) -> list[Tensor]:
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = batch.to(device)
    try:
        with recording(model, hidden_layers=range(num_layers)) as record:
            called(model, batch.input_ids_BT, batch.attention_mask_BT)
    finally:
        model.train(training)
    return [record.hidden[layer][batch.real][:MOST_TOKENS].cpu() for layer in range(num_layers)]
