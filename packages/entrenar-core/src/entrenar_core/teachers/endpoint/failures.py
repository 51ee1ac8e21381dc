"""What goes wrong between here and a server, and whether asking again can help."""

import json
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from entrenar_core.errors import AccessError, FetchError, ModelError

_SHOWN = 300


class Passing(Exception):
    """May be over the next time. `after_s` is when the server asks to be asked again."""

    def __init__(self, reason: str, status: int | None = None, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status, self.after_s = reason, status, after_s


class Refused(ModelError):
    """A server will not answer what it was asked."""

    def __init__(self, message: str, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


class Redirected(FetchError):
    """A server leads elsewhere."""


ABSENT = (ModelError, AccessError, Redirected)
"""How a page that a server lacks, or a gateway hides, is told."""


def shown(text: str, key: str | None) -> str:
    """Text of a server for a message: on one line, not long, and without the key, which some repeat."""
    if key:
        text = text.replace(key, "***")
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def refusal(body: bytes) -> str:
    """What a server says of an error: `error.message`, as OpenAI's, or what others call it."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return "" if body.lstrip()[:1] == b"<" else body.decode(errors="replace")
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


def after(header: str | None) -> float | None:
    """Seconds of a Retry-After, which is a number of them or a date; None where there is none to be read."""
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def is_certificate(error: BaseException) -> bool:
    """Whether a connection failed because its certificate is not trusted, which passes by no waiting."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
