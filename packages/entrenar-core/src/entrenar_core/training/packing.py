"""How the examples of a training share rows, and whether its models keep them apart."""

from typing import Any

from torch import nn

from entrenar_core.data.packing import Packing
from entrenar_core.models.packing import Example, require_packable
from entrenar_core.teachers.ensemble import AveragedTeachers
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.preparation import Preparation

_TRIED = 4
"""Examples of a row that models are tried on."""


def packing_of(prepared: Preparation, tokens: Any) -> Packing | None:
    """How examples share rows, where they do."""
    dataset = prepared.config.dataset
    return Packing(list(tokens["length"]), dataset.max_length) if dataset.packing else None


def require_packing(prepared: Preparation, packing: Packing, student: nn.Module, teacher: object) -> str:
    """Tries the models that will read packed rows on some, and tells how full the rows are.

    Args:
        prepared: whose rows.
        packing: of the training rows.
        student: on the device of the run.
        teacher: where its signals come from; of live ones, the models are tried.

    Raises:
        ModelError: as `require_packable`.
    """
    rows = _tried(packing, prepared.train_tokens)
    if rows:
        device = next(student.parameters()).device
        parts = [("student", student, prepared.output_layer(student))]
        parts += [("teacher", live.model, live.output) for live in _live(teacher)]
        for part, model, output in parts:
            require_packable(model, part, rows, prepared.collator, prepared.counting, output, device)
    examples = len(prepared.train_tokens)
    return f"packed {examples:,} examples into {len(packing):,} rows, which are {packing.fill:.1%} full"


def _live(teacher: object) -> list[LiveTeacher]:
    """The models that read what the student reads. Of several teachers with rows of their own, each reads examples."""
    members = teacher.members if isinstance(teacher, AveragedTeachers) else [teacher]
    return [member for member in members if isinstance(member, LiveTeacher)]


def _tried(packing: Packing, tokens: Any) -> list[list[Example]]:
    """Two rows of several examples: the longest example that has company, behind others, and two of the shortest."""
    shared = [row for row in packing.rows(seed=0, epoch=0) if len(row) > 1]  # the longest first
    if not shared:
        return []
    longest = max(shared, key=lambda row: int(packing.lengths_N[row[0]]))
    return [[tokens[index] for index in row] for row in ([*longest[1:_TRIED], longest[0]], shared[-1][-2:])]
