"""The tokens of a GGUF that have a role, and which of them stand at the ends of a text.

What stands there is what tokenizer.json adds to a text. `add_bos_token` and `add_eos_token` in tokenizer_config.json
are for the older forms alone: where there is a tokenizer.json, transformers 5 passes over them too.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, which finds some tokens by their text.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from entrenar_core.conversion.tokens.deviations import Deviation, around_tokens
from entrenar_core.conversion.tokens.reading import SETTINGS, SavedTokenizer
from entrenar_core.formats.gguf_values import Value, flag, u32

# What tokenizer_config.json calls a role, and what a GGUF does; one spelling is the format's own.
_ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
    "eot": "eot", "eom": "eom", "prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid", "fim_pad": "fim_pad",
    "fim_rep": "fim_rep", "fim_sep": "fim_sep",
}  # fmt: skip
_ENDS_KNOWN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
_HINT = "use another format, such as safetensors"
_NO_END = "its tokenizer names no token that ends a text; llama.cpp takes one of its own for it"
_STRIPPED = (
    "{} white space beside them, which llama.cpp does only for models whose name has phi-3 in it: after or before "
    "such a space a word gets another token"
)
_WORDS = "{} found only as whole words, and in llama.cpp wherever they stand"
_OVERLAPPING = (
    "the added token {} ends as {} starts: of a text with both in one, such as {!r}, tokenizers take the first, and "
    "llama.cpp the longer"
)
_CHANGED = "{} looked for in a text that was normalised, and in llama.cpp in the text itself"


@dataclass(frozen=True, slots=True)
class Ends:
    """The ids of what stands before a text and behind it, if there is anything."""

    first: int | None
    last: int | None


def special_metadata(
    saved: SavedTokenizer, config: Mapping[str, Any], *, ends_fixed: bool
) -> tuple[Mapping[str, Value], tuple[str, ...]]:
    """The ids of roles and what is added to a text, as keys of a GGUF, with notes on them.

    Args:
        config: config.json, which may name tokens that the tokenizer does not.
        ends_fixed: llama.cpp always puts the first token and the separator around a text.

    Raises:
        ModelError: it adds more than one token at an end, or another one than llama.cpp would.
    """
    ids, notes = _roles(saved, config)
    ends = _ends(saved)
    keys: dict[str, Value] = {}
    if ends_fixed:
        if ends.first is None or ends.last is None:
            raise saved.refused("its tokenizer does not put a token at both ends of a text, as llama.cpp does", _HINT)
        ids |= {"bos": ends.first, "seperator": ends.last}
        keys["tokenizer.ggml.add_sep_token"] = flag(True)
    else:
        ids = _with_ends(saved, ids, ends)
        notes = notes if "eos" in ids else (*notes, _NO_END)
        keys["tokenizer.ggml.add_eos_token"] = flag(ends.last is not None)
    keys["tokenizer.ggml.add_bos_token"] = flag(ends.first is not None)
    keys |= {f"tokenizer.ggml.{role}_token_id": u32(id_) for role, id_ in ids.items()}
    return keys, notes


def _roles(saved: SavedTokenizer, config: Mapping[str, Any]) -> tuple[dict[str, int], tuple[str, ...]]:
    ids: dict[str, int] = {}
    notes: list[str] = []
    for role, name in _ROLES.items():
        token = saved.token(role) or (saved.model.get("unk_token") if role == "unk" else None)
        id_ = None if token is None else saved.library.token_to_id(token)
        if id_ is not None:
            ids[name] = id_
        elif token is not None:
            notes.append(f"its {SETTINGS} names the {role} token {token!r}, which its tokenizer.json does not have")
    if saved.model["type"] == "Unigram":
        ids["unknown"] = saved.model["unk_id"]
    for role in ("bos", "eos"):
        told = _told(saved, config, role)
        if told and role not in ids:
            ids[role] = told[0]
    return ids | _further_end(saved, _told(saved, config, "eos"), ids), tuple(notes)


def _told(saved: SavedTokenizer, config: Mapping[str, Any], role: str) -> Sequence[int]:
    """The ids that config.json has for a role: none, one or several. Of others than added tokens it is a default."""
    told = config.get(f"{role}_token_id")
    listed = told if isinstance(told, list) else [told]
    return [id_ for id_ in listed if type(id_) is int and id_ in saved.added]


def _further_end(saved: SavedTokenizer, ends: Iterable[int], ids: Mapping[str, int]) -> dict[str, int]:
    """A second token that ends an answer; those of known texts llama.cpp finds by itself."""
    if "eot" in ids or any(saved.library.token_to_id(text) is not None for text in _ENDS_KNOWN):
        return {}
    others = [id_ for id_ in ends if id_ != ids.get("eos")]
    return {"eot": others[0]} if others else {}


def _ends(saved: SavedTokenizer) -> Ends:
    """What the tokenizer really puts around a text."""
    bare, dressed = (saved.library.encode("a", add_special_tokens=added).ids for added in (False, True))
    count = len(dressed) - len(bare)
    starts = [at for at in range(count + 1) if dressed[at : at + len(bare)] == bare]
    if not starts or max(starts[0], count - starts[0]) > 1:
        raise saved.refused(
            f"its tokenizer adds {count} tokens to a text, and llama.cpp at most one at either end", _HINT
        )
    return Ends(dressed[0] if starts[0] else None, dressed[-1] if count > starts[0] else None)


def _with_ends(saved: SavedTokenizer, ids: dict[str, int], ends: Ends) -> dict[str, int]:
    """The first token is the one that is put first; the last must be the one that ends a text."""
    if ends.first is not None:
        ids = ids | {"bos": ends.first}
    if ends.last is not None and ids.setdefault("eos", ends.last) != ends.last:
        added, named = (saved.library.id_to_token(id_) for id_ in (ends.last, ids["eos"]))
        raise saved.refused(
            f"its tokenizer puts {added!r} behind a text, and names {named!r} as what ends it; llama.cpp knows one",
            f"make them one in {SETTINGS}",
        )
    return ids


def matching_deviations(saved: SavedTokenizer) -> tuple[Deviation, ...]:
    """Added tokens that are found in another way than as their text, wherever it stands."""
    added = saved.added.values()
    strips = [entry["content"] for entry in added if entry["lstrip"] or entry["rstrip"]]
    words = [entry["content"] for entry in added if entry["single_word"]]
    changed = [entry["content"] for entry in added if entry["normalized"] and not _is_found(saved, entry["content"])]
    told = (
        (strips, _STRIPPED.format(_some(strips, "takes in", "take in"))),
        (words, _WORDS.format(_some(words, "is", "are"))),
        (changed, _CHANGED.format(_some(changed, "is", "are"))),
    )
    found = [around_tokens(note, tokens) for tokens, note in told if tokens]
    if overlapping := _overlapping([entry["content"] for entry in added]):
        found.append(around_tokens(_OVERLAPPING.format(*overlapping[0]), [both for *_, both in overlapping]))
    return tuple(found)


def _overlapping(tokens: Sequence[str]) -> list[tuple[str, str, str]]:
    """Tokens whose end is the start of others that are no shorter, with the text that has both: the first one counts to
    tokenizers, the longer one to llama.cpp. Runs of one sign are cut alike.
    """
    in_order = sorted(tokens)
    return [
        (one, other, one + other[len(one) - at :])
        for one in tokens
        for at in range(1, len(one))
        for other in _beginning(in_order, one[at:])
        if other != one and len(other) >= len(one) and len({*one, *other}) > 1
    ]


def _beginning(in_order: Sequence[str], start: str) -> Iterator[str]:
    """The tokens that begin so."""
    places = range(bisect_left(in_order, start), len(in_order))
    return takewhile(lambda token: token.startswith(start), (in_order[place] for place in places))


def _is_found(saved: SavedTokenizer, token: str) -> bool:
    """Whether it is one token within a text, which the normalizer of the tokenizer may prevent."""
    return saved.library.token_to_id(token) in saved.library.encode(f"a{token}b", add_special_tokens=False).ids


def _some(tokens: Sequence[str], one: str, many: str) -> str:
    shown = ", ".join(tokens[:3]) + (f" and {len(tokens) - 3} more tokens" if len(tokens) > 3 else "")
    return f"{shown} {one if len(tokens) == 1 else many}"
