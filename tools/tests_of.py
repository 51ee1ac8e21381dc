"""Prints the unit tests of the files named, or of those that changed since the last commit, one a line.

A module is tested by files of its name: `entrenar_core/losses/kernel.py` by `test_kernel.py` and `test_kernel_*.py`,
anywhere in `tests/core/`, and by `test_losses.py`, a test of the whole folder.
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


def patterns_of(path: PurePosixPath) -> list[str]:
    """Patterns of the test files that belong to a file; itself, where it is one."""
    match path.parts:
        case ("tests", *_) if path.match("test_*.py"):
            return [str(path)]
        case ("packages", package, "src", _, *folders, _) if path.suffix == ".py":
            names = [path.stem, f"{path.stem}_*", *folders]
            return [f"tests/{package.removeprefix('entrenar-')}/**/test_{name}.py" for name in names]
        case _:
            return []


def tests_of(files: Iterable[str]) -> list[str]:
    """The test files that exist, relative to the working folder, which is the root of the workspace."""
    patterns = [pattern for file in files for pattern in patterns_of(PurePosixPath(file))]
    return sorted({str(found) for pattern in patterns for found in Path().glob(pattern)})


if __name__ == "__main__":
    sys.stdout.writelines(f"{test}\n" for test in tests_of(sys.argv[1:] or changed_files()))
