"""A model as it is stored: its tensors over one file or many, here or on the Hub, from their headers alone.

This is what looks inside models work on. A model that is to be loaded is a `ModelArtifact`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from entrenar_core.errors import ModelError, NotFoundError, UnsoundFileError
from entrenar_core.formats import FORMATS, WeightFormat, choose_weights
from entrenar_core.formats.choosing import Hints, placed_by
from entrenar_core.formats.names import shown
from entrenar_core.formats.places import LocalPlace, OneFile, Place, read_json_of
from entrenar_core.formats.shards import index_faults
from entrenar_core.formats.sniffing import sniff
from entrenar_core.formats.sources import Source
from entrenar_core.formats.tensors import Fault, Header, StoredTensor
from entrenar_core.references import HubReference, Reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INDEX = ".index.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""What peft calls the weights of an adapter."""
_READ_AT_ONCE = 8
_HINTS = Hints(
    "say which one to look at: `--file NAME`",
    "--allow-pickle reads its tensors, and runs nothing of it; safer still is a model in safetensors",
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file with tensors."""

    name: str
    source: Source
    header: Header


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The tensors of a model by name, in the order of their files.

    `sources` are its open files by name: those with headers, and those that an ONNX graph keeps its weights in.
    `config` is config.json, where there is one that can be read; an adapter has `adapter_config`. `faults` are settings
    that are broken and what does not fit between its files: what an index says and headers do not, and the like.
    `commit` is the Hub's.
    """

    reference: Reference
    place: Place
    format: WeightFormat
    files: tuple[StoredFile, ...]
    sources: Mapping[str, Source]
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] | None
    adapter_config: Mapping[str, Any] | None
    faults: tuple[Fault, ...] = ()
    commit: str | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its files say besides tensors; of a key that several have, the first."""
        return {key: value for file in reversed(self.files) for key, value in file.header.metadata.items()}

    @property
    def values(self) -> int:
        """How many values its tensors have, as they are stored."""
        return sum(tensor.values for tensor in self.tensors.values())

    @property
    def is_here(self) -> bool:
        """Whether its bytes lie on this machine."""
        return isinstance(self.place, LocalPlace)

    def array(self, name: str) -> "NDArray[Any]":
        """The values of a tensor as numpy has them, read when they are looked at: see `array_of`.

        Raises:
            ModelError: there is no such tensor, or its values cannot be read.
        """
        from entrenar_core.formats.arrays import array_of

        if name not in self.tensors:
            raise ModelError(f"{self.reference} has no tensor {name}", "`entrenar-inspect layers --verbose` lists them")
        return array_of(self, self.tensors[name])

    def inline(self, tensor: StoredTensor) -> bytes:
        """The bytes of a tensor whose header holds its values."""
        return next(file.header.inline[tensor.name] for file in self.files if tensor.name in file.header.inline)

    def close(self) -> None:
        """Lets go of its files."""
        for source in self.sources.values():
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def open_model(
    reference: Reference,
    *,
    format: WeightFormat | None = None,  # noqa: A002 - as the flag is called
    file: str | None = None,
    allow_pickle: bool = False,
) -> StoredModel:
    """Reads the headers of a model. Of a Hub model nothing else is fetched but its settings.

    Args:
        format: which weights to take where there are several kinds.
        file: which file to take where there are several.
        allow_pickle: whether PyTorch files are read. Nothing in them is run.

    Raises:
        NotFoundError: there is no such file, folder, package, repository or revision.
        AccessError, FetchError: the Hub does not give it.
        ModelError: a file is unsound, or which files are meant is not clear.
    """
    if isinstance(reference, HubReference):
        from entrenar_core.hub.ranges import remote_place

        place, commit = remote_place(reference)
        names = _chosen(reference, place, format, file, allow_pickle)
        return _required(format, _opened(reference, place, names, allow_pickle, commit))
    path = reference.locate()
    if path.is_dir():
        local = LocalPlace(path)
        names = _chosen(reference, local, format, file, allow_pickle)
        return _required(format, _opened(reference, local, names, allow_pickle))
    if file is not None:
        raise ModelError(f"{reference} is a file, and has no {file} in it", "name the folder, or leave the file out")
    return _required(format, _opened(reference, OneFile(path, path.parent), (path.name,), allow_pickle))


def _required(kind: WeightFormat | None, model: StoredModel) -> StoredModel:
    """The model, where it is of the format that was asked for, if any."""
    if kind is None or model.format is kind:
        return model
    model.close()
    raise ModelError(f"{model.reference} is of the format {model.format}, not {kind}", "name another file or format")


def _chosen(
    reference: Reference,
    place: Place,
    format: WeightFormat | None,  # noqa: A002
    file: str | None,
    allow_pickle: bool,
) -> tuple[str, ...]:
    """The files that hold the model: those of weights, else of an adapter."""
    if file is not None:
        if file not in place.sizes:
            raise NotFoundError(f"{reference} has no file {file}", _holding(place.sizes))
        return (file,)
    try:
        found = choose_weights(
            place.sizes,
            where=str(reference),
            format=format,
            allow_pickle=allow_pickle,
            among=tuple(WeightFormat),
            unlisted=True,
            hints=_HINTS,
        )
    except ModelError:
        adapter = [name for name in ADAPTERS if name in place.sizes]
        if not adapter or format is not None:
            raise
        return (adapter[0],)
    return found.names


def _holding(names: Collection[str]) -> str:
    return f"it has {', '.join(sorted(names)[:20]) or 'no files'}"


def _opened(
    reference: Reference, place: Place, names: Sequence[str], allow_pickle: bool, commit: str | None = None
) -> StoredModel:
    placed: dict[str, str] = {}
    listed: list[str] = []
    total_size: Any = None
    for name in names:
        if name.endswith(_INDEX):
            listing = read_json_of(place, name)
            placed |= placed_by(listing, name, f"{place.name}/{name}")
            about = listing.get("metadata")
            total_size = about.get("total_size") if isinstance(about, Mapping) else None
            listed += [shard for shard in dict.fromkeys(placed.values()) if shard not in listed]
        else:
            listed.append(name)
    with ExitStack() as opened:
        files = _files(place, listed, allow_pickle, opened)
        tensors, repeated = _together(files)
        folder = PurePosixPath(listed[0]).parent.as_posix()
        faults = [Fault("shards", message) for message in repeated]
        if placed:
            faults += index_faults(tensors, placed, total_size)
        elif len(listed) > 1:
            message = f"the index of its {len(listed)} shards is missing, without which programs do not load them"
            faults.append(Fault("shards", message))
        found = StoredModel(
            reference,
            place,
            _one_format(reference, files),
            files,
            _sources(place, files, tensors, opened),
            tensors,
            _settings(place, folder, "config.json", faults),
            _settings(place, folder, "adapter_config.json", faults),
            tuple(faults),
            commit,
        )
        opened.pop_all()  # from now on it is the model that closes them
        return found


def _files(place: Place, names: Sequence[str], allow_pickle: bool, opened: ExitStack) -> tuple[StoredFile, ...]:
    """Reads the headers of several files at once; `opened` closes them."""

    missing = [name for name in names if name not in place.sizes and not _opens(place, name)]
    if len(names) > 1 and missing:
        lacking = f"{len(missing)} of the {len(names)} files that its index lists: {', '.join(missing[:5])}"
        raise UnsoundFileError(f"{place.name} lacks {lacking}", "fetch or export the model again")

    def read(name: str) -> StoredFile:
        source = place.open(name)
        opened.callback(source.close)
        return _file(source, name, allow_pickle)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return tuple(pool.map(read, names))


def _opens(place: Place, name: str) -> bool:
    """Whether a file that a place does not list by itself, in a folder inside of it, is there."""
    try:
        place.open(name).close()
    except NotFoundError:
        return False
    return True


def _one_format(reference: Reference, files: Sequence[StoredFile]) -> WeightFormat:
    formats = {file.header.format for file in files}
    if len(formats) > 1:
        raise ModelError(f"{reference}: its files are of the formats {', '.join(sorted(formats))}", "name one of them")
    return formats.pop()


def _file(source: Source, name: str, allow_pickle: bool) -> StoredFile:
    with _unsound():
        found = sniff(source)
    if FORMATS[found].pickles and not allow_pickle:
        raise ModelError(f"{source.name} is a pickle, which can run code where others read it", _HINTS.pickles)
    with _unsound():
        header = cast(Header, import_module(f"entrenar_core.formats.{FORMATS[found].module}").read(source))
    above = PurePosixPath(name).parent
    tensors = tuple(
        replace(tensor, file=(above / tensor.file).as_posix() if tensor.file else name) for tensor in header.tensors
    )
    return StoredFile(name, source, replace(header, tensors=tensors))


@contextmanager
def _unsound() -> Iterator[None]:
    """What a reader refuses is an unsound file; what does not come from a file stays what it is."""
    try:
        yield
    except ModelError as error:
        raise UnsoundFileError(error.message, error.hint) from error


def _sources(
    place: Place, files: Sequence[StoredFile], tensors: Mapping[str, StoredTensor], opened: ExitStack
) -> Mapping[str, Source]:
    """The files that hold values; what a graph keeps in another file must be there."""
    found = {file.name: file.source for file in files}
    last: dict[str, StoredTensor] = {}
    for tensor in tensors.values():
        if not tensor.inline and (tensor.file not in last or tensor.end > last[tensor.file].end):
            last[tensor.file] = tensor
    for file, tensor in last.items():
        if file not in found:
            found[file] = place.open(file)
            opened.callback(found[file].close)
        missing = tensor.end - found[file].size_bytes
        if missing > 0:
            raise UnsoundFileError(
                f"{found[file].name} ends {missing:,} bytes before tensor {shown(tensor.name)} does",
                "fetch or export it again",
            )
    return found


def _together(files: Sequence[StoredFile]) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of all files, and what is said twice."""
    found: dict[str, StoredTensor] = {}
    repeated = []
    for file in files:
        for tensor in file.header.tensors:
            if tensor.name in found:
                repeated.append(f"tensor {tensor.name} is in {found[tensor.name].file} and in {file.name}")
            else:
                found[tensor.name] = tensor
    return found, repeated


def _settings(place: Place, folder: str, name: str, faults: list[Fault]) -> Mapping[str, Any] | None:
    """A file of settings beside the weights, or above a folder `onnx`. One that is broken is a fault: the tensors are
    what they are all the same.
    """
    for inside in dict.fromkeys((PurePosixPath(folder, name).as_posix(), name)):
        if inside in place.sizes:
            try:
                return read_json_of(place, inside)
            except ModelError as error:
                faults.append(Fault("settings", error.message))
                return None
    return None
