"""Which attention heads of the student learn from which of the teacher. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Heads = Literal["auto", "grouped"] | Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class HeadMap:
    """Pair p compares the student's head `student[p]` with the mean of the teacher's heads `teacher[p]`.

    All of `teacher` have one length.
    """

    student: tuple[int, ...]
    teacher: tuple[tuple[int, ...], ...]


def map_heads(heads: Heads, student_heads: int, teacher_heads: int) -> HeadMap:
    """Which heads are compared where the teacher has others than the student.

    "grouped" wants one count to be a multiple of the other: contiguous groups of teacher heads are averaged, or each
    teacher head teaches a contiguous group of student heads. "auto" is that where it divides; else the student's head
    h learns from the teacher's head ⌊h · G / H⌋, and of more teacher heads some are left out. (To look for the most
    similar head in each batch would give a loss that jumps from step to step.) Or explicit pairs (student, teacher),
    in which a head may occur several times, or never.

    Raises:
        ValueError: the counts do not divide where they should; a pair names a head that is not there; there is no
            pair; or `heads` is another word.
    """
    if not isinstance(heads, str):
        return _explicit(heads, student_heads, teacher_heads)
    if heads not in ("auto", "grouped"):
        raise ValueError(f"heads must be `auto`, `grouped` or pairs (student, teacher), got `{heads}`")
    own = tuple(range(student_heads))
    size, rest = divmod(teacher_heads, student_heads)
    if rest == 0:
        return HeadMap(own, tuple(tuple(range(h * size, (h + 1) * size)) for h in own))
    if heads == "grouped" and student_heads % teacher_heads:
        raise ValueError(
            f"{teacher_heads} teacher heads and {student_heads} student heads do not divide into groups; "
            "use `auto` or pairs (student, teacher)"
        )
    return HeadMap(own, tuple((h * teacher_heads // student_heads,) for h in own))


def _explicit(pairs: Sequence[tuple[int, int]], student_heads: int, teacher_heads: int) -> HeadMap:
    if not pairs:
        raise ValueError("heads must have at least one pair (student, teacher)")
    for student, teacher in pairs:
        if not (0 <= student < student_heads and 0 <= teacher < teacher_heads):
            raise ValueError(
                f"there is no pair of heads ({student}, {teacher}): the student's are 0 to {student_heads - 1}, "
                f"the teacher's 0 to {teacher_heads - 1}"
            )
    return HeadMap(tuple(student for student, _ in pairs), tuple((teacher,) for _, teacher in pairs))
