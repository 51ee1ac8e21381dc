"""A failure, ready to be shown: what any exception means for the user, for a program, and for the exit status."""

import errno
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from entrenar_common.styles import labelled, printable, redacted
from entrenar_core.errors import ConfigError, EntrenarError, Problem

INTERNAL_STATUS = 70
INTERRUPTED_STATUS = 130

# Trouble of the machine that any write or read can meet, wherever in a library it happens.
_MACHINE = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EROFS: "write to a folder on another disk",
    errno.EACCES: "check the permissions, or choose another folder",
    errno.EMFILE: "raise the limit on open files: `ulimit -n 4096`",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the program stops. `internal` marks our bug; `trace` is there only when asked for."""

    code: str
    exit_status: int
    message: str
    hint: str | None = None
    problems: tuple[Problem, ...] = ()
    trace: str | None = None

    @property
    def internal(self) -> bool:
        """Whether this is a bug of entrenar's rather than something that the user can mend."""
        return self.exit_status == INTERNAL_STATUS

    def as_json(self) -> dict[str, object]:
        """`{"error": {"code", "message", "hint"}}`, and `problems` or `trace` where there are any."""
        error: dict[str, object] = {"code": self.code, "message": redacted(self.message), "hint": _redacted(self.hint)}
        if self.problems:
            error["problems"] = [
                {"where": p.where, "message": redacted(p.message), "hint": _redacted(p.hint)} for p in self.problems
            ]
        if self.trace:
            error["trace"] = redacted(self.trace)
        return {"error": error}

    def as_text(self, colour: bool) -> str:
        """`error: …` and `hint: …`, one pair for each problem of a configuration."""
        return redacted("\n".join(self._lines(colour)))

    def _lines(self, colour: bool) -> Iterator[str]:
        if self.trace:
            yield printable(self.trace, keep="\n")
        pairs = [(str(problem), problem.hint) for problem in self.problems] or [(self.message, self.hint)]
        for message, hint in pairs:
            yield labelled("error", message, colour)
            if hint:
                yield labelled("hint", hint, colour)
        if len(pairs) > 1:
            yield f"found {len(pairs)} mistakes"


def failure_of(error: BaseException) -> Failure:
    """What an exception means. The traceback is kept only with `ENTRENAR_DEBUG=1`."""
    trace = "".join(traceback.format_exception(error)).rstrip() if debugging() else None
    if isinstance(error, ConfigError):
        return Failure(error.code, error.exit_status, error.message, error.hint, error.problems, trace)
    if isinstance(error, EntrenarError):
        return Failure(error.code, error.exit_status, error.message, error.hint, trace=trace)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", INTERRUPTED_STATUS, "interrupted", trace=trace)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        start = f"{str(error.filename)[:60]}…" if error.filename else "a path"
        return Failure("usage", 2, f"{start} is longer than a name of a file can be", "check the path", trace=trace)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return Failure("machine", 1, message, _MACHINE[error.errno], trace=trace)
    what = type(error).__name__ + (f": {error}" if str(error) else "")
    rank = f" on rank {os.environ['RANK']}" if os.environ.get("RANK", "0") != "0" else ""
    hint = "this is a bug in entrenar: please report it" + ("" if trace else ", with what ENTRENAR_DEBUG=1 shows")
    return Failure("internal", INTERNAL_STATUS, f"internal error{rank}: {what}", hint, trace=trace)


def debugging() -> bool:
    """Whether `ENTRENAR_DEBUG` asks for tracebacks."""
    return os.environ.get("ENTRENAR_DEBUG", "0") not in ("", "0")


def _redacted(text: str | None) -> str | None:
    return None if text is None else redacted(text)
