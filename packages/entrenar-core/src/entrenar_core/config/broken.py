"""What a rule between settings says when it is broken."""

from typing import NamedTuple

from entrenar_core.config.yaml_source import Path


class Broken(NamedTuple):
    """A broken rule: the setting to point at, what is wrong, what to do."""

    path: Path
    message: str
    hint: str | None
