"""Writes the tokenizer of a GGUF as files, as transformers makes it. A program, so that what it needs is given back.

python -m entrenar_core.conversion.gguf_tokenizer model.gguf FOLDER
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from entrenar_core.artifact import TOKENIZER_FILES

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def write_tokenizer(gguf: Path, folder: Path) -> tuple[str, ...]:
    """Writes the files of the tokenizer in a process of its own; returns their names, none if transformers cannot."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, "-m", __spec__.name, str(gguf.resolve()), work]
        environment = {**os.environ, **_ENVIRONMENT}
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        if done.returncode:
            return ()
        names = tuple(name for name in TOKENIZER_FILES if (Path(work) / name).is_file())
        for name in names:
            (Path(work) / name).replace(folder / name)
        return names


def main(gguf: Path, folder: Path) -> None:
    """Loads and saves it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
