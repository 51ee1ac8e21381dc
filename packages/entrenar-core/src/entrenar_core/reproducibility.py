"""What a run was made with: versions, machine, source revision."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("entrenar-core", "torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Versions, platform, threads and the revision of the git checkout that the run was started in, if any."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_revision(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two environments can change the bits of a result: `torch 2.12.0 → 2.13.0`, `threads 2 → 1`."""
    told = []
    for name in ("python", "threads", "device", *PACKAGES):
        old, new = (
            environment.get("packages", {}).get(name) if name in PACKAGES else environment.get(name)
            for environment in (before, now)
        )
        if old != new:
            told.append(f"{name} {old} → {new}")
    return told


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
