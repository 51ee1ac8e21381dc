"""Losses between the hidden states of a layer of the student and one of the teacher.

Where the two must be of one width, a projection (projections.py) comes before. Only real tokens are looked at.

Shapes: B rows, T positions, H student's width, K teacher's width, N real tokens.
"""

from torch import Tensor

from entrenar_core.losses.geometry import SHORTEST, inverse_root, unit
from entrenar_core.losses.grouping import LEAST, sum_over_groups
from entrenar_core.losses.kernel_alignment import linear_cka
from entrenar_core.losses.pooling import Vectors, compared_vectors, real_lengths, real_tokens, row_of_token
from entrenar_core.losses.sums import LossSum


def hidden_mse(student_BTH: Tensor, teacher_BTH: Tensor, mask_BT: Tensor) -> LossSum:
    """Σ tokens of the mean over H of (s − t)²; counts real tokens.

    Source: the hints of Romero et al. 2015 (FitNets), eq. 3, and the hidden loss of Jiao et al. 2020 (TinyBERT),
    eq. 8, both after a learned projection.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match.
    """
    student_NH, teacher_NH = _vectors(student_BTH, teacher_BTH, mask_BT, "tokens")
    return LossSum((student_NH - teacher_NH).square().mean(-1).sum(), len(student_NH))


def hidden_cosine(student_BTH: Tensor, teacher_BTH: Tensor, mask_BT: Tensor) -> LossSum:
    """Σ tokens of 1 − cos(s, t), as ½ ‖s/‖s‖ − t/‖t‖‖²; counts real tokens.

    The difference loses no digits where the two are nearly alike. Zeros have no direction: a token of zeros gets no
    gradient and costs ½, or nothing where both are.

    Source: Sanh et al. 2019 (DistilBERT), section 3.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match.
    """
    student_NH, teacher_NH = _vectors(student_BTH, teacher_BTH, mask_BT, "tokens")
    return LossSum((unit(student_NH) - unit(teacher_NH)).square().sum() / 2, len(student_NH))


def patient(student_BTH: Tensor, teacher_BTH: Tensor, mask_BT: Tensor, *, pool: Vectors = "first") -> LossSum:
    """Σ rows of ‖s/‖s‖ − t/‖t‖‖², where s and t stand for a row; counts rows with a real token.

    With pool `first`, the paper's, they are of the first real token, [CLS] on whichever side the padding is. With
    `tokens` every real token is compared and counted.

    Source: Sun et al. 2019 (Patient-KD), eq. 7.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, or `pool` is unknown.
    """
    student_NH, teacher_NH = _vectors(student_BTH, teacher_BTH, mask_BT, pool)
    return LossSum((unit(student_NH) - unit(teacher_NH)).square().sum(), len(student_NH))


def cka(
    student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, group_size: int, pool: Vectors = "mean"
) -> LossSum:
    """Σ groups of 1 − CKA of student and teacher over the examples of the group; counts groups of at least 4.

    The widths may differ. Indifferent to rotations, shifts and the scale of either. From 0 to 2, since the unbiased
    CKA of unrelated vectors is as often negative as positive; 1, without a gradient, where all examples are equal.

    Source: Nguyen, Raghu & Kornblith 2021, with the estimate of Song et al. 2012: see `linear_cka`.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, `pool` is unknown, or `group_size` is below 4
            (with pool `tokens`, below 1).
    """
    return sum_over_groups(
        lambda student_NH, teacher_NK: 1 - linear_cka(student_NH, teacher_NK),
        student_BTH,
        teacher_BTK,
        mask_BT,
        group_size=group_size,
        least=LEAST["cka"],
        pool=pool,
    )


def attention_maps(student_BTH: Tensor, teacher_BTK: Tensor, mask_BT: Tensor, *, power: float = 2) -> LossSum:
    """Σ rows of ‖m_s/‖m_s‖ − m_t/‖m_t‖‖², with m = Σ_h |x_h|^power at each real token of the row; counts rows.

    How large the activations are says where the network attends; nothing is asked of attention probabilities, and
    the widths may differ.

    Source: Zagoruyko & Komodakis 2017, section 3.1, squared as in their code.

    Raises:
        ValueError: the sizes of student, teacher and mask do not match, or `power` is below 1.
    """
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power}")
    lengths_B = real_lengths(mask_BT)
    maps = [real_tokens(hidden, mask_BT).abs().pow(power).sum(-1) for hidden in (student_BTH, teacher_BTK.detach())]
    rows_N = row_of_token(lengths_B, len(maps[0])).to(student_BTH.device)
    student_N, teacher_N = (_unit_map(map_N, rows_N, len(lengths_B)) for map_N in maps)
    return LossSum((student_N - teacher_N).square().sum(), int((lengths_B > 0).sum()))


def _vectors(student_BTH: Tensor, teacher_BTH: Tensor, mask_BT: Tensor, pool: Vectors) -> tuple[Tensor, Tensor]:
    """What is compared, of one width; the teacher's without a gradient."""
    if student_BTH.shape[-1] != teacher_BTH.shape[-1]:
        widths = f"{student_BTH.shape[-1]} and {teacher_BTH.shape[-1]}"
        raise ValueError(f"hidden states of widths {widths}: a projection must come before this loss")
    return compared_vectors(student_BTH, mask_BT, pool), compared_vectors(teacher_BTH.detach(), mask_BT, pool)


def _unit_map(map_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Each token's share of its row's map, of norm 1; zeros where the map is."""
    squares_B = map_N.new_zeros(rows).index_add(0, rows_N, map_N.square())
    return map_N * inverse_root(squares_B, SHORTEST**2).index_select(0, rows_N)
