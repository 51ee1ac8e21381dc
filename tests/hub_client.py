"""What tests do with a served model: fetch it, look into the cache, run a program that finds the server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.hub import fetch_model
from entrenar_core.references import parse_reference


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a flat folder by name, to serve some of them or others beside them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cached_contents() -> list[Path]:
    """Every file in the cache that claims to be content, whole or half."""
    folder = Path(os.environ["HF_HOME"]) / "hub"
    return [path for path in folder.rglob("*") if path.is_file() and {"blobs", "snapshots"} & set(path.parts)]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that finds the server in its environment."""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def fetch(text: str = "org/llama", **settings: Any) -> ModelArtifact:
    """Fetches a model, trying twice more without a pause."""
    return fetch_model(parse_reference(text), **{"retry_delays_s": (0, 0), **settings})
