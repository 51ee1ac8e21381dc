"""Where the Hub is and who asks. No token ever reaches a message, a log or the `repr` of anything here."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from entrenar_core.errors import AccessError, EntrenarError
from entrenar_core.hub.failures import LOG_IN, explained, may_pass

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Explain = Callable[[Exception, "Client", "Repository", str | None], EntrenarError]
"""Says in our words what failed, of a repository or of a file in it."""
RETRY_DELAYS_S = (1.0, 2.0, 4.0)
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub, at a revision; None is its main branch."""

    kind: Literal["model", "dataset"]
    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id

    @property
    def page(self) -> str:
        """Its page, relative to the endpoint."""
        return f"datasets/{self.repo_id}" if self.kind == "dataset" else self.repo_id


@dataclass(frozen=True, slots=True)
class Client:
    """One way to the Hub: endpoint, login, cache, and how long to wait before each retry."""

    endpoint: str
    cache_dir: Path
    offline: bool
    token: str | None = field(default=None, repr=False)
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S

    @property
    def api(self) -> "HfApi":
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def ask(
        self,
        question: Callable[[], T],
        repository: Repository,
        name: str | None = None,
        *,
        explain: Explain = explained,
    ) -> T:
        """The answer, after as many retries as there are delays; what failed is told as an error of ours.

        huggingface_hub resumes by itself where a connection closes early (five times, a second apart, in steps of
        10 MiB), but not where one is reset, nor for a failing server: this is for the rest.
        """
        for delay_s in (*self.retry_delays_s, None):
            try:
                with _quiet():
                    return question()
            except EntrenarError:
                raise
            except Exception as error:
                if delay_s is None or not may_pass(error):
                    raise explain(error, self, repository, name) from error
                time.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")


def connect(
    *,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    endpoint: str | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> Client:
    """A client from arguments, then the environment, as it is now."""
    if offline is None:
        offline = any(
            os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        )
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or _home() / "hub"
    return Client(
        (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        (cache_dir or _expanded(cache)).absolute(),
        offline,
        None if offline else resolve_token(token),
        retry_delays_s,
    )


def resolve_token(explicit: str | None = None) -> str | None:
    """The login to use: `explicit`, else HF_TOKEN, else the stored login, where `hf auth login` keeps it today
    (HF_TOKEN_PATH, HF_HOME) or kept it once (`~/.huggingface/token`). None where there is none.

    Raises:
        AccessError: what was found cannot be a token, or the stored login cannot be read.
    """
    environment = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    for source, text in (("the given token", explicit), ("HF_TOKEN", environment)):
        if text and text.strip():
            return _checked(text, source)
    stored = _expanded(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    for path in (stored, Path("~/.huggingface/token").expanduser()):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"the stored login {path} cannot be read", LOG_IN) from error
        if text.strip():
            return _renewed(_checked(text, str(path)), path)
    return None


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        # An HTTP library would refuse it too, and print it.
        raise AccessError(f"{source} holds characters that no token has", LOG_IN)
    return token


def _renewed(token: str, path: Path) -> str:
    """A login through the browser runs out; huggingface_hub renews the one that it knows of."""
    from huggingface_hub import constants, get_token

    return (get_token() or token) if Path(constants.HF_TOKEN_PATH) == path else token


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.environ.get("HF_HOME") or Path(cache) / "huggingface")


def _expanded(path: str | Path) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


@contextmanager
def hinting_at_offline(client: Client) -> Iterator[None]:
    """Adds to what goes wrong inside, in offline mode, that only the cache was looked at."""
    try:
        yield
    except EntrenarError as error:
        if not client.offline:
            raise
        hint = "only the cache was looked at, since offline mode is on"
        raise type(error)(error.message, f"{error.hint}; {hint}" if error.hint else hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps huggingface_hub from writing about its retries to stderr, which belongs to the program."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
