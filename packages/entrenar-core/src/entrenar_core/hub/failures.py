"""What the failures of `huggingface_hub` mean, as errors of ours that say what to do next."""

import errno
from typing import TYPE_CHECKING

from entrenar_core.errors import AccessError, EntrenarError, FetchError, NotFoundError, UsageError

if TYPE_CHECKING:
    from entrenar_core.hub.client import Client, Repository

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def may_pass(error: Exception) -> bool:
    """Whether trying again can help: the connection broke, or the server is unwell."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return False  # the former huggingface_hub has retried for half a minute
    return _is_connection(error) or (isinstance(error, OSError) and error.errno is None)


def _is_connection(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    http_error = HfHubHTTPError.__mro__[1]  # of the HTTP library that huggingface_hub uses, whose name has changed
    return isinstance(error, http_error) and not isinstance(error, HfHubHTTPError)


def explained(error: BaseException, client: "Client", repository: "Repository", name: str | None) -> EntrenarError:
    """The error of ours for one of huggingface_hub, about a repository or a file in it."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    what = f"{name} of {repository}" if name else str(repository)
    if isinstance(error, HfHubHTTPError):
        return _answered(error, client, repository, what)
    if isinstance(error, HFValidationError):
        return UsageError(f"{repository.repo_id} cannot be the name of a repository", "write org/name")
    if isinstance(error, OfflineModeIsEnabled):
        return FetchError(f"{what} needs the network, and offline mode is on", "unset HF_HUB_OFFLINE")
    if _is_connection(error):
        return FetchError(
            f"{what}: the connection to {client.endpoint} failed: {error}",
            "check the network and HF_ENDPOINT, then run it again: whole files are kept; "
            "HF_HUB_OFFLINE=1 works with the cache alone",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"{what}: no space is left in {client.cache_dir}", "free some, or set HF_HUB_CACHE")
    if isinstance(error, OSError) and error.errno is not None:
        return FetchError(
            f"{what} cannot be written to {client.cache_dir}: {error.strerror}", "set HF_HUB_CACHE to another folder"
        )
    return FetchError(f"{what} did not arrive whole: {error}", f"check that {client.endpoint} is a Hub; run it again")


def _answered(error: Exception, client: "Client", repository: "Repository", what: str) -> EntrenarError:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    page = f"{client.endpoint}/{repository.page}"
    if isinstance(error, errors.GatedRepoError):
        if client.token is None:
            return AccessError(f"{repository} is gated: it needs a login", f"ask for access at {page}, then {LOG_IN}")
        return AccessError(f"the login in use has no access to {repository}, which is gated", f"ask for it at {page}")
    if status == 401 and error.response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        return AccessError(f"{client.endpoint} does not know the login in use", f"it may have expired: {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(
            f"{repository.repo_id} has no revision {repository.revision}", f"its branches and tags are listed at {page}"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotFoundError(f"there is no {what}", f"its files are listed at {page}")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return NotFoundError(
            f"{client.endpoint} has no {repository.kind} {repository.repo_id}, or does not show it",
            "check the spelling" + (f"; if it is private, {LOG_IN}" if client.token is None else ""),
        )
    if status == 403 or isinstance(error, errors.DisabledRepoError):
        return AccessError(f"{client.endpoint} refuses {what}", f"see {page}; {LOG_IN}")
    if status == 429:
        return FetchError(f"{client.endpoint} gets too many requests", f"wait a while, or {LOG_IN}")
    return FetchError(f"{client.endpoint} answered {status} for {what}", "it may be down: run it again later")
