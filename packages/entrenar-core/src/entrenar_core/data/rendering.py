"""The text of a row, and which of its characters are learnt.

A plain text is learnt whole; of a prompt with its completion, the completion; of a chat, every turn of the assistant,
from what follows the generation prompt to the end of the turn, as the tokenizer's chat template writes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.errors import DataError


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text; `spans` are the characters `[start, end)` whose tokens are learnt, in order, and `reasoning` those of
    them that are a reasoning.

    A chat template writes special tokens itself; elsewhere the tokenizer adds them.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    add_special_tokens: bool
    reasoning: tuple[int, int] = (0, 0)


def render(row: Mapping[str, Any], config: DatasetConfig, tokenizer: Any) -> Rendered:
    """The text of a row with the columns that `load_rows` gives: `messages`, or `prompt`, `reasoning` if there is
    one, and `completion`, or `text`.

    Raises:
        DataError: the tokenizer has no chat template, or one that cannot tell where a turn begins; the chat is
            malformed.
    """
    if config.messages_column is not None:
        return _chat(row["messages"], tokenizer, f"row {row['row']}")
    if config.prompt_column is not None:
        prompt, reasoning = row["prompt"], row.get("reasoning") or ""
        text, begins = prompt + reasoning + row["completion"], len(prompt)
        return Rendered(text, ((begins, len(text)),), True, (begins, begins + len(reasoning)))
    return Rendered(row["text"], ((0, len(row["text"])),), True)


def _chat(messages: object, tokenizer: Any, where: str) -> Rendered:
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, and the rows are chats",
            "take a model that was trained on chats, or `dataset.text_column` instead of `dataset.messages_column`",
        )
    turns = _turns(messages, where)
    text = _applied(tokenizer, turns, where, prompt=False)
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = _applied(tokenizer, turns[:index], where, prompt=True)
            after = _applied(tokenizer, turns[: index + 1], where, prompt=False)
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"{where}: the chat template writes turn {index + 1} differently once the chat goes on, "
                    "so what the assistant said cannot be told from the rest",
                    "give prompts and completions instead of chats, or a tokenizer with a plainer template",
                )
            spans.append((len(before), len(after)))
    return Rendered(text, tuple(spans), False)


def _turns(messages: object, where: str) -> list[dict[str, Any]]:
    """The turns without the empty fields that a table gives to all of them."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: a chat is a list of turns, not {messages!r:.60}", "write [{role, content}, …]")
    turns = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise DataError(
                f"{where}: a turn is a `role` and a `content`, both text, not {message!r:.60}",
                "write [{role: user, content: …}, {role: assistant, content: …}]",
            )
        turns.append({key: value for key, value in message.items() if value is not None})
    return turns


def _applied(tokenizer: Any, turns: Sequence[Mapping[str, Any]], where: str, *, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # whatever a template raises, by its own `raise_exception` or by a mistake
        told = " ".join(str(error).split())[:200]
        raise DataError(
            f"{where}: the chat template refuses the turns: {told}", "check the order and names of the roles"
        ) from error
