"""Where fitted teachers are kept. One run at a time looks for a teacher, fits it and keeps it; others wait for theirs.

With several processes, rank 0 alone looks and writes, and tells the others, so that all of them do the same.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from accelerate import Accelerator

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import Interrupted, ModelError, NotFoundError, OutputError
from entrenar_core.models.heads import head_labels
from entrenar_core.models.loading import load_config, load_model
from entrenar_core.models.quiet import explaining, quietly
from entrenar_core.models.weights import read_weights
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.checkpoints import load_tensors
from entrenar_core.training.files import new_folder, remove_folder
from entrenar_core.training.ranks import on_main
from entrenar_core.training.signals import StopRequest
from entrenar_core.user_folder import user_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation

_POLL_S = 0.2
_HINT = "set ENTRENAR_HOME to a folder that can be written"


def kept_folder() -> Path:
    """Where fitted teachers are kept: `$ENTRENAR_HOME/teachers`, or in the user's cache folder."""
    return user_folder() / "teachers"


@contextlib.contextmanager
def keeping(place: Path) -> Iterator[None]:
    """Turns a failure to write what is kept into an error that says how to keep it elsewhere.

    Raises:
        OutputError: the disk is full, the folder cannot be made or written, and the like.
    """
    try:
        yield
    except OutputError as error:
        raise OutputError(error.message, _HINT) from error
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error.strerror or error}", _HINT) from error


def require_writable() -> None:
    """Makes the folder of fitted teachers, and tries to write there.

    Raises:
        OutputError: it cannot be made or written.
    """
    folder = kept_folder()
    with keeping(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


class Lock:
    """A file that one process holds at a time; the system lets go of it when the process ends, however it ends."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream: IO[str] | None = None

    def take(self, stop: StopRequest) -> bool:
        """Whether it is held now; does not wait.

        Raises:
            OutputError: the file cannot be written.
            Interrupted: the user stopped the run, which would wait.
        """
        with keeping(self.file):
            if self._stream is None:
                self._stream = self.file.open("a")
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop.requested:
                    raise Interrupted("stopped while another run fits the same teacher") from None
                return False
        return True

    def close(self) -> None:
        """Lets go of it."""
        if self._stream is not None:
            self._stream.close()


@contextlib.contextmanager
def held(folder: Path, accelerator: Accelerator, callbacks: Sequence[Callback], stop: StopRequest) -> Iterator[None]:
    """Holds a folder of a fitted teacher until the block ends on every rank; waits for a run that holds it.

    Raises:
        OutputError: its lock cannot be written.
        Interrupted: the user stopped the run while it waited.
    """
    with contextlib.closing(Lock(folder.with_suffix(".lock"))) as lock:
        waits = False
        while not on_main(accelerator, lambda: lock.take(stop)):
            tell(() if waits else callbacks, "waiting for another run that fits the same teacher")
            waits = True
            # All ranks ask again and again: a collective that waits for hours would run into its time limit.
            time.sleep(_POLL_S)
        yield
        accelerator.wait_for_everyone()


def kept_model(prepared: "Preparation", folder: Path, accelerator: Accelerator) -> "PreTrainedModel | None":
    """The fitted teacher in a folder, if rank 0 finds one there; a damaged one is removed, to be made again.

    Raises:
        ModelError: the teacher itself cannot be loaded, such as one whose code is not trusted.
        OutputError: a damaged one cannot be removed.
    """
    model: PreTrainedModel | None = None

    def find() -> bool:
        nonlocal model
        if not folder.exists():
            return False
        # First, for what is wrong with the teacher itself is no damage of what was made from it.
        load_config(prepared.teacher, trust_remote_code=prepared.config.teacher.trust_remote_code)
        try:
            model = _load(prepared, folder)
        except (ModelError, NotFoundError, OSError):
            with keeping(folder):
                remove_folder(folder)
        return model is not None

    found = on_main(accelerator, find)
    return _load(prepared, folder) if found and model is None else model


def keep_model(model: "PreTrainedModel", folder: Path) -> None:
    """Writes a fitted teacher to `folder/model` and removes the work that led to it.

    Raises:
        OutputError: it cannot be written.
    """
    with keeping(folder):
        with new_folder(folder / "model") as aside, quietly():
            model.save_pretrained(aside)
        remove_folder(folder / "work")


def _load(prepared: "Preparation", folder: Path) -> "PreTrainedModel":
    teacher, artifact = prepared.config.teacher, inspect_folder(folder)
    model = load_model(
        artifact,
        prepared.task,
        dtype=teacher.dtype,
        label_names=prepared.label_names,
        trust_remote_code=teacher.trust_remote_code,
    )
    if (
        head_labels(artifact, prepared.task) is None
    ):  # a class of the model's own code: what it has fitted was taken for no head
        with explaining("weights", artifact.reference, "remove them, and they are made again"):
            load_tensors(model, read_weights(artifact))
    return model
