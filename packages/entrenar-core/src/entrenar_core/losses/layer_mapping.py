"""Which layer of the teacher each layer of the student learns from. Needs no torch.

An index counts transformer layers from 0 and means the output of that layer; the embeddings have none.

Shapes: S student's layers, T teacher's layers.
"""

import math
from collections.abc import Sequence
from typing import Literal

Rule = Literal["uniform", "first", "last"]
Pairs = tuple[tuple[int, int], ...]
Reached = tuple[float, int]


def layer_pairs(mapping: Rule | Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> Pairs:
    """Pairs of a student's and a teacher's layer.

    - `uniform`: student i learns from teacher ⌈(i + 1) T / S⌉ − 1, so that the last learns from the last (Jiao et al.
      2020, TinyBERT; Sun et al. 2019 call it skip).
    - `first`: student i learns from teacher i.
    - `last`: student i learns from teacher T − S + i.
    - a list of pairs: these.

    Raises:
        ValueError: a model has no layers, a layer is out of range, the list is empty or names a pair twice, or the
            student has more layers than the teacher under `first` and `last`.
    """
    if student_layers < 1 or teacher_layers < 1:
        raise ValueError(
            f"models must have layers, got {student_layers} of the student, {teacher_layers} of the teacher"
        )
    if not isinstance(mapping, str):
        return _given(mapping, student_layers, teacher_layers)
    if mapping == "uniform":
        # in whole numbers: a quotient of floats may be rounded above the whole number that it is
        return tuple((i, -(-(i + 1) * teacher_layers // student_layers) - 1) for i in range(student_layers))
    if mapping not in ("first", "last"):
        raise ValueError(f"a layer mapping must be uniform, first, last or pairs of layers, got {mapping!r}")
    _require_depth(student_layers, teacher_layers, f"the mapping {mapping!r}")
    skipped = teacher_layers - student_layers if mapping == "last" else 0
    return tuple((i, i + skipped) for i in range(student_layers))


def pairs_by_cka(similarity_ST: Sequence[Sequence[float]]) -> Pairs:
    """A teacher's layer for every student's, each above the one before, with the greatest sum of similarities.

    Later layers learn from later layers and no teacher's layer is taken twice; of equal sums, the one with the lowest
    layers. Found by dynamic programming in S · T steps: the best sum for student layers 0 to i with layer i at
    teacher layer j is similarity[i][j] plus the best for 0 to i − 1 at any layer below j.

    Raises:
        ValueError: there are no layers, rows differ in length, a similarity is not finite, or the student has more
            layers than the teacher.
    """
    if not similarity_ST or not similarity_ST[0]:
        raise ValueError("there are no layers to pair")
    student_layers, teacher_layers = len(similarity_ST), len(similarity_ST[0])
    for i, row_T in enumerate(similarity_ST):
        if len(row_T) != teacher_layers:
            raise ValueError(f"student layer {i} has {len(row_T)} similarities, layer 0 has {teacher_layers}")
        if not all(map(math.isfinite, row_T)):
            raise ValueError(f"a similarity of student layer {i} is not a finite number")
    _require_depth(student_layers, teacher_layers, "a mapping by CKA")
    return _best_path(similarity_ST, teacher_layers)


def _best_path(similarity_ST: Sequence[Sequence[float]], teacher_layers: int) -> Pairs:
    # at index j: the best sum with the newest student layer at or below teacher layer j, and the layer it is at
    below: list[Reached] = [(0.0, -1)] * teacher_layers
    places: list[list[int]] = []
    for row_T in similarity_ST:
        reached: list[Reached] = []
        for j in range(teacher_layers):
            at_j = (below[j][0] + float(row_T[j]), j)
            reached.append(at_j if not reached or at_j[0] > reached[-1][0] else reached[-1])
        places.append([place for _, place in reached])
        below = [(-math.inf, -1), *reached[:-1]]
    path: list[int] = []
    limit = teacher_layers - 1
    for places_T in reversed(places):
        path.append(places_T[limit])
        limit = path[-1] - 1
    return tuple(enumerate(reversed(path)))


def _given(mapping: Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> Pairs:
    pairs = tuple((student, teacher) for student, teacher in mapping)  # YAML has lists
    if not pairs:
        raise ValueError("a layer mapping must have at least one pair")
    for pair in pairs:
        for layer, layers, whose in zip(pair, (student_layers, teacher_layers), ("student", "teacher"), strict=True):
            if not 0 <= layer < layers:
                raise ValueError(f"{whose} layer {layer} is out of range: the {whose} has layers 0 to {layers - 1}")
    if len(set(pairs)) < len(pairs):
        twice = next(pair for index, pair in enumerate(pairs) if pair in pairs[:index])
        raise ValueError(f"student layer {twice[0]} and teacher layer {twice[1]} are paired twice")
    return pairs


def _require_depth(student_layers: int, teacher_layers: int, what: str) -> None:
    if student_layers > teacher_layers:
        raise ValueError(
            f"student layer {teacher_layers} is out of range: {what} needs a teacher layer for each of the student's "
            f"{student_layers}, and there are {teacher_layers}"
        )
