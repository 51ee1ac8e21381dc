r"""The name that llama.cpp has for how a byte-level tokenizer cuts text into words, found from the rules themselves.

A GGUF holds a name alone, so one is given only where the rules behind it are those of the tokenizer. Two expressions
are the same here if they differ in nothing but how they are written: `(?i:'s|'t)` and `'(?i:[st])`, a line feed and
`\n`, or a possessive quantifier where what follows could not begin with what it takes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.conversion.gguf_splits import SPLITTINGS
from entrenar_core.conversion.tokens.reading import SavedTokenizer

# Of the names for the same rules, the one that llama.cpp has had longest.
_NAMES = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "deepseek-v3", "deepseek-coder", "tekken", "gpt-4o")
_GPT2 = SPLITTINGS["gpt-2"].patterns[0]
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("?+", "?"),
    ("++", "+"),
    (r"\p{N}{1}", r"\p{N}"),
    ("'(?i:[sdmt]|ll|ve|re)", _ENDINGS),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS),
)
_HINT = "llama.cpp would cut its texts otherwise than it does; use another format, such as safetensors"


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a tokenizer cuts words: expressions in turn, each on what the one before it left."""

    patterns: tuple[str, ...]


def cutting_of(saved: SavedTokenizer) -> Cutting:
    """What the pre-tokenizer of a byte-level tokenizer cuts by.

    Raises:
        ModelError: it does more than to cut by expressions.
    """
    *cuts, last = saved.steps("pre_tokenizer")
    if last["type"] != "ByteLevel":
        raise saved.refused("its tokenizer cuts words after it has spelled them in bytes; llama.cpp does before", _HINT)
    if last["add_prefix_space"]:
        raise saved.refused("its tokenizer puts a space before a text, which llama.cpp does not", _HINT)
    patterns = [_pattern(saved, step) for step in cuts]
    return Cutting((*patterns, _GPT2) if last["use_regex"] else tuple(patterns))


def name_of(saved: SavedTokenizer, cutting: Cutting, *, whole: bool, either: bool) -> str:
    """The name of these rules in a GGUF.

    Args:
        whole: a word that is a token is taken before anything is merged.
        either: that makes no difference, since merging makes each token of its letters.

    Raises:
        ModelError: llama.cpp has no name for them.
    """
    wanted = tuple(map(_plain, cutting.patterns))
    alike = [name for name in _NAMES if tuple(map(_plain, SPLITTINGS[name].patterns)) == wanted]
    for name in alike:
        if either or SPLITTINGS[name].whole == whole:
            return name
    shown = " and then by ".join(f"`{pattern}`" for pattern in cutting.patterns) or "nothing"
    if alike:
        does = "takes a word that is a token whole" if whole else "merges a word even if it is a token"
        raise saved.refused(f"its tokenizer cuts words by {shown} and {does}, for which llama.cpp has no name", _HINT)
    raise saved.refused(f"its tokenizer cuts words by {shown}, for which llama.cpp has no name", _HINT)


def _pattern(saved: SavedTokenizer, step: Mapping[str, Any]) -> str:
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if step["type"] == "Split" and _keeps_everything(step):
        return _written(step["pattern"])
    raise saved.refused(
        f"its tokenizer cuts words by the rule {step['type']} ({_rules(step)}), for which llama.cpp has no name", _HINT
    )


def _keeps_everything(step: Mapping[str, Any]) -> bool:
    """What fits is a word, and so is what lies between; `Removed` and inverted drops only what fits nowhere."""
    return (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))


def _written(pattern: Mapping[str, str]) -> str:
    return pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])


def _rules(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in step.items() if name != "type")


def _plain(pattern: str, spellings: Sequence[tuple[str, str]] = _SPELLINGS) -> str:
    for spelling, plain in spellings:
        pattern = pattern.replace(spelling, plain)
    return pattern
