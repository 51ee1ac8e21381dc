"""llama.cpp's server on the loopback, in a process of its own that ends with the block, or with this process.

Source: https://github.com/ggml-org/llama.cpp, tools/server/README.md for the requests; the package xllamacpp brings it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

import httpx2

from entrenar_core.errors import ModelError
from entrenar_core.verification.serving import PACKAGE

INSTALL = "install it with `pip install 'entrenar[xllamacpp]'`"
_START_S, _ANSWER_S, _END_S = 900.0, 600.0, 10.0
_LOG_BYTES = 64 * 1024
_SHOWN_LINES, _SHOWN_LETTERS = 3, 200
_LEVEL = re.compile(r"^[\d.]+ (?P<level>[A-Z]) +(?P<text>.*)$")
"""A line of its log: minutes, seconds and parts of them, then how grave it is."""
_ABORTED = re.compile(r"GGML_ASSERT|GGML_ABORT|terminate called|what\(\):|fatal error", re.IGNORECASE)
_FOLLOWS = re.compile(r"srv |cmn |.*: failed to load model$|.*encountered an error while trying to fit")
"""What it says after it has said what is wrong."""


def require_llama_cpp() -> None:
    """Raises ModelError where the package that brings llama.cpp is missing."""
    if find_spec(PACKAGE) is None:
        raise ModelError(f"the package {PACKAGE} is not installed, which brings llama.cpp", INSTALL)


class LlamaServer:
    """Serves a GGUF, one row of `context` tokens at a time; a context manager.

    Args:
        file: the GGUF.
        context: how many tokens a row may have.
        embeds: whether it is asked for vectors of texts, and not for tokens.
        threads: how many compute; by default as many as this process may use.

    Raises:
        ModelError: by all methods, where llama.cpp refuses the file or ends; with its own last words.
    """

    def __init__(self, file: Path, *, context: int, embeds: bool = False, threads: int | None = None) -> None:
        self.file = file
        self._settings = {
            "file": str(file.absolute()),
            "context": context,
            "embeds": embeds,
            "threads": threads or _cores(),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._http: httpx2.Client | None = None

    def __enter__(self) -> Self:
        require_llama_cpp()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def close(self) -> None:
        """Ends the process; when this returns there is none."""
        if self._http is not None:
            self._http.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_S)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
        if self._log is not None:
            self._log.close()
        self._http = self._process = self._log = None

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that it answers."""
        try:
            response = self._sent(path, body)
        except httpx2.TimeoutException as error:
            raise ModelError(
                f"llama.cpp gives no answer from {self.file.name} within {_ANSWER_S:g} s", "verify fewer positions"
            ) from error
        except httpx2.TransportError as error:
            raise self._failure(f"llama.cpp ended while it ran {self.file.name}") from error
        if response.status_code != 200:
            raise ModelError(
                f"llama.cpp does not run {self.file.name}: {_shown(response.text)}", "check how the file was made"
            )
        return response.json()

    def _sent(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        assert self._http is not None, "it was not started"
        try:
            return self._http.post(path, json=body)
        except httpx2.TimeoutException:
            raise
        except httpx2.TransportError:  # it closes connections that were idle, just when one is used again
            return self._http.post(path, json=body)

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "entrenar_core.verification.serving", json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else it starts a debugger on itself when it aborts
            start_new_session=True,
        )
        assert self._process.stdout is not None
        late = threading.Timer(_START_S, self._process.kill)
        late.start()
        try:
            address = self._process.stdout.readline().decode().strip()
        finally:
            late.cancel()
        if not address:
            raise self._failure(f"llama.cpp does not load {self.file.name}")
        self._http = httpx2.Client(base_url=address, trust_env=False, timeout=_ANSWER_S)

    def _failure(self, what: str) -> ModelError:
        """`what`, and why: the process is at its end, and has said it."""
        assert self._process is not None
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
        words = last_words(self._said())
        if not words and self._process.returncode < 0:
            words = f"signal {-self._process.returncode} ended it"
        return ModelError(
            f"{what}: {words or 'it says nothing'}", "the file is not what llama.cpp reads: make it again"
        )

    def _said(self) -> str:
        assert self._log is not None
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        return self._log.read().decode(errors="replace")


def last_words(log: str) -> str:
    """What llama.cpp says is wrong: its last errors that tell a cause, or else its last lines."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    grave = [text for line in lines if (text := _error_in(line))]
    causes = [text for text in dict.fromkeys(grave) if not _FOLLOWS.match(text)]
    return "; ".join(_shown(line) for line in (causes or list(dict.fromkeys(grave)) or lines)[-_SHOWN_LINES:])


def _error_in(line: str) -> str | None:
    found = _LEVEL.match(line)
    if found is None:
        return line if _ABORTED.search(line) else None
    return found["text"] if found["level"] == "E" else None


def _shown(text: str) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= _SHOWN_LETTERS else f"{plain[:_SHOWN_LETTERS]}…"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
