"""Losses between the vectors of sentences of student and teacher, one for each row.

Where the two must be of one width, a projection (projections.py) comes before. How a vector is pooled from the hidden
states of a row is not said here; relations.py compares the vectors of a group with each other.

Shapes: B rows, H width.
"""

from torch import Tensor

from entrenar_core.losses.geometry import unit
from entrenar_core.losses.sums import LossSum, at_least_fp32


def embedding_cosine(student_BH: Tensor, teacher_BH: Tensor) -> LossSum:
    """Σ rows of 1 − cos(s, t), as ½ ‖s/‖s‖ − t/‖t‖‖²; counts rows.

    Says nothing of the length of a vector, which cosines between sentences do not use either. Zeros have no
    direction: a row of zeros gets no gradient and costs ½, or nothing where both are.

    Source: the cosine of Sanh et al. 2019 (DistilBERT), section 3, of sentences in place of tokens.

    Raises:
        ValueError: the sizes of student and teacher differ.
    """
    student_BH, teacher_BH = _comparable(student_BH, teacher_BH)
    return LossSum((unit(student_BH) - unit(teacher_BH)).square().sum() / 2, len(student_BH))


def embedding_mse(student_BH: Tensor, teacher_BH: Tensor) -> LossSum:
    """Σ rows of the mean over H of (s − t)²; counts rows.

    Nothing is normalised: the lengths of the teacher's vectors are learnt, too. Of vectors of length 1 it would be
    2/H of `embedding_cosine`.

    Source: Reimers & Gurevych 2020, section 2, for one language.

    Raises:
        ValueError: the sizes of student and teacher differ.
    """
    student_BH, teacher_BH = _comparable(student_BH, teacher_BH)
    return LossSum((student_BH - teacher_BH).square().mean(-1).sum(), len(student_BH))


def _comparable(student_BH: Tensor, teacher_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp32 or better, the teacher's without a gradient."""
    if student_BH.ndim != 2 or student_BH.shape != teacher_BH.shape:
        raise ValueError(f"vectors of sizes {tuple(student_BH.shape)} and {tuple(teacher_BH.shape)} are not comparable")
    return at_least_fp32(student_BH), at_least_fp32(teacher_BH.detach())
