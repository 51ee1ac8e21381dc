"""Where the files of a model lie: a folder here, or (in `hub`) a repository that is read by ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.formats.choosing import TOKENIZER, most_bytes, parse_json, stays_below
from entrenar_core.formats.json_texts import MAX_BUILT_BYTES, without_list
from entrenar_core.formats.names import shown
from entrenar_core.formats.sources import FileSource, Source, text_bytes

_HINT = "fetch or export the model again"


class Place(Protocol):
    """Files by name, relative to it, with their sizes in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def open(self, name: str) -> Source:
        """One of its files.

        Raises:
            NotFoundError: it has none of this name.
            ModelError: the file cannot be read, or does not lie below the place.
        """
        ...


class LocalPlace:
    """A folder on this machine. `sizes` has the files on top of it and in its `onnx`; others open by their names."""

    def __init__(self, folder: Path) -> None:
        """Looks what is in the folder.

        Raises:
            NotFoundError: there is no such folder.
            ModelError: it cannot be read.
        """
        self.folder, self.name = folder, str(folder)
        if not folder.is_dir():
            raise NotFoundError(f"{folder} does not exist", "check the spelling; a Hub repository reads org/name")
        try:
            inner = folder / "onnx"
            found = [*folder.iterdir(), *(inner.glob("*") if _leads_inside(inner, folder) else ())]
            self.sizes: Mapping[str, int] = {
                file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(found) if file.is_file()
            }
        except OSError as error:
            raise ModelError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error

    def open(self, name: str) -> FileSource:
        """As `Place.open`. Links that lead out of the folder are not followed."""
        file = self.folder / name
        if not stays_below(name) or not _leads_inside(file, self.folder):
            raise ModelError(
                f"{self.folder}/{shown(name)} lies outside of its folder",
                "put the file itself into the folder of the model",
            )
        return FileSource(file)


class OneFile(LocalPlace):
    """A file that was named itself, wherever a link in its name leads, and the folder around it."""

    def __init__(self, file: Path, folder: Path) -> None:
        super().__init__(folder)
        self.file = file.relative_to(folder).as_posix()

    def open(self, name: str) -> FileSource:
        """As `Place.open`."""
        return FileSource(self.folder / name) if name == self.file else super().open(name)


def _leads_inside(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is one in it when links are followed; one whose links go in circles is not."""
    try:
        return path.resolve().is_relative_to(root_of(folder))
    except (OSError, RuntimeError):
        return False


def root_of(folder: Path) -> Path:
    """Where the links of a folder may lead: inside it, and from a snapshot in the Hub's cache into that cache."""
    in_cache = folder.parent.name == "snapshots" and "--" in folder.parent.parent.name
    return (folder.parents[2] if in_cache else folder).resolve()


def read_json_of(place: Place, name: str) -> Mapping[str, Any]:
    """A JSON object in a file of a place; of tokenizer.json all but its merges, which are empty then.

    Raises:
        NotFoundError, ModelError: as `Place.open`; or it is too large, or no JSON object.
    """
    source = place.open(name)
    try:
        if source.size_bytes > most_bytes(name):
            raise ModelError(f"{source.name} is too large for a file of settings", _HINT)
        data = text_bytes(
            source, 0, source.size_bytes, lambda what: ModelError(f"{source.name} is not JSON: {what}", _HINT)
        )
        if name.rpartition("/")[2] == TOKENIZER:
            without_list(data, "merges")
        return parse_json(data, source.name, MAX_BUILT_BYTES)
    finally:
        source.close()
