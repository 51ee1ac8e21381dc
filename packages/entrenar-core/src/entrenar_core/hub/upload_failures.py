"""What the failures of a push mean, as errors of ours that say what to do next."""

from entrenar_core.errors import AccessError, EntrenarError, FetchError, NotFoundError, OutputError
from entrenar_core.hub.client import Client, Repository
from entrenar_core.hub.failures import LOG_IN, explained, may_pass

AGAIN = "push again: what arrived whole is not sent again"
_MOST_SHOWN = 300


def explained_push(error: Exception, client: Client, repository: Repository, name: str | None) -> EntrenarError:
    """The error of ours for one of huggingface_hub or hf_xet, about a push to a repository or a file of it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    what = f"{name} of {repository}" if name else str(repository)
    if isinstance(error, HfHubHTTPError):
        return _answered(error, client, repository, what)
    if isinstance(error, HFValidationError | OfflineModeIsEnabled):
        return explained(error, client, repository, name)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return OutputError(f"{error.filename} cannot be read: {error.strerror}", "look at what is there")
    if isinstance(error, ValueError) and "README.md" in str(error):
        return OutputError(
            f"{client.endpoint} refuses README.md: {one_line(str(error).partition(chr(10))[2])}",
            "correct its front matter, the lines between the first two ---",
        )
    if not isinstance(error, OSError) and not may_pass(error):
        return FetchError(
            f"{what}: {client.endpoint} answered something else than a Hub does: {type(error).__name__}: "
            f"{one_line(str(error))}",
            "check HF_ENDPOINT, and whether a proxy is in the way",
        )
    return FetchError(
        f"{what}: the connection to {client.endpoint} failed: {one_line(str(error)) or type(error).__name__}",
        f"check the network and HF_ENDPOINT, then {AGAIN}",
    )


def _answered(error: Exception, client: Client, repository: Repository, what: str) -> EntrenarError:
    from huggingface_hub.errors import HfHubHTTPError

    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    said = one_line(error.server_message or "")
    page = f"{client.endpoint}/{repository.page}"
    if status in (401, 403, 404):
        told = explained(error, client, repository, None)
        if isinstance(told, NotFoundError):
            return told
        if status == 401 and "does not know" in told.message:
            return told
        return AccessError(
            f"the login in use may not write to {repository}{_because(said)}",
            f"it takes a token with write access ({client.endpoint}/settings/tokens): {LOG_IN}",
        )
    if status in (409, 412):
        return FetchError(f"{repository} was changed by someone else during the push{_because(said)}", AGAIN)
    if status == 429:
        return FetchError(f"{client.endpoint} gets too many requests", f"wait a while, then {AGAIN}")
    if status < 500:
        return OutputError(f"{client.endpoint} refuses {what}: {said or status}", f"see {page}")
    return FetchError(f"{client.endpoint} answered {status} for {what}", f"it may be down: later {AGAIN}")


def _because(said: str) -> str:
    return f": {said}" if said else ""


def one_line(text: str) -> str:
    """What a server said, on one line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= _MOST_SHOWN else f"{plain[:_MOST_SHOWN]}…"
