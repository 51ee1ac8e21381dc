"""Asks a server, again where that can help, and reads no more of an answer than it may have.

The key is in no message, log or `repr` of anything here, and goes to no host but that of the endpoint: redirects are
not followed.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import httpx2

from entrenar_core.errors import AccessError, EntrenarError, FetchError, Interrupted, ModelError
from entrenar_core.teachers.endpoint.failures import Passing, Redirected, Refused, after, is_certificate, refusal, shown
from entrenar_core.teachers.endpoint.settings import DEFAULT_KEY, EndpointSettings

FIRST_PATIENCE_S = 8.0
"""How long an address is tried at which nothing ever answered: it may be a wrong one."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_ERROR_BYTES = 64 * 1024
_POLL_S = 0.1
_GO_ON = "give the same command again to go on: whole shards of a cache and checkpoints are kept"


class Client:
    """One server, asked from several threads at once.

    `on_note` is told when it begins to fail, and when it answers again; `stopped` ends waiting. `tries`, while it is
    found out what the server knows: after how many its internal errors (500), and answers that are no JSON, are taken
    for a refusal.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        on_note: Callable[[str], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.on_note, self.stopped = settings, on_note, stopped
        self.tries: int | None = None
        self._key = api_key(settings)
        headers = {"Accept-Encoding": "identity", "User-Agent": "entrenar"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(settings.timeout_s, connect=min(settings.timeout_s, 10.0)),
            limits=httpx2.Limits(max_connections=settings.concurrency + 1),
            follow_redirects=False,
        )
        self._random = random.Random()  # of its own: a run's draws do not depend on how often a server failed
        self._lock = threading.Lock()
        self._reached = self._failing = False
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends all connections, and waiting for the next attempt."""
        self._closed.set()
        self._http.close()

    def get(self, url: str, *, about: str, limit_bytes: int = 2**24) -> Any:
        """What a page says, as `post`."""
        return self._asked("GET", url, None, about, limit_bytes)

    def post(self, url: str, body: Mapping[str, Any], *, about: str, limit_bytes: int = 2**20) -> Any:
        """The JSON that a server answers.

        Args:
            url: of the server.
            body: what is asked.
            about: what for, in messages: a row.
            limit_bytes: how long an answer may be.

        Raises:
            Refused: it will not answer this (a status from 400 to 499).
            AccessError: it asks for a key.
            FetchError: it failed for longer than patience lasts, or leads elsewhere.
            ModelError: what it answers is too long or no JSON.
            Interrupted: asked to stop meanwhile.
        """
        return self._asked("POST", url, body, about, limit_bytes)

    def fail(self, about: str, message: str, hint: str | None = None) -> NoReturn:
        """Raises ModelError, with the name of the endpoint."""
        raise ModelError(f"{self.settings.url}: {about}: {message}", hint)

    def _asked(self, method: str, url: str, body: Mapping[str, Any] | None, about: str, limit: int) -> Any:
        failed_at, attempt = None, 0
        while True:
            self.require_going(about)
            try:
                found = self._once(method, url, body, about, limit)
            except Passing as trouble:
                attempt += 1
                if self.tries is not None and attempt >= self.tries and trouble.status in (200, 500):
                    raise Refused(f"{self.settings.url}: {about}: {trouble.reason}", trouble.status) from trouble
                now = time.monotonic()
                failed_at = now if failed_at is None else failed_at
                self._wait(self._delay(trouble, attempt), now - failed_at, about, trouble)
            else:
                self._note_answer()
                return found

    def _once(self, method: str, url: str, body: Mapping[str, Any] | None, about: str, limit: int) -> Any:
        try:
            with self._http.stream(method, url, json=body) as response:
                self._reached = True
                if response.status_code != 200:
                    raise self._failure(response, about)
                data = self._read(response, about, limit)
        except httpx2.TimeoutException as error:
            raise Passing(f"no answer within {self.settings.timeout_s:g} s") from error
        except httpx2.TransportError as error:
            if is_certificate(error):
                raise FetchError(
                    f"{self.settings.url}: its certificate is not trusted: {shown(str(error), self._key)}",
                    "set SSL_CERT_FILE to the certificate of its authority",
                ) from error
            raise Passing(f"the connection failed: {shown(str(error), self._key) or type(error).__name__}") from error
        return self._parsed(data, about)

    def _failure(self, response: httpx2.Response, about: str) -> EntrenarError | Passing:
        """What a status other than 200 is told as."""
        status, where = response.status_code, self.settings.url
        if 300 <= status < 400:
            location = shown(response.headers.get("location", "").partition("?")[0], self._key)
            return Redirected(f"{where} leads to {location}", "give that address, if it is the one that you mean")
        text = shown(refusal(self._read(response, about, _ERROR_BYTES)), self._key)
        reason = f"status {status}" + (f", {text}" if text else "")
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            return Passing(reason, status, after(response.headers.get("retry-after")))
        if status in (401, 403):
            name = self.settings.api_key_env or DEFAULT_KEY
            hint = "the key in use is not accepted" if self._key else "no key was sent"
            return AccessError(f"{where}: {about}: {reason}", f"{hint}: set {name} to one that it accepts")
        return Refused(f"{where}: {about}: {reason}", status)

    def _read(self, response: httpx2.Response, about: str, limit: int) -> bytes:
        """The body, as it was sent: what is compressed could become any size."""
        if response.headers.get("content-encoding", "identity") != "identity":
            self.fail(about, "the answer is compressed, which was not asked for", "ask its proxy to leave it as it is")
        began, found, size = time.monotonic(), [], 0
        for chunk in response.iter_raw():
            found.append(chunk)
            size += len(chunk)
            if size > limit:
                self.fail(about, f"the answer is longer than {limit:,} bytes", "check that it is the right server")
            if time.monotonic() - began > self.settings.timeout_s:
                raise Passing(f"the answer was not whole within {self.settings.timeout_s:g} s")
        return b"".join(found)

    def _parsed(self, data: bytes, about: str) -> Any:
        def refuse(name: str) -> NoReturn:
            self.fail(about, f"the answer holds {name}, which is no number", "check the model that it serves")

        if data.lstrip()[:1] == b"<":
            self.fail(about, "the answer is a page of HTML", "check the address: it mostly ends with /v1")
        try:
            return json.loads(data, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise Passing(f"the answer is cut off, or no JSON: {shown(str(error), self._key)}", 200) from error

    def _delay(self, trouble: Passing, attempt: int) -> float:
        if trouble.after_s is not None:
            return trouble.after_s
        longest: float = min(_FIRST_DELAY_S * 2 ** min(attempt - 1, 10), _LONGEST_DELAY_S)
        return longest * self._random.uniform(0.5, 1.0)

    def _wait(self, delay_s: float, failing_s: float, about: str, trouble: Passing) -> None:
        """Until the next attempt, or raises FetchError where patience ends before it."""
        where = self.settings.url
        patience_s = self.settings.patience_s if self._reached else min(FIRST_PATIENCE_S, self.settings.patience_s)
        if failing_s + delay_s > patience_s:
            if not self._reached:
                raise FetchError(f"{where} cannot be reached: {trouble.reason}", "start it, or check its address")
            asked = f", and asks to wait {trouble.after_s:g} s" if trouble.after_s is not None else ""
            raise FetchError(
                f"{where}: {about}: it has failed for {failing_s:.0f} s: {trouble.reason}{asked}",
                f"when it runs again, {_GO_ON}",
            ) from trouble
        with self._lock:
            fresh, self._failing = not self._failing, True
        if fresh:
            self.on_note(f"{where} fails ({trouble.reason}); it is asked again for up to {patience_s:.0f} s")
        until = time.monotonic() + delay_s
        while (left := until - time.monotonic()) > 0:
            self.require_going(about)
            self._closed.wait(min(left, _POLL_S))

    def _note_answer(self) -> None:
        if self._failing:
            with self._lock:
                fresh, self._failing = self._failing, False
            if fresh:
                self.on_note(f"{self.settings.url} answers again")

    def require_going(self, about: str) -> None:
        """Raises Interrupted where someone asked to stop."""
        if self._closed.is_set() or self.stopped():
            raise Interrupted(f"stopped while {self.settings.url} was asked for {about}", _GO_ON)


def api_key(settings: EndpointSettings) -> str | None:
    """The key to send, from the environment.

    Raises:
        AccessError: the variable that was named is not set, or holds what no key is.
    """
    name = settings.api_key_env or DEFAULT_KEY
    if settings.api_key_env is None and not settings.is_private:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        if settings.api_key_env is None:
            return None
        told = f" ({name})" if name.isupper() else ""  # what does not look like a name may be the key itself
        message = f"the environment variable that `teacher.api_key_env` names{told} is not set"
        raise AccessError(message, "set it, or correct the name")
    if not key.isascii() or not key.isprintable() or " " in key:
        # An HTTP library would refuse it too, and print it.
        raise AccessError(f"{name} holds characters that no key has", f"set {name} again")
    return key
