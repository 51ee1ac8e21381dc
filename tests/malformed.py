"""Writes the malformed files that entrenar-inspect is tried on, each case in a folder of its own.

    python tests/malformed.py FOLDER

All are small on a disk; those that claim to be large are sparse. Beside them lies `outside/`, which some lead to.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from malformed_folders import INDEXES, SETTINGS
from malformed_parts import Case, safetensors
from malformed_programs import ONNX, PYTORCH
from malformed_tensors import APR, APR_JSON, GGUF, SAFETENSORS

TABLES: Mapping[str, Mapping[str, Case]] = {
    "safetensors": SAFETENSORS,
    "gguf": GGUF,
    "apr": APR,
    "apr-json": APR_JSON,
    "pytorch": PYTORCH,
    "onnx": ONNX,
    "indexes": INDEXES,
    "settings": SETTINGS,
}
CASES: Mapping[str, Case] = {name: case for table in TABLES.values() for name, case in table.items()}


def write(folder: Path, name: str) -> Path:
    """Writes one case into `folder`; returns what of it is to be named on a command line."""
    case = CASES[name]
    (folder / name).mkdir(parents=True)
    case.fill(folder / name)
    return folder / name / case.model


def write_outside(folder: Path) -> None:
    """Writes sound files that no case may lead to."""
    outside = folder / "outside"
    outside.mkdir(parents=True)
    (outside / "stolen.safetensors").write_bytes(safetensors())
    (outside / "config.json").write_text('{"model_type": "llama"}')
    (outside / "model.onnx").write_bytes(b"\x08\x08:\x00")


def main(folder: Path) -> None:
    write_outside(folder)
    for name in CASES:
        print(write(folder, name))  # noqa: T201 - what a script is for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
