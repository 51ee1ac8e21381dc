"""Prints the unit tests of the files named, or of those that changed since the last commit, one a line.

A module is tested by files of its name, anywhere in `tests/core/`: `entrenar_core/losses/kernel.py` by
`test_kernel.py`, `test_losses_kernel.py` and those that go on with `_…`, and by `test_losses.py`, a test of the whole
folder. Where there are none of its own, by all that begin with `test_losses_`.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def changed_files() -> list[str]:
    """What differs from the last commit, and what git neither knows nor ignores; relative to the working folder."""
    listings = ["git diff --name-only --relative -z HEAD", "git ls-files --others --exclude-standard -z"]
    outputs = (subprocess.run(x.split(), capture_output=True, text=True, check=True).stdout for x in listings)
    return [name for output in outputs for name in output.split("\0") if name]


def tests_of(files: Iterable[str]) -> list[str]:
    """The test files that exist, relative to the working folder, which is the root of the workspace."""
    return sorted({test for file in files for test in _tests_of_one(PurePosixPath(file))})


def _tests_of_one(path: PurePosixPath) -> list[str]:
    """The test files that belong to a file; itself, where it is one of a package."""
    match path.parts:
        case ("tests", "integration", *_):  # tier 2 runs them all
            return []
        case ("tests", *_) if path.match("test_*.py"):
            return _found("", str(path))
        case ("packages", package, "src", _, *folders, _) if path.suffix == ".py":
            inside = f"tests/{package.removeprefix('entrenar-')}/**/test_"
            full = "_".join([*folders, path.stem])
            own = _found(inside, f"{path.stem}.py", f"{path.stem}_*.py", f"{full}.py", f"{full}_*.py")
            own = own or _found(inside, *(f"{folder}_*.py" for folder in folders))
            return own + _found(inside, *(f"{folder}.py" for folder in folders))
        case _:
            return []


def _found(before: str, *names: str) -> list[str]:
    return [str(found) for name in names for found in Path().glob(before + name)]


if __name__ == "__main__":
    sys.stdout.writelines(f"{test}\n" for test in tests_of(sys.argv[1:] or changed_files()))
