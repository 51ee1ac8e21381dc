"""What the models of a run are called."""

from entrenar_core.config.schema import DistillationConfig, InitFrom
from entrenar_core.models.student_rules import known_sizes
from entrenar_core.models.widths import WIDTHS


def student_name(config: DistillationConfig) -> str:
    """What the student is, in a few words."""
    student = config.student
    if student.model_id is not None:
        return student.model_id
    if student.init_from is not None:
        return _part_of_the_teacher(student.init_from)
    if known_sizes(student) is not None:
        return str(student.architecture)
    return f"{student.architecture or 'transformer'} of {student.num_layers} layers of {student.hidden_size}"


def _part_of_the_teacher(init: InitFrom) -> str:
    layers = init.teacher_layers
    which = "the teacher's layers"
    if layers is not None:
        which = f"{layers if isinstance(layers, int) else len(layers)} layers of the teacher"
    widths = [f"{name} {size}" for name in WIDTHS if (size := getattr(init, name)) is not None]
    return f"{which} with {', '.join(widths)}" if widths else which
