"""The values: none that is no finite number."""

from collections.abc import Callable

from entrenar_core.formats.decoding import decodable
from entrenar_core.measuring.finite import non_finite
from entrenar_core.measuring.results import NonFinite
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import found
from entrenar_inspect.reports.validation import Check

NAME = "values"


def finite(model: StoredModel, progress: Callable[[int], None] | None) -> Check:
    """Looks at every value of a model that lies here.

    Raises:
        ModelError: a file cannot be read any more.
    """
    wrong = [_told(tensor) for tensor in non_finite(model, progress=progress)]
    unread = [tensor.dtype.name for tensor in model.tensors.values() if not decodable(tensor.dtype)]
    besides = f"; {len(unread)} of unknown dtypes were not looked at" if unread else ""
    return found(NAME, wrong, fine=f"none of {model.values:,} is NaN or infinite{besides}")


def _told(tensor: NonFinite) -> str:
    counts = [f"{count:,} {what}" for count, what in ((tensor.nan, "NaN"), (tensor.inf, "infinite")) if count]
    place = ", ".join(map(str, tensor.first))
    return f"tensor {tensor.tensor} has {' and '.join(counts)}, the first at [{place}]"
