"""Settings from the command line: `--set training.epochs=1`, which go before what the file says.

What a setting may be is the schema's to say; here is only how one is spelled on a command line.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from entrenar_core.errors import UsageError

if TYPE_CHECKING:  # the schema loads pydantic, which `--help` does without
    from entrenar_core.config.loading import Override

_PATH = re.compile(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*|\[\d{1,9}\])*", re.ASCII)
_ACCEPTED = "write the setting, `=` and a value: `training.epochs=3`, `student.num_layers=4`, `output.dir=distilled`"
_NULLS = ("null", "Null", "NULL", "~")


def parse_overrides(assignments: Iterable[str]) -> "tuple[Override, ...]":
    """The values of `--set`, in their order: where in the configuration, the value, and the flag that said so.

    A value is read by the rules of YAML: `3`, `1e-4`, `true`, `null`, `[a, b]`, `{patience: 3}`, or a text. An entry
    of a list is named by its place: `distillation.losses[0].weight=2`.

    Raises:
        UsageError: not `setting=value`, or the value is not YAML.
    """
    return tuple(_override(assignment) for assignment in assignments)


def _override(assignment: str) -> "Override":
    from entrenar_core.config.wording import path_of
    from entrenar_core.config.yaml_source import parse_scalar

    name, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals:
        raise UsageError(f"`--set {assignment}` gives no value", _ACCEPTED)
    if not _PATH.fullmatch(name):
        raise UsageError(f"`{name}` in `--set {assignment}` is not the name of a setting", _ACCEPTED)
    try:
        value = parse_scalar(text)
    except ValueError as error:
        quoted = f"""`--set '{name}="…"'`"""
        raise UsageError(
            f"`--set {assignment}`: {error}", f"put a text with special characters in quotes: {quoted}"
        ) from None
    if value is None and text not in _NULLS:
        raise UsageError(f"`--set {assignment}` gives no value", f"to leave the setting out, write `{name}=null`")
    return path_of(name), value, f"--set {name}"
