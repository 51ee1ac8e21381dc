"""Whether the ids of a server's tokens are those of a tokenizer here: each must stand for the same text.

How a server splits a text is another question. It is sent ids, so a text that it would split otherwise is worth a note.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from entrenar_core.errors import ModelError
from entrenar_core.models.splitting import PROBES
from entrenar_core.teachers.endpoint.answers import Question
from entrenar_core.teachers.endpoint.client import Client
from entrenar_core.teachers.endpoint.failures import ABSENT, Refused
from entrenar_core.teachers.endpoint.protocols import TellingProtocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST, _ENOUGH = 20, 200
"""Of so many tokens the texts must be known, and need not be, where a server has no `/detokenize`."""
_BROKEN = "\ufffd"
_HINT = "serve the model that the student's tokenizer is of, or take a student with the tokenizer of that model"


def compare_texts(client: Client, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...] | None:
    """Lets the server make texts of ids, and gives notes of what differs and does no harm; None where it makes none.

    Raises:
        ModelError: an id stands for another text.
    """
    model, split = client.settings.model, []
    for text in (*PROBES, " ".join(tokenizer.all_special_tokens)):
        ids = encoded(tokenizer, text)
        try:
            theirs = _asked(client, model, "detokenize", {"tokens": ids}, ("content", "prompt"))
        except ABSENT:
            return None
        ours = decoded(tokenizer, ids)
        if not isinstance(theirs, str) or theirs.strip() != ours.strip():
            raise ModelError(
                f"{client.settings.url}: its tokens are others than the student's: ids {ids[:8]} are "
                f"{ours[:40]!r} here, and {str(theirs)[:40]!r} there",
                _HINT,
            )
        if not _splits_alike(client, model, text, ids):
            split.append(text)
    return tuple(f"the server splits texts otherwise than the student, such as {text!r}" for text in split[:1])


def encoded(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of a text alone."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decoded(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of ids, all of it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def probe_questions(tokenizer: "PreTrainedTokenizerBase") -> Iterator[Question]:
    """Rows that are short, and of many tokens."""
    for text in PROBES:
        ids = tuple(encoded(tokenizer, text)[:32])
        if len(ids) > 1:
            yield Question(ids, tuple(range(len(ids) - 1)), f"the text {text[:20]!r}")


def _splits_alike(client: Client, model: str, text: str, ids: list[int]) -> bool:
    body = {"content": text, "prompt": text, "add_special": False, "add_special_tokens": False, "parse_special": True}
    try:
        return bool(_asked(client, model, "tokenize", body, ("tokens",)) == ids)
    except ABSENT:
        return True  # nothing is known to differ


def _asked(client: Client, model: str, what: str, body: dict[str, Any], names: tuple[str, ...]) -> Any:
    """llama.cpp and vLLM have the same two pages, and name what they say differently."""
    found = client.post(f"{client.settings.root}/{what}", {"model": model, **body}, about=f"/{what}")
    known = [found[name] for name in names if isinstance(found, dict) and name in found]
    if not known:
        raise Refused(f"{client.settings.url}: /{what} says something else", 200)
    return known[0]


def compare_tokens(protocol: TellingProtocol, tokenizer: "PreTrainedTokenizerBase") -> None:
    """By the texts of the tokens that the server names; those of parts of characters say nothing.

    Raises:
        ModelError: an id stands for another text, or it cannot be told.
    """
    url = protocol.task.url
    seen: set[int] = set()
    for question in probe_questions(tokenizer):
        if len(seen) >= _ENOUGH:
            return
        for id_, theirs in protocol.texts(question):
            ours = decoded(tokenizer, [id_]) if 0 <= id_ < protocol.task.vocabulary else ""
            if not theirs or _BROKEN in ours + theirs:
                continue
            _require_same(url, id_, ours, theirs)
            seen.add(id_)
    if len(seen) < _LEAST:
        raise ModelError(
            f"{url}: whether its token ids are the student's cannot be told: it has no /detokenize, and names "
            f"{len(seen)} tokens by their texts",
            f"let {protocol.task.client.settings.root}/detokenize be reached, as llama.cpp and vLLM have it",
        )


def _require_same(url: str, id_: int, ours: str, theirs: str) -> None:
    if ours.strip() != theirs.strip():
        message = f"its tokens are others than the student's: id {id_} is {ours!r} here, and {theirs[:40]!r} there"
        raise ModelError(f"{url}: {message}", _HINT)
