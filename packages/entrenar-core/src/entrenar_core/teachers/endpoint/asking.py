"""A server that is known to tell what is needed: asked for rows, several at a time, answered in their order."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from entrenar_core.errors import ModelError
from entrenar_core.teachers.endpoint.answers import Answer, Question, nothing
from entrenar_core.teachers.endpoint.client import Client
from entrenar_core.teachers.endpoint.protocols import TellingProtocol

_AHEAD = 2
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that was found to fit, by `connect`.

    `concurrency` is how many rows are asked for at once; `context` how many tokens it reads, if it says so;
    `tells_labels` whether it tells the log-probability of every label; `notes` are worth telling the user.
    """

    client: Client
    protocol: TellingProtocol
    concurrency: int
    context: int | None
    tells_labels: bool
    notes: tuple[str, ...]

    @property
    def k(self) -> int:
        """How many of the likeliest tokens it tells."""
        return self.protocol.task.k

    @property
    def vocabulary(self) -> int:
        """Of how many tokens."""
        return self.protocol.task.vocabulary

    def __str__(self) -> str:
        settings = self.client.settings
        rows = "one row" if self.concurrency == 1 else f"{self.concurrency} rows"
        return f"{settings.model} at {settings.url}: {self.protocol.name}, {rows} at a time"

    def require_length(self, tokens: int, name: str) -> None:
        """Raises ModelError where a row of so many tokens is longer than the server reads."""
        if self.context is not None and tokens + self.protocol.room > self.context:
            raise ModelError(
                f"{self.client.settings.url}: {name} has {tokens:,} tokens, and it reads {self.context:,}"
                + (f", of which {self.protocol.room} is for its own" if self.protocol.room else ""),
                "lower `dataset.max_length`, or serve it with a longer context",
            )

    def ask(self, question: Question) -> Answer:
        """What it says of a row; raises as `TellingProtocol.ask`, and where the row is too long."""
        if not question.places:
            return nothing(self.k)
        self.require_length(len(question.needed), question.name)
        return self.protocol.ask(question)

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer]]:
        """Rows with what it says of them, in their order. No more are taken in than are soon asked for.

        Raises:
            EntrenarError: of the kind that fits; what came before was given.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        waiting: deque[tuple[Question, Future[Answer]]] = deque()
        try:
            for question in questions:
                waiting.append((question, pool.submit(self.ask, question)))
                if len(waiting) >= _AHEAD * self.concurrency:
                    yield self._first(waiting)
            while waiting:
                yield self._first(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends all connections, and with them what is still asked for: to be called however a run ends."""
        self.client.close()

    def _first(self, waiting: "deque[tuple[Question, Future[Answer]]]") -> tuple[Question, Answer]:
        question, future = waiting.popleft()
        while not wait([future], timeout=_POLL_S).done:
            self.client.require_going(question.name)
        return question, future.result()
