"""Which of the teacher's layers the losses of a prepared run compare."""

from typing import TYPE_CHECKING

from entrenar_core.models.layer_rules import planned_student, wanted_layers
from entrenar_core.models.wants import Wants

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


def wanted(prepared: "Preparation") -> Wants | None:
    """None where the models alone tell."""
    teacher = prepared.teacher.architecture
    student = prepared.student.architecture if prepared.student else planned_student(prepared.config.student, teacher)
    return wanted_layers(prepared.terms, teacher, student)
