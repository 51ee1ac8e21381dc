"""What `org/name@revision`, `./folder`, `file.gguf` and `pkg://package/path` mean.

Reading a reference touches no network. A name that is a file or folder here means that one, as in transformers,
unless it carries a revision, which only the Hub has.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from entrenar_core.errors import NotFoundError, UsageError
from entrenar_core.formats.kinds import FORMATS

MODEL_SUFFIXES = tuple(suffix for row in FORMATS.values() for suffix in row.suffixes)
# What is called so is meant for a file, and a repository is not: that it is not here is said before any network.
_FILE_SUFFIXES = (*MODEL_SUFFIXES, ".json", ".txt", ".yaml", ".yml", ".ckpt", ".msgpack", ".zip", ".gz")
ACCEPTED = (
    "give a Hub repository (org/name or org/name@revision), a local file or folder (./folder, model.gguf) "
    "or a path in an installed package (pkg://package/path)"
)

# As the Hub names repositories: letters, digits, `-`, `_`, `.`, at most 96 characters.
_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}", re.ASCII)
# What git forbids in the name of a branch or tag; `..` would also leave the cache folder.
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[/-]|[/.]$")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the Hub; a `revision` of None is its main branch."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


@dataclass(frozen=True, slots=True)
class PathReference:
    """A file or folder on this machine, as it was spelled."""

    path: str

    def __str__(self) -> str:
        return self.path

    def locate(self) -> Path:
        """The file or folder.

        Raises:
            NotFoundError: it is not there.
        """
        found = Path(self.path).expanduser()
        if not found.exists():
            raise NotFoundError(f"{self.path} does not exist", "check the spelling; a Hub repository reads org/name")
        return found


@dataclass(frozen=True, slots=True)
class PackageReference:
    """A file or folder inside an installed package, which is found without being imported."""

    package: str
    path: str

    def __str__(self) -> str:
        return f"pkg://{self.package}/{self.path}" if self.path else f"pkg://{self.package}"

    def locate(self) -> Path:
        """The file or folder.

        Raises:
            NotFoundError: the package is not installed, or has no such file.
            UsageError: the path leads out of the package, by a link.
        """
        top, *inner = self.package.split(".")  # only the top one: to find a subpackage, Python imports its parent
        roots = _package_folders(top)
        if not roots:
            raise NotFoundError(
                f"{self}: the package {top} is not installed",
                "install the distribution that carries it into the environment of entrenar, "
                f"such as `uv pip install {top.replace('_', '-')}`",
            )
        for root in roots:
            found = root.joinpath(*inner, self.path)
            if found.exists():
                if not found.resolve().is_relative_to(root.resolve()):
                    raise UsageError(f"{self} is a link that leads out of the package", ACCEPTED)
                return found
        raise NotFoundError(f"{self}: the package {top} has no such file", f"it is installed in {roots[0]}")


Reference = HubReference | PathReference | PackageReference


def parse_reference(text: str, *, revision: str | None = None) -> Reference:
    """The reference that `text` spells, with the `revision` of a flag or setting where one is given.

    Raises:
        UsageError: `text` cannot be a reference, or has a revision where only the Hub has one.
    """
    if not text.strip() or "\0" in text:
        raise UsageError("the reference to a model is empty" if not text.strip() else f"{text!r} is no path", ACCEPTED)
    if text.startswith("pkg://") or _is_path(text, revision):
        if revision is not None:
            raise UsageError(f"{text} is on this machine and has no revision {revision}", "leave the revision out")
        return _package(text) if text.startswith("pkg://") else PathReference(text)
    if "://" in text:
        raise UsageError(f"{text} is a URL, not the name of a repository", ACCEPTED)
    return _repository(text, revision)


def _is_path(text: str, revision: str | None) -> bool:
    if text.startswith(("/", "./", "../", "~/")) or text in (".", "..", "~"):
        return True
    if revision is None:
        with suppress(OSError):  # a name too long for a file
            if Path(text).exists():
                return True
    return text.endswith(_FILE_SUFFIXES) and "@" not in text and "://" not in text


def _package(text: str) -> PackageReference:
    package, _, path = text.removeprefix("pkg://").partition("/")
    if not all(part.isidentifier() for part in package.split(".")):
        raise UsageError(f"{text}: {package or 'nothing'} is not the name of a Python package", ACCEPTED)
    path = path.rstrip("/")
    if ".." in path.split("/") or path.startswith("/") or "\\" in path:
        raise UsageError(f"{text} leads out of the package", "write a path inside the package, without `..`")
    return PackageReference(package, path)


def _package_folders(package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def _repository(text: str, revision: str | None) -> HubReference:
    repo_id, at, spelled = text.partition("@")
    if not _REPO_ID.fullmatch(repo_id) or len(repo_id) > 96 or "--" in repo_id or ".." in repo_id:
        raise UsageError(f"{text} is neither a file or folder here nor the name of a Hub repository", ACCEPTED)
    if at and revision not in (None, spelled):
        raise UsageError(f"{text} names one revision, and {revision} is asked for", "give the revision once")
    named = spelled if at else revision
    if named is not None and (not named or _NO_REVISION.search(named)):
        raise UsageError(
            f"{text}: {named!r} cannot be a branch, tag or commit", "write org/name@revision, such as org/name@main"
        )
    return HubReference(repo_id, named)
