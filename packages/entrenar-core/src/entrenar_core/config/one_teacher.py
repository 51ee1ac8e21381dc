"""A configuration with one teacher that is a model, as most of the program reads it.

Several teachers are as many of these configurations. Where the student's own average teaches, or a server whose model
is not here, the student stands in.
"""

from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teachers import EndpointTeacher, EnsembleTeacher, MovingAverageTeacher, TeacherConfig


class OneTeacher(DistillationConfig):
    """A distillation from one model."""

    teacher: TeacherConfig


def each_teacher(config: DistillationConfig) -> tuple[OneTeacher, ...]:
    """The configurations of the teachers, the first one of which decides what a student is made of."""
    match config.teacher:
        case EnsembleTeacher(members=members):
            return tuple(_with(config, member) for member in members)
        case MovingAverageTeacher():
            return (_with(config, _student_as_teacher(config)),)
        case EndpointTeacher(cache=cache):
            return (_with(config, _student_as_teacher(config).model_copy(update={"cache": cache})),)
        case TeacherConfig() as model:
            return (_with(config, model),)


def needs_weights(config: OneTeacher, *, copied: bool = True) -> bool:
    """Whether the teacher's weights are read: not where a folder has all that it is asked for, unless the student is
    made of them, as it can be of those of the first of several (`copied`).
    """
    use = config.teacher.cache
    says_all = use is not None and use.dir is not None and use.missing == "refuse"
    return not says_all or (copied and config.student.init_from is not None)


def _student_as_teacher(config: DistillationConfig) -> TeacherConfig:
    student = config.student
    assert student.model_id is not None, "a rule of the configuration"
    names = ("revision", "format", "files", "allow_pickle", "trust_remote_code", "pooling")
    return TeacherConfig(model_id=student.model_id, **{name: getattr(student, name) for name in names})


def _with(config: DistillationConfig, teacher: TeacherConfig) -> OneTeacher:
    """Its parts were validated."""
    parts = {name: getattr(config, name) for name in DistillationConfig.model_fields} | {"teacher": teacher}
    return OneTeacher.model_construct(set(config.model_fields_set), **parts)
