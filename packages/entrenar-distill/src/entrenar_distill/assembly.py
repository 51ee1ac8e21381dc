"""From a file and flags to one configuration: flags over file over defaults."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar_common.config import parse_overrides
from entrenar_core.config.loading import Loaded, Override, load_with_places
from entrenar_core.config.schema import DistillationConfig, StudentConfig
from entrenar_core.config.spellings import OF_OTHER_TEACHERS
from entrenar_core.config.teachers import ModelSource
from entrenar_core.errors import UsageError

Flags = Mapping[tuple[str, str], tuple[Any, str]]

_OF_THE_TRAINING = ("model_id", "dropout", "lora", "quantization", "dtype")
# What is said of one model and not of another: its files; of a student, its shape too.
_OF_THE_MODEL = {
    "teacher": ModelSource.model_fields,
    "student": {name: field for name, field in StudentConfig.model_fields.items() if name not in _OF_THE_TRAINING},
}


def assemble(file: Path | None, settings: Sequence[str], flags: Flags) -> Loaded[DistillationConfig]:
    """The configuration that the command line means. `flags` maps a setting to its value (None: not given) and name.

    Raises:
        ConfigError, UsageError: all mistakes in it, the file is not there, or nothing was given.
    """
    given = [(path, value, flag) for path, (value, flag) in flags.items() if value is not None]
    overrides: list[Override] = [*_dropped(given), *parse_overrides(settings), *given]
    if file is None and not overrides:
        raise UsageError("no configuration is given", "give the path of a YAML file, such as distill.yaml")
    return load_with_places(file, overrides)


def _dropped(flags: Sequence[Override]) -> Iterator[Override]:
    """A flag that names a model leaves nothing of what the file says of the one before; `--set` may say it anew."""
    for path, _, flag in flags:
        if path[-1] == "model_id":
            section = str(path[0])
            if section == "teacher":
                yield from (((section, name), None, flag) for name in OF_OTHER_TEACHERS)
            yield from (((section, name), field.default, flag) for name, field in _OF_THE_MODEL[section].items())
