"""The model that a command line names, opened."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import PurePath

from entrenar_core.artifact import TOKENIZER_FILES
from entrenar_core.errors import FetchError, NotFoundError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import HubReference, Reference, parse_reference
from entrenar_core.stored_model import StoredModel, open_model

_BESIDE = {
    **dict.fromkeys(TOKENIZER_FILES, "a tokenizer"),
    **dict.fromkeys(("config.json", "generation_config.json", "adapter_config.json"), "settings"),
}


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
    _require_weights(reference, file)
    with _open(reference, kind, file, allow_pickle) as model:
        yield model


def _open(reference: Reference, kind: WeightFormat | None, file: str | None, allow_pickle: bool) -> StoredModel:
    """A bare name that the Hub does not give may have been meant for a file."""
    try:
        return open_model(reference, format=kind, file=file, allow_pickle=allow_pickle)
    except (FetchError, NotFoundError) as error:
        if not isinstance(reference, HubReference) or reference.revision is not None or "/" in reference.repo_id:
            raise
        here = f"no file or folder here is called {reference}"
        raise type(error)(error.message, f"{here}; {error.hint}" if error.hint else here) from error


def _require_weights(reference: Reference, file: str | None) -> None:
    """Refuses a file that lies beside weights.

    Raises:
        UsageError: the file that is meant has settings or a tokenizer.
        NotFoundError: it is not there.
    """
    meant = PurePath(file or ("" if isinstance(reference, HubReference) else reference.path))
    if meant.name not in _BESIDE:
        return
    if file is None and not isinstance(reference, HubReference):
        reference.locate()
    folder = str(reference).removesuffix(meant.name).rstrip("/") or "."
    raise UsageError(
        f"{file or reference} holds {_BESIDE[meant.name]} and no weights",
        f"leave out `--file {file}`" if file else f"name the folder: {folder}",
    )


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
    total = sum(
        tensor.size_bytes
        for model in models
        for name, tensor in model.tensors.items()
        if pattern is None or fnmatchcase(name, pattern)
    )
    with going_through(what, total) as progress:
        yield progress


@contextmanager
def going_through(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Shows how far work is that goes through so many bytes."""
    from entrenar_common.progress import Progress

    with Progress() as progress:
        yield progress.task(what, total=total_bytes, unit="bytes").advance
