"""What sentence encoders must hold against each other; without torch, so that `validate` answers at once."""

from entrenar_core.architectures import Architecture, families
from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.losses import VectorLoss
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.errors import Problem
from entrenar_core.models.sentence_files import Pool, pooling_of


def check_sentences(config: OneTeacher, teacher: Architecture | None, student: Architecture | None) -> list[Problem]:
    """Models that give no vectors, and vectors of widths that a loss cannot compare. `where` is a dotted name."""
    problems = [
        Problem(
            f"the {part} is a {architecture.model_type}, which has an encoder and a decoder: neither alone is loaded",
            "take an encoder, or a decoder whose last token stands for the sentence (`pooling: last`)",
            f"{part}.model_id",
        )
        for part, architecture in (("teacher", teacher), ("student", student))
        if architecture is not None and _has_two_parts(architecture)
    ]
    widths = [None if side is None else side.hidden_size for side in (student, teacher)]
    for index, entry in enumerate(config.distillation.losses or ()):
        fits = None in widths or widths[0] == widths[1]
        if isinstance(entry, VectorLoss) and entry.projection == "none" and not fits:
            where = f"distillation.losses[{index}].projection"
            what = f"`{where}: none` needs one width, and the student has {widths[0]}, the teacher {widths[1]}"
            problems.append(Problem(what, "set it to linear or mlp", where))
    return problems


def _has_two_parts(architecture: Architecture) -> bool:
    family = families().get(architecture.family or "")
    return family is not None and family.kind == "encoder-decoder"


def poolings_of(config: OneTeacher, teacher: ModelArtifact, student: ModelArtifact | None) -> tuple[Pool, Pool]:
    """Of teacher and student: as set, else as the model's folder says, else the mean over tokens.

    A student of the teacher's layers pools as the teacher does.

    Raises:
        ModelError: a folder says what entrenar does not do.
    """
    of_teacher: Pool = config.teacher.pooling or pooling_of(teacher) or "mean"
    own = pooling_of(student) if student is not None and config.student.pooling is None else None
    of_student: Pool = config.student.pooling or own or (of_teacher if config.student.init_from else "mean")
    return of_teacher, of_student
