"""What of a model must hold, in whatever format it is written: its weights are numbers."""

from entrenar_core.errors import ModelError
from entrenar_core.stored_model import StoredModel


def require_finite_weights(model: StoredModel) -> None:
    """Refuses a model that computes no numbers.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    from entrenar_core.measuring.finite import non_finite

    found = next(iter(non_finite(model)), None)
    if found is not None:
        raise ModelError(
            f"tensor {found.tensor} holds {found.value} at {list(found.first)}",
            "`entrenar-inspect validate` lists all such values: go back to a checkpoint without them",
        )
