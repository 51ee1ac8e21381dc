"""The errors that a user meets. Each names the thing, says what is wrong, and what to do next.

They live in core because core raises them; `entrenar_common` decides how they look and turns `exit_status`
into the status of the process. Anything else that escapes is a bug of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class EntrenarError(Exception):
    """What went wrong, and what to do next.

    `code` is the stable name of the kind, for programs that read JSON; `exit_status` follows the contract
    of every command: 1 the operation or check failed, 2 usage or configuration.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EntrenarError):
    """A flag or a reference that cannot be meant."""

    code = "usage"
    exit_status = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration. `where` reads `file.yaml:14:3`, or names the flag that said it."""

    message: str
    hint: str | None = None
    where: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigError(EntrenarError):
    """Every mistake found in a configuration, reported together."""

    code = "config"
    exit_status = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a ConfigError without a problem"
        super().__init__("\n".join(map(str, problems)), problems[0].hint if len(problems) == 1 else None)
        self.problems = tuple(problems)


class NotFoundError(EntrenarError):
    """A file, a repository or a revision that is not there."""

    code = "not_found"


class AccessError(EntrenarError):
    """A repository that needs a login or a granted request."""

    code = "access"


class FetchError(EntrenarError):
    """A download or upload that did not arrive whole."""

    code = "fetch"


class ModelError(EntrenarError):
    """A model that cannot be loaded, or does not fit its part."""

    code = "model"


class UnsoundFileError(ModelError):
    """A model file that is broken, cut short or not there at all, though another one names it."""

    code = "unsound"


class UnmeasurableError(ModelError):
    """A tensor whose type or values do not let it be measured. `reason` is the message after the name of the tensor."""

    def __init__(self, tensor: str, reason: str, hint: str) -> None:
        super().__init__(f"tensor {tensor} {reason}", hint)
        self.reason = reason


class DataError(EntrenarError):
    """Rows, columns or labels that the task cannot use."""

    code = "data"


class TrainingError(EntrenarError):
    """Training that cannot go on, such as a loss that is not a number."""

    code = "training"


class OutputError(EntrenarError):
    """A result that cannot be written, or would overwrite another."""

    code = "output"


class Interrupted(EntrenarError):
    """Stopped by the user, with everything saved that is needed to go on."""

    code = "interrupted"
    exit_status = 130
