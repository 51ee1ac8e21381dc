"""Writes the tokenizer of a GGUF as transformers makes it. A program, so that what it needs is given back.

python -m entrenar_core.conversion.transformers_tokenizer model.gguf FOLDER
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from entrenar_core.artifact import TOKENIZER_FILES
from entrenar_core.errors import ModelError

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_SHOWN_LETTERS = 300
_PATIENCE_S = 300
_HINT = "copy one from the original model"


def write_by_transformers(gguf: Path, folder: Path) -> tuple[str, ...]:
    """Writes the files of the tokenizer in a process of its own; returns their names.

    Raises:
        ModelError: transformers makes none of it; its own words are in the message.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [
            sys.executable,
            "-P",
            "-m",
            __spec__.name,
            str(gguf.resolve()),
            work,
        ]  # no module of this folder
        environment = {**os.environ, **_ENVIRONMENT}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                check=False,
                timeout=_PATIENCE_S,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"transformers made no tokenizer of it in {_PATIENCE_S} s", _HINT) from error
        names = tuple(name for name in TOKENIZER_FILES if (Path(work) / name).is_file())
        if done.returncode or not names:
            last = next(iter(done.stderr.strip().splitlines()[::-1]), f"it ended with {done.returncode}")
            raise ModelError(f"transformers makes no tokenizer of it ({last[:_SHOWN_LETTERS]})", _HINT)
        for name in names:
            (Path(work) / name).replace(folder / name)
        return names


def main(gguf: Path, folder: Path) -> None:
    """Loads and saves it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
