"""Teachers whose numbers are none."""

from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


def not_finite(prepared: "Preparation", what: str) -> ModelError:
    """What is wrong with a teacher of whose `what`, such as its logits, some are no numbers."""
    return ModelError(
        f"the {what} of the teacher {prepared.teacher.reference} are not all finite numbers",
        "load it with `teacher.dtype: float32`, without `training.mixed_precision`, or check its weights",
    )
