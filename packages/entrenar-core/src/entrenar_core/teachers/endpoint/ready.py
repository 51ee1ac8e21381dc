"""The teacher of a run that a server runs: connected, or read from a cache of what it said."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from accelerate import Accelerator

from entrenar_core.errors import ModelError
from entrenar_core.teachers.endpoint.asking import Endpoint
from entrenar_core.teachers.endpoint.connecting import connect
from entrenar_core.teachers.endpoint.reading import AskedEndpoint
from entrenar_core.teachers.endpoint.scoring import score_endpoint
from entrenar_core.teachers.endpoint.source import EndpointTeacher
from entrenar_core.teachers.ready import ReadyTeacher, sound
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.evaluation import OnBatch
from entrenar_core.training.signals import StopRequest

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


@contextmanager
def connected(
    prepared: "Preparation", callbacks: Sequence[Callback], stop: StopRequest
) -> Iterator[Callable[[], Endpoint]]:
    """Connects to the server of a run when it is first asked for, and ends the connection with the block.

    Raises:
        EntrenarError: of the kind that fits, as `connect`; or a row is longer than the server reads.
    """
    assert prepared.endpoint is not None
    settings, found = prepared.endpoint, list[Endpoint]()

    def endpoint() -> Endpoint:
        if not found:
            vocabulary = prepared.vocabulary or prepared.num_ids
            one = connect(
                settings,
                prepared.tokenizer,
                vocabulary,
                on_note=partial(tell, callbacks),
                stopped=lambda: stop.requested,
            )
            found.append(one)
            stack.callback(one.close)
            _require_labels(one)
            for text in (f"the teacher is {one}", *one.notes):
                tell(callbacks, text)
            one.require_length(max(_lengths(prepared)), "the longest row")
        return found[0]

    with ExitStack() as stack:
        yield endpoint


def endpoint_teacher(
    prepared: "Preparation",
    endpoint: Callable[[], Endpoint],
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    on_batch: OnBatch,
) -> ReadyTeacher:
    """The teacher with its scores on the evaluation rows; raises as `connected`, and as `cached_teacher`."""
    if prepared.config.teacher.cache is not None:
        from entrenar_core.teachers.cache.serving import cached_teacher

        return cached_teacher(prepared, accelerator, callbacks, lambda: AskedEndpoint(prepared, endpoint()), on_batch)
    teacher = EndpointTeacher(endpoint(), prepared.counting)
    scores = score_endpoint(
        teacher,
        prepared.eval_tokens,
        collator=prepared.collator,
        batch_size=prepared.teacher_batch_size,
        on_batch=on_batch,
    )
    return ReadyTeacher(teacher, sound(scores, prepared), None, None)


def _require_labels(endpoint: Endpoint) -> None:
    """A teacher is scored by what it says of the labels."""
    if not endpoint.tells_labels:
        raise ModelError(
            f"{endpoint.client.settings.url} tells the log-probability of a token only where it is among the "
            "likeliest, so that the teacher cannot be scored",
            "take a newer server: llama.cpp's and vLLM's tell it",
        )


def _lengths(prepared: "Preparation") -> list[int]:
    """Of the rows that are at hand; a longer one of a stream is refused when it is met."""
    stored = prepared.eval_tokens if prepared.config.dataset.streaming else prepared.train_tokens
    return [*stored["length"], *prepared.eval_tokens["length"]]
