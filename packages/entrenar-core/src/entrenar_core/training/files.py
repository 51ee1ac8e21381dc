"""Writing so that a finished file or folder is never half of one: aside first, then renamed into place."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from entrenar_core.errors import OutputError

_FULL = "free space, or choose another folder"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into an error that a user can act on.

    Raises:
        OutputError: the disk is full, the folder is not writable, and the like.
    """
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) and error.filename != str(path) else ""
        reason = f"{error.strerror or error}{f' ({place})' if place else ''}"
        hint = _FULL if error.errno in (ENOSPC, EDQUOT, EFBIG) else "look at what is there, or choose another folder"
        raise OutputError(f"{path} cannot be written: {reason}", hint) from error
    except Exception as error:
        if "I/O error" not in str(error) and "os error" not in str(error):
            raise
        raise OutputError(f"{path} cannot be written: {error}", _FULL) from error


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step.

    Raises:
        OutputError: it cannot be written; an older file is then left as it was.
    """
    aside = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, in one step; raises as `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well, and disappears when it does not.

    Raises:
        OutputError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.partial")
    with writing(path):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            readable = aside.stat().st_mode & 0o666  # as other files here; safetensors makes its own private
            for file in aside.rglob("*"):
                if file.is_file():
                    file.chmod(readable)
                _sync(file)
            _sync(aside)
            if path.exists():
                remove_folder(path)
            aside.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


_DELETED = ".deleted"


def remove_folder(path: Path) -> None:
    """Deletes a folder so that a half-deleted one is not taken for a whole one."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    doomed = path.with_name(f".{path.name}{_DELETED}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def forget_deleted(folder: Path) -> None:
    """Takes away what is left below a folder of deletions that were stopped in the middle."""
    for left in folder.rglob(f".*{_DELETED}"):
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
