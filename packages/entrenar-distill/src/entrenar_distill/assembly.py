"""From a file and flags to one configuration: flags over file over defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar_common.config import parse_overrides
from entrenar_core.config import DistillationConfig, load_config
from entrenar_core.errors import UsageError

Flags = Mapping[tuple[str, str], tuple[Any, str]]


def assemble(file: Path | None, settings: Sequence[str], flags: Flags | None = None) -> DistillationConfig:
    """The configuration that the command line means. `flags` maps a setting to its value (None: not given) and name.

    Raises:
        ConfigError, NotFoundError, UsageError: all mistakes in it, the file is not there, or nothing was given.
    """
    overrides: list[Any] = [*parse_overrides(settings)]
    overrides += [(path, value, flag) for path, (value, flag) in (flags or {}).items() if value is not None]
    if file is None and not overrides:
        raise UsageError("there is nothing to run", "give a configuration: entrenar-distill run distill.yaml")
    return load_config(file, overrides)
