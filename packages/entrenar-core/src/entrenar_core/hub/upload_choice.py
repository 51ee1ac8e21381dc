"""Which files of a folder belong on the Hub.

Only what is known to be part of a model goes there: weights, settings, tokenizer, card, licence, curves. All else
stays: checkpoints and optimiser states, caches and half files, code, and the records of a run (`run.json`,
`report.json`), which name folders of this machine.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from entrenar_core.artifact import SENTENCE_FILES, TOKENIZER_FILES
from entrenar_core.errors import ModelError, NotFoundError, OutputError, UsageError
from entrenar_core.formats import read_json

_WEIGHTS = re.compile(
    r"[^/]+\.(safetensors|gguf|apr|apr\.json|onnx|onnx[._]data(_\d+)?)|onnx/[^/]+\.onnx([._]data(_\d+)?)?"
    r"|(pytorch_model|adapter_model)(-\d+-of-\d+)?\.bin|\d+_[A-Za-z]+/(model\.safetensors|pytorch_model\.bin)"
)
_BESIDE = re.compile(
    r"(model|pytorch_model)\.(safetensors|bin)\.index\.json|[^/]+\.safetensors\.index\.json"
    r"|(config|generation_config|adapter_config|preprocessor_config|processor_config)\.json"
    r"|(sentence_bert_config|config_sentence_transformers)\.json|\d+_[A-Za-z]+/config\.json"
    r"|vocab\.(json|txt)|[^/]+\.tiktoken|metrics\.jsonl|loss\.svg|[^/]+\.imatrix|chat_templates/[^/]+\.jinja"
    r"|(LICEN[CS]E|NOTICE|USE_POLICY|README)(\.md|\.txt)?"
)
_NAMED = frozenset((*TOKENIZER_FILES, *SENTENCE_FILES))
_MANIFEST = "run.json"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to push: what it is called on the Hub, where it lies, and how large it is."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of a folder that go to the Hub, and the names of those that stay, folders with a slash behind them."""

    files: tuple[LocalFile, ...]
    left_out: tuple[str, ...]


def choose_files(folder: Path) -> Choice:
    """What of a folder is pushed, by name.

    Raises:
        NotFoundError: there is no such folder.
        UsageError: it holds a run that is not complete.
        ModelError: it holds no weights, or a broken `run.json`.
        OutputError: it cannot be read.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", "name the folder of a model, such as a run's result")
    _require_complete(folder)
    files: list[LocalFile] = []
    left_out: list[str] = []
    with reading(folder):
        for name, path in _entries(folder):
            if path.is_file() and belongs(name) and _stays(path, folder):
                files.append(LocalFile(name, path, path.stat().st_size))
            else:
                left_out.append(name)
    if not any(_WEIGHTS.fullmatch(file.name) for file in files):
        raise ModelError(
            f"{folder} holds no weights to push",
            "name a folder with a model in it: *.safetensors, *.gguf, *.onnx or *.apr",
        )
    return Choice(tuple(files), tuple(left_out))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a failure to read what is to be pushed into an error that a user can act on.

    Raises:
        OutputError: it is gone, may not be read, or its disk is broken.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}", "look at what is there") from error


def belongs(name: str) -> bool:
    """Whether a file of this name, relative to its folder, is part of a model."""
    known = name in _NAMED or bool(_WEIGHTS.fullmatch(name) or _BESIDE.fullmatch(name))
    return known and not any(part.startswith(".") for part in name.split("/")) and name.isprintable()


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files by name, and the folders of which nothing can belong, as one entry each."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path.name, path
            continue
        inside = [file for file in sorted(path.iterdir()) if belongs(f"{path.name}/{file.name}")]
        if path.is_symlink() or not inside:
            yield f"{path.name}/", path
            continue
        for file in sorted(path.iterdir()):
            yield f"{path.name}/{file.name}" + "/" * file.is_dir(), file


def _stays(path: Path, folder: Path) -> bool:
    """Whether a file lies where it seems to: a link out of the folder could lead to a secret. The Hub's cache links to
    its own blobs.
    """
    real, home = path.resolve(), folder.resolve()
    return real.is_relative_to(home) or real.parent == home.parent.parent / "blobs"


def _require_complete(folder: Path) -> None:
    if not (folder / _MANIFEST).is_file():
        return
    status = read_json(folder / _MANIFEST).get("status")
    if status == "running":
        raise UsageError(f"{folder} holds a run that is not over", "push it once it is complete")
    if status is not None and status != "complete":
        raise UsageError(f"{folder} holds a run that was interrupted", "complete it with --resume first")
