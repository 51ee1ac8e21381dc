"""What a SentencePiece-like tokenizer does with spaces before it makes tokens, and what llama.cpp has of it.

llama.cpp puts a space, or none, before each piece of text that begins a text or follows a special token, whatever the
piece begins with. The normalizer of Llama 2 does exactly that; newer tokenizers put none where there is one already,
or only before the first piece.
"""

from dataclasses import dataclass

from entrenar_core.conversion.tokens.deviations import Deviation, after_special, leading_space
from entrenar_core.conversion.tokens.reading import SavedTokenizer

SPACE = "\u2581"
_HINT = "use another format, such as safetensors"


@dataclass(frozen=True, slots=True)
class Spaces:
    """`prefixed`: a space is put before a text. `cut`: words are cut at spaces before tokens are made."""

    prefixed: bool
    cut: bool
    deviations: tuple[Deviation, ...] = ()


def spaces_of(saved: SavedTokenizer) -> Spaces:
    """What the normalizer and the pre-tokenizer of a BPE do.

    Raises:
        ModelError: they do something else too, which llama.cpp does not.
    """
    prepends, replaces = _normalized(saved)
    cut, scheme = False, "never"
    for step in saved.steps("pre_tokenizer"):
        if step["type"] == "Metaspace" and step["replacement"] == SPACE:
            cut, scheme, replaces = cut or step["split"], step["prepend_scheme"], True
        elif step["type"] == "Split" and step["pattern"] in ({"String": SPACE}, {"String": " "}):
            cut = cut or step["pattern"] == {"String": SPACE} or not replaces
        else:
            raise saved.refused(f"its tokenizer cuts words by the rule {step['type']}, unlike llama.cpp", _HINT)
    if not replaces:
        raise saved.refused("its tokenizer neither spells bytes nor writes spaces as U+2581", _HINT)
    return Spaces(prepends or scheme != "never", cut, prefix_deviations(saved, scheme))


def prefix_deviations(saved: SavedTokenizer, scheme: str) -> tuple[Deviation, ...]:
    """Where it shows how Metaspace puts a space before a text: `always`, `first` or `never`."""
    if scheme == "never":
        return ()
    tokens = added_texts(saved)
    return (leading_space(tokens), *(() if scheme == "always" else (after_special(tokens),)))


def added_texts(saved: SavedTokenizer) -> list[str]:
    """What is found whole in a text."""
    return [entry["content"] for entry in saved.added.values()]


def _normalized(saved: SavedTokenizer) -> tuple[bool, bool]:
    prepends = replaces = False
    for step in saved.steps("normalizer"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prepends = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            replaces = True
        else:
            raise saved.refused(f"its tokenizer changes a text by the rule {step['type']}, unlike llama.cpp", _HINT)
    return prepends, replaces
