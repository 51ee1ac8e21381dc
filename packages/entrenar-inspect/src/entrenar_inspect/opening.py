"""The model that a command line names, opened."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from entrenar_core.errors import UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model


@contextmanager
def opened(
    text: str,
    *,
    revision: str | None = None,
    format: str | None = None,  # noqa: A002 - as the flag is called
    file: str | None = None,
    allow_pickle: bool = False,
) -> Iterator[StoredModel]:
    """Opens a model for as long as the block lasts.

    Raises:
        UsageError: the reference or the format cannot be meant.
        As `open_model`.
    """
    kind = None if format is None else format_called(format)
    reference = parse_reference(text, revision=revision)
    with open_model(reference, format=kind, file=file, allow_pickle=allow_pickle) as model:
        yield model


def require_values(model: StoredModel) -> None:
    """Refuses a model of which only headers are read.

    Raises:
        UsageError: it is on the Hub.
    """
    if not model.is_here:
        raise UsageError(
            f"the values of {model.reference} are not here",
            f"of models on the Hub only headers are read: fetch it, such as by `hf download {model.reference}`, and "
            "name its folder",
        )


def format_called(name: str) -> WeightFormat:
    """A format by its name.

    Raises:
        UsageError: there is none.
    """
    try:
        return WeightFormat(name)
    except ValueError as error:
        raise UsageError(f"{name} is no format", f"the formats are {', '.join(WeightFormat)}") from error


@contextmanager
def reading(what: str, *models: StoredModel, pattern: str | None = None) -> Iterator[Callable[[int], None]]:
    """Shows how far work is that reads the tensors of models, or those whose names match."""
    from entrenar_common.progress import Progress

    total = sum(
        tensor.size_bytes
        for model in models
        for name, tensor in model.tensors.items()
        if pattern is None or fnmatchcase(name, pattern)
    )
    with Progress() as progress:
        task = progress.task(what, total=total, unit="bytes")
        yield task.advance
