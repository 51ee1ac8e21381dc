"""How a teacher behind an endpoint is asked; without torch, so that a configuration is checked in no time."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from entrenar_core.errors import UsageError

if TYPE_CHECKING:
    from entrenar_core.config.teachers import EndpointTeacher

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_LIKE = "write it as http://127.0.0.1:8080/v1"
DEFAULT_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """An OpenAI-compatible server and how it is asked.

    Args:
        url: where its `/completions` is, such as `http://127.0.0.1:8080/v1`.
        model: of those that it serves.
        top_logprobs: how many of the likeliest tokens it tells of each position.
        concurrency: how many requests are under way at once, at most.
        api_key_env: the environment variable that holds the key. None: `OPENAI_API_KEY`, where it is set, and only to
            this machine or over https.
        timeout_s: how long one answer may take.
        patience_s: how long a server that fails is asked again.

    Raises:
        UsageError: the URL is none of a server, or holds a password; or `api_key_env` is no name.
        ValueError: a number is not positive.
    """

    url: str
    model: str
    top_logprobs: int = 20
    concurrency: int = 4
    api_key_env: str | None = None
    timeout_s: float = 120.0
    patience_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("top_logprobs", "concurrency", "timeout_s", "patience_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.api_key_env is not None and not _NAME.fullmatch(self.api_key_env):
            # not repeated: it may be the key itself
            raise UsageError("`api_key_env` is no name of an environment variable", "write the name, and not the key")
        _split(self.url)
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def root(self) -> str:
        """Without the `/v1`: where servers have what OpenAI's has not."""
        return self.url.removesuffix("/v1")

    @property
    def is_private(self) -> bool:
        """Whether what is sent is read by no one on the way: it stays on this machine, or goes over https."""
        parts = _split(self.url)
        return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost")


def endpoint_settings(teacher: "EndpointTeacher") -> EndpointSettings:
    """As the configuration says; raises as `EndpointSettings`."""
    return EndpointSettings(
        teacher.endpoint,
        teacher.model,
        teacher.top_logprobs,
        teacher.concurrency,
        teacher.api_key_env,
        teacher.timeout_s,
        teacher.patience_s,
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError as error:
        raise UsageError(f"the endpoint is no URL: {error}", _LIKE) from error
    if parts.username is not None or parts.password is not None:  # never shown: it may be a password
        raise UsageError("the URL of the endpoint holds a name or a password", "give a key with `api_key_env`")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise UsageError(f"the endpoint {url!r} is no URL of an HTTP server", _LIKE)
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("the URL of the endpoint holds more than a host and a path", _LIKE)
    return parts
