"""Which files a model is written to, and their writing: beside the target, then renamed, so that none is ever half."""

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any

from entrenar_core.artifact import SENTENCE_FILES, TOKENIZER_FILES
from entrenar_core.errors import OutputError
from entrenar_core.formats import FORMATS, WeightFormat, format_of
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

BESIDE = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    *TOKENIZER_FILES,
    *SENTENCE_FILES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
"""What is copied beside the weights of a model."""
OF_FILES = "<!-- entrenar: files -->"
"""What stands in a card before what an export says of its files."""
ADAPTER = "adapter_model"
"""What peft calls the weights of an adapter."""
STEMS = {WeightFormat.SAFETENSORS: "model", WeightFormat.PYTORCH: "pytorch_model"}
"""What transformers calls the weights of a folder, before `.safetensors` or `-00001-of-00002.safetensors`."""


def cut(tensors: Sequence[Outgoing], shard_bytes: int | None) -> list[list[Outgoing]]:
    """The tensors of each file: in their order, as many as fit below the size; one alone may be larger."""
    shards: list[list[Outgoing]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and shard_bytes is not None and filled + tensor.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    return shards


def names_of(kind: WeightFormat, count: int, stem: str | None = None) -> list[str]:
    """The names of the files of a folder, as transformers looks for them."""
    stem, suffix = stem or STEMS.get(kind, "model"), FORMATS[kind].suffixes[0]
    if count == 1:
        return [f"{stem}{suffix}"]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def write_weights(
    folder: Path,
    kind: WeightFormat,
    shards: Sequence[Sequence[Outgoing]],
    metadata: Mapping[str, Any],
    stem: str | None = None,
) -> tuple[str, ...]:
    """Writes the files of a folder, with an index where there are several; returns their names."""
    names = names_of(kind, len(shards), stem)
    for name, tensors in zip(names, shards, strict=True):
        write_file(folder / name, kind, tensors, metadata)
    if len(names) == 1:
        return tuple(names)
    placed = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    listing = f"{STEMS[kind]}{FORMATS[kind].suffixes[0]}.index.json"
    (folder / listing).write_text(json.dumps(index, indent=2) + "\n")
    return (*names, listing)


def write_file(path: Path, kind: WeightFormat, tensors: Sequence[Outgoing], metadata: Mapping[str, Any]) -> None:
    """Writes one file."""
    import_module(f"entrenar_core.formats.{FORMATS[kind].writer}").write(path, tensors, metadata)


@contextmanager
def replacing(output: Path, *, folder: bool, force: bool) -> Iterator[Path]:
    """A place beside `output` to write to, which takes its name in the end; on a failure nothing of it is left.

    Raises:
        OutputError: there is something of this name, and `force` is not set or would delete more than a model; or it
            cannot be written.
    """
    if output.is_symlink():  # which stays: what it leads to is replaced
        output = Path(os.path.realpath(output))
    require_free(output, folder=folder, force=force)
    with _ending_cleanly(), _beside(output) as work:
        try:
            yield work if folder else work / output.name
            require_free(output, folder=folder, force=force)  # another program may have written it meanwhile
            _put(work if folder else work / output.name, output)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OutputError(
                f"{output} cannot be written: {error.strerror}",
                "free some space, or choose another" if full else "choose another --output",
            ) from error


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder for the time being."""
    work = output.with_name(f".{output.name[:100]}-{token_hex(8)}")
    try:  # from before it is made: a signal may come at any time
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir()
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error.strerror}", "choose another --output") from error
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Lets a process that is told to end, as by a closed terminal, take away what is half written. Whoever listens to
    these signals already keeps doing so.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    signals = [found for name in names if (found := getattr(signal, name, None)) is not None]
    ours = [one for one in signals if signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def require_apart(models: Iterable[StoredModel], output: Path) -> None:
    """What is read is not replaced.

    Raises:
        OutputError: the output is, or holds, a file of one of the models.
    """
    target = Path(os.path.realpath(output))  # which, other than resolve, takes a link that leads to itself
    for model in models:
        for source in model.sources.values():
            path = Path(os.path.realpath(source.path)) if isinstance(source, FileSource) else None
            if path is not None and (path == target or path.is_relative_to(target)):
                raise OutputError(f"{output} is where {model.reference} is read from", "choose another --output")


def require_free(output: Path, *, folder: bool, force: bool) -> None:
    """Refuses an output that something else would be replaced by.

    Raises:
        OutputError: there is something of this name, and `force` is not set or would delete more than a model.
    """
    if not output.exists():
        return
    if not output.is_dir() and not output.is_file():
        raise OutputError(f"{output} is no file that could be replaced", "choose another --output")
    if output.is_dir() != folder:
        raise OutputError(f"{output} is a {'file' if folder else 'folder'}", "choose another --output")
    if folder:
        _require_only_a_model(output)
    if not force and (not folder or any(output.iterdir())):
        raise OutputError(f"{output} is there already", "choose another --output, or replace it with --force")


def _require_only_a_model(output: Path) -> None:
    names = (file.relative_to(output).as_posix() for file in output.rglob("*") if not file.is_dir())
    other = next((name for name in names if not _belongs(name) and not _is_own_card(output / name)), None)
    if other is not None:
        raise OutputError(f"{output} holds {other}, which is no part of a model", "choose another --output")


def _belongs(name: str) -> bool:
    """Whether a file of a folder is one that a conversion writes."""
    first, _, rest = name.partition("/")
    name = name.removesuffix(".data")  # beside a large ONNX graph
    return name in BESIDE or (not rest and (name.startswith(ADAPTER) or format_of(name) is not None)) or is_part(first)


def _is_own_card(file: Path) -> bool:
    """Whether it is the card that an export wrote beside its files."""
    return file.name == "README.md" and OF_FILES in file.read_text(encoding="utf-8", errors="replace")


def is_part(folder: str) -> bool:
    """Whether a folder inside of a model's holds one of the modules behind a sentence encoder, such as `1_Pooling`."""
    number, underscore, _ = folder.partition("_")
    return number.isdecimal() and bool(underscore)


def _put(work: Path, output: Path) -> None:
    """Gives what was written its name; a folder that was there steps aside first."""
    if output.is_dir():
        aside = work.with_name(f"{work.name}-replaced")
        output.rename(aside)
        work.rename(output)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        work.replace(output)
